// Peaks of AVX-512 without VPOPCNTDQ: ones counted by nibble tables and by carry-save adders, fp32 FMA, int8 by pairs.
#include "peak.h"

namespace leanconv {

namespace {

bool supported() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }

// Sums in registers 0 to 7; 8: a word, 9: weights, 10: bytes of 0x0f, 11: the table; 12 to 15: scratch.
#define LC_WORDS                         \
    "vpbroadcastd (%1), %%zmm8\n"        \
    "vmovdqu32 (%1), %%zmm9\n"           \
    "vmovdqu32 128(%1), %%zmm10\n"       \
    "vmovdqu32 64(%1), %%zmm11\n"

// SUM (bytes) += ones of X.
#define LC_NIBBLES(SUM, X)                             \
    "vpsrld $4, %%zmm" X ", %%zmm13\n"                \
    "vpandd %%zmm10, %%zmm" X ", %%zmm12\n"         \
    "vpandd %%zmm10, %%zmm13, %%zmm13\n"            \
    "vpshufb %%zmm12, %%zmm11, %%zmm12\n"           \
    "vpshufb %%zmm13, %%zmm11, %%zmm13\n"           \
    "vpaddb %%zmm12, %%zmm13, %%zmm12\n"            \
    "vpaddb %%zmm12, %%zmm" SUM ", %%zmm" SUM "\n"

// Byte sums; that they must be widened once in 31 words is left out.
#define LC_COUNT(SUM) "vpxord %%zmm8, %%zmm9, %%zmm14\n" LC_NIBBLES(SUM, "14")

void nibbles(int64_t rounds) { LC_AVX_LOOP(LC_8(LC_ZERO) LC_WORDS, LC_8(LC_COUNT)); }

// SUM += A + B; the carry, taken from the new sum, goes to A: where A and B differ it is what the sum is not.
#define LC_ADD(SUM, A, B)                                   \
    "vpternlogd $0x96, %%zmm" B ", %%zmm" A ", %%zmm" SUM "\n" \
    "vpternlogd $0xd4, %%zmm" SUM ", %%zmm" B ", %%zmm" A "\n"

// ONES += two words; the carry goes to CARRY.
#define LC_PAIR(ONES, CARRY)                        \
    "vpxord %%zmm8, %%zmm9, %%zmm" CARRY "\n"       \
    "vpxord %%zmm8, %%zmm11, %%zmm7\n"              \
    LC_ADD(ONES, CARRY, "7")

// Harley-Seal: eight words through seven adders, then one count of the eights.
#define LC_EIGHT(ONES, TWOS, FOURS, SUM)                                                    \
    LC_PAIR(ONES, "4") LC_PAIR(ONES, "5") LC_ADD(TWOS, "4", "5")                            \
    LC_PAIR(ONES, "5") LC_PAIR(ONES, "6") LC_ADD(TWOS, "5", "6") LC_ADD(FOURS, "4", "5") LC_NIBBLES(SUM, "4")

#define LC_COPY(FROM, TO) "vmovdqa64 %%zmm" FROM ", %%zmm" TO "\n"

// Two such chains: one alone waits for its own sums.
void harley_seal(int64_t rounds) {
    LC_LOOP(LC_4(LC_ZERO) LC_WORDS LC_COPY("0", "16") LC_COPY("1", "17") LC_COPY("2", "18") LC_COPY("3", "19"),
            LC_EIGHT("0", "1", "2", "3") LC_EIGHT("16", "17", "18", "19"), "vzeroupper\n", LC_VECTORS, "xmm16", "xmm17", "xmm18",
            "xmm19");
}

#define LC_FMA(SUM) "vfmadd231ps %%zmm12, %%zmm12, %%zmm" SUM "\n"

void fma(int64_t rounds) { LC_AVX_LOOP(LC_12(LC_ZERO) "vmovdqu32 320(%1), %%zmm12\n", LC_12(LC_FMA)); }

// vpmaddubsw, vpmaddwd, add: exact only while no pair leaves 16 bits.
#define LC_PAIRS(SUM)                       \
    "vpmaddubsw %%zmm12, %%zmm12, %%zmm14\n" \
    "vpmaddwd %%zmm13, %%zmm14, %%zmm14\n"   \
    "vpaddd %%zmm14, %%zmm" SUM ", %%zmm" SUM "\n"

void pairs(int64_t rounds) {
    LC_AVX_LOOP(LC_8(LC_ZERO) "vmovdqu32 192(%1), %%zmm12\nvmovdqu32 256(%1), %%zmm13\n", LC_8(LC_PAIRS));
}

#define LC_READ(N) "vmovdqa64 64*" N "(%0), %%zmm" N "\n"

void read(const void* buffer, size_t bytes) {
    asm volatile("1:\n" LC_8(LC_READ) "add $512, %0\nsub $512, %1\njnz 1b\nvzeroupper\n"
                 : "+r"(buffer), "+r"(bytes) : : "cc", "memory", LC_VECTORS);
}

const PeakLoop kLoops[] = {
    {"nibble table (vpshufb), 512 bits", "avx512", "binary", supported, 8 * 512, nibbles},
    {"Harley-Seal with vpternlogd, 512 bits", "avx512", "binary", supported, 16 * 512, harley_seal},
    {"vpmaddubsw, vpmaddwd, add, 512 bits", "avx512", "int8", supported, 8 * 64, pairs},
    {"FMA, 512 bits", "avx512", "fp32", supported, 12 * 16, fma},
};

}  // namespace

extern const PeakFile kPeaksAvx512;
const PeakFile kPeaksAvx512 = {kLoops, sizeof(kLoops) / sizeof(kLoops[0]), {supported, read}};

}  // namespace leanconv
