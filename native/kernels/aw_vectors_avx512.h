// The vector type of both AVX-512 sets of AW-convolution; included inside the namespace of each.

namespace {

struct V {
    static constexpr int kLanes = 16, kTerms = 16;
    static constexpr int kPixels[kVectors + 1] = {0, 16, 14};
    using F = __m512;
    static __mmask16 first(int n) { return static_cast<__mmask16>(n >= kLanes ? 0xffffu : n > 0 ? (1u << n) - 1 : 0u); }
    static F zero() { return _mm512_setzero_ps(); }
    static F set1(float a) { return _mm512_set1_ps(a); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
    static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
    static void store_n(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F ldexp(F a, F n) { return _mm512_scalef_ps(a, n); }
    // 16 rows of 16.
    static void transpose(F (&r)[kLanes]) {
        F t[kLanes];
        for (int i = 0; i < kLanes; i += 2) t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        for (int i = 0; i < kLanes; i += 4)
            for (int j = 0; j < 2; ++j) {
                const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
                r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            }
        for (int i = 0; i < 4; ++i) {  // r[4 k + i]: columns i, 4 + i, 8 + i, 12 + i of rows 4 k to 4 k + 3
            t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88), t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
            t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88), t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
        }
        for (int i = 0; i < 4; ++i) {
            r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88), r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
            r[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88), r[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
        }
    }
    static __m256i to_bf16(F a) {
#ifdef __AVX512BF16__
        return (__m256i)_mm512_cvtneps_pbh(a);
#else
        const __m512i bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
        const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
#endif
    }
    static void store_bf16_n(uint16_t* p, F a, int n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(a)); }
};

}  // namespace
