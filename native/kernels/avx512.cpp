// AVX-512 F/BW/DQ/VL, without the popcount instruction: Skylake-X and, with VNNI for int8 convolutions, Cascade Lake.
//
// Counting ones by carry-save adders (Harley and Seal): a full adder is two ternary-logic instructions, so eight words
// cost 8 xor + 14 adder operations, and only their "eights" are counted through the nibble table. That is 3.6
// instructions per 512 bits against 8 for the table alone.
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

namespace leanconv::avx512 {
namespace {

constexpr bool has_bf16() { return false; }

}  // namespace

#include "avx512_inl.h"
#include "avx512_carry_save.h"
#include "avx512_int8.h"

namespace {

inline __m512i xor3(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }

// sum + a + b -> sum, carry (each bit position by itself). The carry is computed from the *new* sum: ternary logic
// overwrites an operand, and this order needs no copy. 0xd4 = majority(a ^ b ^ sum, a, b).
inline __m512i add_pair(__m512i& sum, __m512i a, __m512i b) {
    sum = xor3(sum, a, b);
    return _mm512_ternarylogic_epi32(a, b, sum, 0xd4);
}

// In each byte: weight * (ones of the low nibble) and of the high nibble.
inline __m512i count_bytes(__m512i x, __m512i table, __m512i low) {
    const __m512i lo = _mm512_shuffle_epi8(table, _mm512_and_si512(x, low));
    const __m512i hi = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32(x, 4), low));
    return _mm512_add_epi8(lo, hi);
}

inline __m512i nibble_table(int weight) {
    const char w = static_cast<char>(weight);
    const char w2 = static_cast<char>(2 * weight), w3 = static_cast<char>(3 * weight), w4 = static_cast<char>(4 * weight);
    return _mm512_broadcast_i32x4(_mm_setr_epi8(0, w, w, w2, w, w2, w2, w3, w, w2, w2, w3, w2, w3, w3, w4));
}

// ones + 2 twos + 4 fours (bit planes) + 8 eights (byte counts), in each 32-bit lane.
inline __m512i total(__m512i ones, __m512i twos, __m512i fours, __m512i eights) {
    const __m512i low = _mm512_set1_epi8(0x0f);
    const __m512i rest = _mm512_add_epi8(
        _mm512_add_epi8(count_bytes(ones, nibble_table(1), low), count_bytes(twos, nibble_table(2), low)),
        count_bytes(fours, nibble_table(4), low));
    const __m512i sum16 = _mm512_add_epi16(_mm512_maddubs_epi16(rest, _mm512_set1_epi8(1)),
                                           _mm512_maddubs_epi16(eights, _mm512_set1_epi8(8)));
    return _mm512_madd_epi16(sum16, _mm512_set1_epi16(1));
}

template <int P, int VECTORS>
struct CarrySaveTile {
    static constexpr int kLanes = VECTORS * V::kLanes;

    // The byte counters of eights hold 31 groups of 8 words: longer reductions run in pieces.
    static void run(const TileInput<P>& in, const uint32_t* weights, __m512i (&ones)[P][VECTORS]) {
        in.fetch();
        alignas(64) int32_t pop[P][kBlock];
        constexpr int kWords = 31 * 8;
        TileInput<P> piece = in;
        piece.words = std::min(in.words, kWords);
        run_piece(piece, weights, pop);
        for (int done = piece.words; done < in.words; done += piece.words) {
            alignas(64) int32_t more[P][kBlock];
            piece.word_offset = in.word_offset + done;
            piece.words = std::min(in.words - done, kWords);
            run_piece(piece, weights + int64_t{done} * kLanes, more);
            for (int i = 0; i < P; ++i)
                for (int c = 0; c < kLanes; ++c) pop[i][c] += more[i][c];
        }
        for (int i = 0; i < P; ++i)
            for (int v = 0; v < VECTORS; ++v) ones[i][v] = _mm512_add_epi32(_mm512_load_si512(pop[i] + v * V::kLanes), _mm512_loadu_si512(in.start[i] + v * V::kLanes));
    }

private:
    static void run_piece(const TileInput<P>& in, const uint32_t* weights, int32_t (*pop)[kBlock]) {
        int v = 0;
        for (; v + 2 <= VECTORS; v += 2) {
            if constexpr (P == 2) {
                carry_save_2x2(in.job[0], in.job[1], in.word_offset, in.words, weights + v * V::kLanes,
                               kLanes * sizeof(uint32_t), pop[0] + v * V::kLanes, pop[1] + v * V::kLanes);
            } else {
                part<2>(in, weights + v * V::kLanes, v * V::kLanes, pop);
            }
        }
        if constexpr (VECTORS % 2) part<1>(in, weights + v * V::kLanes, v * V::kLanes, pop);
    }

