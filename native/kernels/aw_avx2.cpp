// AW-convolution with AVX2 and FMA.
#include <immintrin.h>

#include "aw_kernels.h"

namespace leanconv::aw::avx2 {
namespace {

struct V {
    static constexpr int kLanes = 8, kTerms = 8;
    static constexpr int kPixels[kVectors + 1] = {0, 12, 6};
    using F = __m256;
    static F zero() { return _mm256_setzero_ps(); }
    static F set1(float a) { return _mm256_set1_ps(a); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static __m256i first(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static F load_n(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
    static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
    static void store_n(float* p, F a, int n) {
        if (n >= kLanes)
            _mm256_storeu_ps(p, a);
        else
            _mm256_maskstore_ps(p, first(n), a);
    }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F ldexp(F a, F n) {
        const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
    }
    // 8 rows of 8.
    static void transpose(F (&r)[kLanes]) {
        F t[kLanes];
        for (int i = 0; i < kLanes; i += 2) t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
        for (int i = 0; i < kLanes; i += 4)
            for (int j = 0; j < 2; ++j) {
                r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
                r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
            }
        for (int i = 0; i < 4; ++i) t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20), t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
        for (int i = 0; i < kLanes; ++i) r[i] = t[i];
    }
    static void store_bf16_n(uint16_t* p, F a, int n) {
        const __m256i bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
        const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
        const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
        if (n >= kLanes) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
            return;
        }
        alignas(16) uint16_t all[kLanes];
        _mm_store_si128(reinterpret_cast<__m128i*>(all), packed);
        for (int i = 0; i < n; ++i) p[i] = all[i];
    }
};

}  // namespace

#include "aw_inl.h"

#include "aw_attention_inl.h"

#include "aw_table_inl.h"

namespace {

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = table<Floats>("avx2", supported, false);

}  // namespace leanconv::aw::avx2
