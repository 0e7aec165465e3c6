// AVX-512 with VPOPCNTDQ (Ice Lake and later, Zen 4 and later): xor, count, add, three instructions per 512 bits.
//
// LEANCONV_EMULATE_VPOPCNTDQ (tests only) replaces the one instruction by a nibble table, so that everything else of
// this path can be checked on a processor without it.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels.h"

namespace leanconv::avx512vpopcntdq {
namespace {

const bool kHasBf16 = __builtin_cpu_supports("avx512bf16");
inline bool has_bf16() { return kHasBf16; }

}  // namespace

#include "avx512_inl.h"
#include "avx512_int8.h"

#if LEANCONV_EMULATE_VPOPCNTDQ
namespace {

inline __m512i popcount(__m512i x) {
    const __m512i low = _mm512_set1_epi8(0x0f);
    const __m512i table = _mm512_set4_epi32(0x04030302, 0x03020201, 0x03020201, 0x02010100);
    const __m512i bytes = _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(x, low)),
                                          _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32(x, 4), low)));
    return _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)), _mm512_set1_epi16(1));
}

template <int P, int VECTORS>
struct PopcountTile {
    static void run(const TileInput<P>& in, const uint32_t* w, __m512i (&ones)[P][VECTORS]) {
        for (int i = 0; i < P; ++i)
            for (int v = 0; v < VECTORS; ++v) ones[i][v] = _mm512_loadu_si512(in.start[i] + v * V::kLanes);
        for (int k = 0; k < in.words; ++k, w += VECTORS * V::kLanes)
            for (int i = 0; i < P; ++i) {
                const __m512i word = _mm512_set1_epi32(static_cast<int>(in.job[i][in.word_offset[k]]));
                for (int v = 0; v < VECTORS; ++v)
                    ones[i][v] = _mm512_add_epi32(ones[i][v], popcount(_mm512_xor_si512(word, _mm512_loadu_si512(w + v * V::kLanes))));
            }
    }
};

}  // namespace
#else
#include "avx512_popcount.h"
#endif

namespace {

bool supported() {
    return
#if !LEANCONV_EMULATE_VPOPCNTDQ  // processors with the instruction have VNNI, too
        __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni") &&
#endif
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

}  // namespace

#if LEANCONV_EMULATE_VPOPCNTDQ
constexpr bool kVnni = false;
#else
constexpr bool kVnni = true;
#endif
constexpr auto int8_conv = kVnni ? int8_conv_blocks<VnniTile> : int8_conv_widened;
constexpr auto int8_conv_pooled = kVnni ? int8_conv_pooled_blocks<VnniTile> : int8_conv_pooled_widened;

extern const Kernels kKernels;
const Kernels kKernels = {"avx512vpopcntdq", supported, BinaryWeights::words, binary_conv_blocks<PopcountTile, 8, 4>,
                          real_conv, pool, elementwise, int8_conv, int8_conv_pooled, depthwise};

}  // namespace leanconv::avx512vpopcntdq
