// AW-convolution with AVX-512 and its sums of products of bfloat16 pairs.
#include <immintrin.h>

#include "aw_kernels.h"

namespace leanconv::aw::avx512bf16 {

#include "aw_vectors_avx512.h"

#include "aw_inl.h"

#include "aw_attention_inl.h"

#include "aw_table_inl.h"

namespace {

struct Pairs {
    static constexpr int kHalves = 2;
    using Weight = __m512i;
    static AW_INLINE Weight load(const Stored* p) { return _mm512_loadu_si512(p); }
    static AW_INLINE V::F mac(V::F sum, const char* word, Weight w) {
        int32_t x;
        __builtin_memcpy(&x, word, sizeof x);
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)w);
    }
    static AW_INLINE void store_scaled(Stored* out, const float* w, const V::F* g) {
        const V::F low = V::mul(V::load(w), g[0]), high = V::mul(V::load(w + V::kLanes), g[1]);
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    static AW_INLINE void of_lanes(V::F g, V::F* all) {
        const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        all[0] = _mm512_permutexvar_ps(twice, g);
        all[1] = _mm512_permutexvar_ps(_mm512_add_epi32(twice, _mm512_set1_epi32(8)), g);
    }
    // Rows of 8 pairs, one for each of 16 lanes, to two vectors (lanes 0 to 7, 8 to 15) for each pair.
    static AW_INLINE void transpose(V::F (&r)[V::kLanes]) {
        __m512d t[8], u[8];
        V::F out[V::kLanes];
        for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < 8; i += 2) {
                const __m512d a = _mm512_castps_pd(r[8 * half + i]), b = _mm512_castps_pd(r[8 * half + i + 1]);
                t[i] = _mm512_unpacklo_pd(a, b), t[i + 1] = _mm512_unpackhi_pd(a, b);
            }
            for (int i = 0; i < 2; ++i) {
                u[i] = _mm512_shuffle_f64x2(t[i], t[2 + i], 0x88), u[2 + i] = _mm512_shuffle_f64x2(t[i], t[2 + i], 0xdd);
                u[4 + i] = _mm512_shuffle_f64x2(t[4 + i], t[6 + i], 0x88), u[6 + i] = _mm512_shuffle_f64x2(t[4 + i], t[6 + i], 0xdd);
            }
            for (int i = 0; i < 2; ++i) {
                out[2 * i + half] = _mm512_castpd_ps(_mm512_shuffle_f64x2(u[i], u[4 + i], 0x88));
                out[2 * (4 + i) + half] = _mm512_castpd_ps(_mm512_shuffle_f64x2(u[i], u[4 + i], 0xdd));
                out[2 * (2 + i) + half] = _mm512_castpd_ps(_mm512_shuffle_f64x2(u[2 + i], u[6 + i], 0x88));
                out[2 * (6 + i) + half] = _mm512_castpd_ps(_mm512_shuffle_f64x2(u[2 + i], u[6 + i], 0xdd));
            }
        }
        for (int i = 0; i < V::kLanes; ++i) r[i] = out[i];
    }
    static AW_INLINE void spread(const float* g, V::F* all) {
        all[0] = all[1] = _mm512_mask_blend_ps(0xaaaa, _mm512_set1_ps(g[0]), _mm512_set1_ps(g[1]));
    }
};

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = table<Pairs>("avx512bf16", supported, true);

}  // namespace leanconv::aw::avx512bf16
