// AVX2 with FMA: ones are counted through a 16-entry nibble table (vpshufb), byte counts are widened once in 31 words.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels.h"

namespace leanconv::avx2 {
namespace {

struct V {
    static constexpr int kLanes = 8;
    using F = __m256;
    static __m256i first(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static F set1(float a) { return _mm256_set1_ps(a); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static F load_n(const float* p, int n) {
        return n >= kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(n));
    }
    static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
    static void store_n(float* p, F a, int n) {
        if (n >= kLanes)
            _mm256_storeu_ps(p, a);
        else
            _mm256_maskstore_ps(p, first(n), a);
    }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F select_ge0(F x, F yes, F no) {
        return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
    }
    static uint32_t ge0(F a) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GE_OQ)));
    }
};

}  // namespace

#include "common_inl.h"

namespace {

inline __m256i load_words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// P jobs x 8 channels at `w` (rows of `lanes` words): base - 2 * ones, exact in floats (program.cpp bounds the reduction).
template <int P>
void count_tile(const BinaryConvArgs& a, int j, const uint32_t* w, int lanes, int c, const float* const* base, float (*sums)[kBlock]) {
    const __m256i low = _mm256_set1_epi8(0x0f);
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i one8 = _mm256_set1_epi8(1), one16 = _mm256_set1_epi16(1);
    const uint32_t* in[P];
    for (int i = 0; i < P; ++i) in[i] = a.input + a.job_offset[j + i];
    __m256i total[P];
    for (int i = 0; i < P; ++i) total[i] = _mm256_setzero_si256();
    for (int k = 0; k < a.words;) {
        const int stop = std::min(k + 31, a.words);  // 31 * 8 ones fit a byte
        __m256i bytes[P];
        for (int i = 0; i < P; ++i) bytes[i] = _mm256_setzero_si256();
        for (; k < stop; ++k, w += lanes) {
            const int32_t offset = a.word_offset[k];
            const __m256i weight = load_words(w);
            for (int i = 0; i < P; ++i) {
                const __m256i x = _mm256_xor_si256(_mm256_set1_epi32(static_cast<int>(in[i][offset])), weight);
                const __m256i lo = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
                const __m256i hi = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(x, 4), low));
                bytes[i] = _mm256_add_epi8(bytes[i], _mm256_add_epi8(lo, hi));
            }
        }
        for (int i = 0; i < P; ++i)
            total[i] = _mm256_add_epi32(total[i], _mm256_madd_epi16(_mm256_maddubs_epi16(bytes[i], one8), one16));
    }
    const __m256 minus_two = _mm256_set1_ps(-2.0f);
    for (int i = 0; i < P; ++i)
        _mm256_store_ps(sums[i] + c, _mm256_fmadd_ps(minus_two, _mm256_cvtepi32_ps(total[i]), _mm256_loadu_ps(base[i] + c)));
}

template <int P>
void binary_tiles(const BinaryConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    const int lanes = block_lanes(a.out_channels, block);
    const int padded = block_count(a.out_channels) * kBlock;
    const uint32_t* weights = a.weights + int64_t{block} * a.words * kBlock;
    const int channels = a.out_channels - block * kBlock;
    alignas(64) float sums[P][kBlock];
    int j = begin;
    for (; j + P <= end; j += P) {
        const float* base[P];
        for (int i = 0; i < P; ++i) base[i] = a.base + int64_t{a.border_case[j + i]} * padded + block * kBlock;
        for (int c = 0; c < lanes; c += V::kLanes) count_tile<P>(a, j, weights + c, lanes, c, base, sums);
        for (int i = 0; i < P; ++i) finish_row(run, pixel_of(a.pixel, j + i), block * kBlock, channels, sums[i]);
    }
    if constexpr (P > 1) binary_tiles<P / 2>(a, run, j, end, block);
}

void binary_conv(const BinaryConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    binary_tiles<4>(a, run, begin, end, block);
}

// P pixels x 16 channels of float sums in registers.
template <int P>
void real_tile(const RealConvArgs& a, int j, const float* w, int lanes, int c, float (*sums)[kBlock]) {
    __m256 acc[P][2];
    for (int i = 0; i < P; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    for (int r = 0; r < a.runs; ++r) {
        const float* in[P];
        for (int i = 0; i < P; ++i) in[i] = a.input + a.job_offset[j + i] + a.run_offset[r];
        for (int k = 0; k < a.run_length; ++k, w += lanes) {
            const __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
            for (int i = 0; i < P; ++i) {
                const __m256 x = _mm256_broadcast_ss(in[i] + k);
                acc[i][0] = _mm256_fmadd_ps(x, w0, acc[i][0]);
                acc[i][1] = _mm256_fmadd_ps(x, w1, acc[i][1]);
            }
        }
    }
    for (int i = 0; i < P; ++i) {
        _mm256_store_ps(sums[i] + c, acc[i][0]);
        _mm256_store_ps(sums[i] + c + 8, acc[i][1]);
    }
}

template <int P>
void real_tiles(const RealConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    const int lanes = block_lanes(a.out_channels, block);
    const float* weights = a.weights + int64_t{block} * a.runs * a.run_length * kBlock;
    alignas(64) float sums[P][kBlock];
    int j = begin;
    for (; j + P <= end; j += P) {
        for (int c = 0; c < lanes; c += 16) real_tile<P>(a, j, weights + c, lanes, c, sums);
        for (int i = 0; i < P; ++i) finish_row(run, pixel_of(a.pixel, j + i), block * kBlock, a.out_channels - block * kBlock, sums[i]);
    }
    if constexpr (P > 1) real_tiles<P / 2>(a, run, j, end, block);
}

void real_conv(const RealConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    real_tiles<6>(a, run, begin, end, block);
}

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {"avx2", supported, binary_conv, real_conv, pool, elementwise};

}  // namespace leanconv::avx2
