// AVX-512 with VPOPCNTDQ (Ice Lake and later, Zen 4 and later): xor, count, add, three instructions per 512 bits.
//
// LEANCONV_EMULATE_VPOPCNTDQ (tests only) replaces the one instruction by a nibble table, so that everything else of
// this path can be checked on a processor without it.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels.h"

namespace leanconv::avx512vpopcntdq {

#include "avx512_inl.h"

namespace {

#if LEANCONV_EMULATE_VPOPCNTDQ
inline __m512i popcount(__m512i x) {
    const __m512i low = _mm512_set1_epi8(0x0f);
    const __m512i table = _mm512_set4_epi32(0x04030302, 0x03020201, 0x03020201, 0x02010100);
    const __m512i bytes = _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(x, low)),
                                          _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32(x, 4), low)));
    return _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)), _mm512_set1_epi16(1));
}
#else
inline __m512i popcount(__m512i x) { return _mm512_popcnt_epi32(x); }
#endif

// P pixels x VECTORS * 16 channels of counts in registers; the input word is broadcast and used VECTORS times, a
// vector of weights P times: with 4 x 4, two loads a cycle keep up with four vector units (Zen 5).
template <int P, int VECTORS>
struct PopcountTile {
    static constexpr int kPixels = VECTORS == 1 ? 8 : 4;

    static void run(const TileInput<P>& in, const uint32_t* w, int32_t (*pop)[kBlock]) {
        __m512i acc[P][VECTORS];
        for (int i = 0; i < P; ++i)
            for (int v = 0; v < VECTORS; ++v) acc[i][v] = _mm512_setzero_si512();
        for (int k = 0; k < in.words; ++k, w += VECTORS * V::kLanes) {
            const int32_t offset = in.word_offset[k];
            __m512i weight[VECTORS];
            for (int v = 0; v < VECTORS; ++v) weight[v] = _mm512_loadu_si512(w + v * V::kLanes);
            for (int i = 0; i < P; ++i) {
                __m512i word = _mm512_set1_epi32(static_cast<int>(in.job[i][offset]));
                asm("" : "+v"(word));  // keeps the broadcast in one register instead of one memory operand a use
                for (int v = 0; v < VECTORS; ++v)
                    acc[i][v] = _mm512_add_epi32(acc[i][v], popcount(_mm512_xor_si512(word, weight[v])));
            }
        }
        for (int i = 0; i < P; ++i)
            for (int v = 0; v < VECTORS; ++v) _mm512_store_si512(pop[i] + v * V::kLanes, acc[i][v]);
    }
};

bool supported() {
    return
#if !LEANCONV_EMULATE_VPOPCNTDQ
        __builtin_cpu_supports("avx512vpopcntdq") &&
#endif
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {"avx512vpopcntdq", supported, binary_conv_blocks<PopcountTile>, real_conv, pool, elementwise};

}  // namespace leanconv::avx512vpopcntdq
