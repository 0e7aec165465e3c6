// Tiles of the int8 convolution for both AVX-512 sets. Included inside the namespace of each.

#include "int8_conv_inl.h"

#include "avx512_vnni.h"

namespace {

// Without (int8_widening_inl.h).
struct W {
    using I = __m512i;
    static constexpr int kChannels = 8;
    static constexpr int kSums = 16;  // that a tile keeps in registers

    static I zero() { return _mm512_setzero_si512(); }
    static I widen(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static I load(const int16_t* p) { return _mm512_load_si512(p); }
    static void store(int16_t* p, I x) { _mm512_store_si512(p, x); }
    static I spread(const int16_t* p) { return _mm512_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
    static I dot(I sum, I x, I w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w)); }
    template <int N>
    static void reduce(const I* sums, int32_t* to, bool add) {
        for (int n = 0; n < N; ++n) {
            const I pairs = _mm512_add_epi32(sums[n], _mm512_srli_epi64(sums[n], 32));
            __m256i* at = reinterpret_cast<__m256i*>(to + n * kChannels);
            const __m256i total = _mm512_cvtepi64_epi32(pairs);
            _mm256_store_si256(at, add ? _mm256_add_epi32(total, _mm256_load_si256(at)) : total);
        }
    }
};

}  // namespace

#include "int8_widening_inl.h"
