// Peak of xor, vpopcntd, add: the inner loop of avx512vpopcntdq.cpp and nothing else.
#include "peak.h"

namespace leanconv {

namespace {

bool supported() {
    return __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
}

// Sums in registers 0 to 11; 12: a word, 13: weights, 14: scratch. R: zmm or ymm.
#define LC_WORDS(R) "vpbroadcastd (%1), %%" R "12\nvmovdqu32 (%1), %%" R "13\n"
#define LC_COUNT(R, SUM, XOR)              \
    "vpxord " XOR ", %%" R "13, %%" R "14\n" \
    "vpopcntd %%" R "14, %%" R "14\n"        \
    "vpaddd %%" R "14, %%" R SUM ", %%" R SUM "\n"
#define LC_COUNT_ZMM(SUM) LC_COUNT("zmm", SUM, "%%zmm12")
#define LC_COUNT_YMM(SUM) LC_COUNT("ymm", SUM, "%%ymm12")
#define LC_COUNT_MEMORY(SUM) LC_COUNT("zmm", SUM, "4*" SUM "(%1)%{1to16%}")

void popcount512(int64_t rounds) { LC_AVX_LOOP(LC_12(LC_ZERO) LC_WORDS("zmm"), LC_12(LC_COUNT_ZMM)); }

void popcount256(int64_t rounds) { LC_AVX_LOOP(LC_12(LC_ZERO) LC_WORDS("ymm"), LC_12(LC_COUNT_YMM)); }

// Every xor reads its word from memory and broadcasts it.
void popcount_broadcast(int64_t rounds) { LC_AVX_LOOP(LC_12(LC_ZERO) LC_WORDS("zmm"), LC_12(LC_COUNT_MEMORY)); }

const PeakLoop kLoops[] = {
    {"xor, vpopcntd, add, 512 bits", "avx512vpopcntdq", "binary", supported, 12 * 512, popcount512},
    {"xor, vpopcntd, add, 256 bits", "avx512vpopcntdq", "binary", supported, 12 * 256, popcount256},
    {"xor with a broadcast from memory, vpopcntd, add, 512 bits", "avx512vpopcntdq", "binary", supported, 12 * 512,
     popcount_broadcast},
};

}  // namespace

extern const PeakFile kPeaksVpopcntdq;
const PeakFile kPeaksVpopcntdq = {kLoops, sizeof(kLoops) / sizeof(kLoops[0]), {nullptr, nullptr}};

}  // namespace leanconv