    // N vectors of the block, all words. Counters are vertical: one bit plane a power of two.
    template <int N>
    static inline __attribute__((always_inline)) void part(const TileInput<P>& in, const uint32_t* w, int c, int32_t (*pop)[kBlock]) {
        const __m512i low = _mm512_set1_epi8(0x0f);
        const __m512i table = nibble_table(1);
        __m512i ones[P][N], twos[P][N], fours[P][N], eights[P][N];
        for (int i = 0; i < P; ++i)
            for (int n = 0; n < N; ++n) ones[i][n] = twos[i][n] = fours[i][n] = eights[i][n] = _mm512_setzero_si512();
        const int32_t* at = in.word_offset;
        const int32_t* const end = at + in.words;
        __m512i x[2][P][N];
        const auto fetch = [&](int slot) __attribute__((always_inline)) {
            __m512i weight[N];
            for (int n = 0; n < N; ++n) weight[n] = _mm512_loadu_si512(w + n * V::kLanes);
            for (int i = 0; i < P; ++i) {
                const __m512i word = _mm512_set1_epi32(static_cast<int>(in.job[i][*at]));
                for (int n = 0; n < N; ++n) x[slot][i][n] = _mm512_xor_si512(word, weight[n]);
            }
            ++at;
            w += kLanes;
        };
        // words % 8 first, singly and in pairs: at most 7, so that nothing leaves the fours
        if (in.words & 1) {
            fetch(0);
            for (int i = 0; i < P; ++i)
                for (int n = 0; n < N; ++n) ones[i][n] = x[0][i][n];
        }
        for (int pairs = in.words % 8 / 2; pairs > 0; --pairs) {
            fetch(0);
            fetch(1);
            for (int i = 0; i < P; ++i)
                for (int n = 0; n < N; ++n) {
                    const __m512i carry = add_pair(ones[i][n], x[0][i][n], x[1][i][n]);
                    const __m512i carry2 = _mm512_and_si512(twos[i][n], carry);
                    twos[i][n] = _mm512_xor_si512(twos[i][n], carry);
                    fours[i][n] = _mm512_or_si512(fours[i][n], carry2);
                }
        }
        while (at != end) {
            __m512i twos_a[P][N], fours_a[P][N];
            const auto pair_to_twos = [&](bool first, bool first_four) __attribute__((always_inline)) {
                fetch(0);
                fetch(1);
                for (int i = 0; i < P; ++i)
                    for (int n = 0; n < N; ++n) {
                        const __m512i carry = add_pair(ones[i][n], x[0][i][n], x[1][i][n]);
                        if (first) {
                            twos_a[i][n] = carry;
                            continue;
                        }
                        const __m512i four = add_pair(twos[i][n], twos_a[i][n], carry);
                        if (first_four) {
                            fours_a[i][n] = four;
                            continue;
                        }
                        const __m512i eight = add_pair(fours[i][n], fours_a[i][n], four);
                        eights[i][n] = _mm512_add_epi8(eights[i][n], count_bytes(eight, table, low));
                    }
            };
            pair_to_twos(true, true);
            pair_to_twos(false, true);
            pair_to_twos(true, false);
            pair_to_twos(false, false);
        }
        for (int i = 0; i < P; ++i)
            for (int n = 0; n < N; ++n)
                _mm512_store_si512(pop[i] + c + n * V::kLanes, total(ones[i][n], twos[i][n], fours[i][n], eights[i][n]));
    }
};

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

bool supported_vnni() { return supported() && __builtin_cpu_supports("avx512vnni"); }

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {"avx512", supported, BinaryWeights::words, binary_conv_blocks<CarrySaveTile, 2, 2>, real_conv, pool,
                          elementwise, int8_conv_widened, int8_conv_pooled_widened, depthwise};

extern const Kernels kVnniKernels;
const Kernels kVnniKernels = {"avx512vnni", supported_vnni, BinaryWeights::words, binary_conv_blocks<CarrySaveTile, 2, 2>,
                              real_conv, pool, elementwise, int8_conv_blocks<VnniTile>, int8_conv_pooled_blocks<VnniTile>, depthwise};

}  // namespace leanconv::avx512
