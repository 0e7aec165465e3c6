// Peaks of AVX2: ones counted by tables and by carry-save adders, fp32 FMA, int8 by pairs.
#include "peak.h"

namespace leanconv {

namespace {

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// Sums in registers 0 to 7; 8: a word, 9: weights (or scratch), 10: bytes of 0x0f, 11: the table; 12 to 15: scratch.
#define LC_WORDS                         \
    "vpbroadcastd (%1), %%ymm8\n"        \
    "vmovdqu (%1), %%ymm9\n"           \
    "vmovdqu 128(%1), %%ymm10\n"       \
    "vmovdqu 64(%1), %%ymm11\n"

// SUM (bytes) += ones of X.
#define LC_NIBBLES(SUM, X)                             \
    "vpsrld $4, %%ymm" X ", %%ymm13\n"                \
    "vpand %%ymm10, %%ymm" X ", %%ymm12\n"         \
    "vpand %%ymm10, %%ymm13, %%ymm13\n"            \
    "vpshufb %%ymm12, %%ymm11, %%ymm12\n"           \
    "vpshufb %%ymm13, %%ymm11, %%ymm13\n"           \
    "vpaddb %%ymm12, %%ymm13, %%ymm12\n"            \
    "vpaddb %%ymm12, %%ymm" SUM ", %%ymm" SUM "\n"

// Byte sums; that they must be widened once in 31 words is left out.
#define LC_COUNT(SUM) "vpxor %%ymm8, %%ymm9, %%ymm14\n" LC_NIBBLES(SUM, "14")

void nibbles(int64_t rounds) { LC_AVX_LOOP(LC_8(LC_ZERO) LC_WORDS, LC_8(LC_COUNT)); }

// SUM += A + B; the carry goes to A.
#define LC_ADD(SUM, A, B)                                \
    "vpxor %%ymm" A ", %%ymm" B ", %%ymm14\n"             \
    "vpand %%ymm" A ", %%ymm" B ", %%ymm" A "\n"          \
    "vpand %%ymm14, %%ymm" SUM ", %%ymm15\n"              \
    "vpxor %%ymm14, %%ymm" SUM ", %%ymm" SUM "\n"         \
    "vpor %%ymm15, %%ymm" A ", %%ymm" A "\n"

// ONES += two words; the carry goes to CARRY.
#define LC_PAIR(ONES, CARRY)                    \
    "vpxor (%1), %%ymm8, %%ymm" CARRY "\n"      \
    "vpxor 192(%1), %%ymm8, %%ymm15\n"          \
    LC_ADD(ONES, CARRY, "15")

// Harley-Seal: eight words through seven adders, then one count of the eights.
#define LC_EIGHT(ONES, TWOS, FOURS, SUM)                               \
    LC_PAIR(ONES, "12") LC_PAIR(ONES, "13") LC_ADD(TWOS, "12", "13")   \
    LC_PAIR(ONES, "13") LC_PAIR(ONES, "9") LC_ADD(TWOS, "13", "9") LC_ADD(FOURS, "12", "13") LC_NIBBLES(SUM, "12")

// Two such chains: one alone waits for its own sums.
void harley_seal(int64_t rounds) {
    LC_AVX_LOOP(LC_8(LC_ZERO) LC_WORDS, LC_EIGHT("0", "1", "2", "3") LC_EIGHT("4", "5", "6", "7"));
}

// Weights of 4 bits for each of 32 channels, looked up in the table of an input's 4 bits (what avx2.cpp does). Loading the
// tables and widening the bytes are left out.
#define LC_LOOKUP(SUM)                         \
    "vpshufb %%ymm10, %%ymm11, %%ymm14\n"     \
    "vpaddb %%ymm14, %%ymm" SUM ", %%ymm" SUM "\n"

void lookup(int64_t rounds) { LC_AVX_LOOP(LC_8(LC_ZERO) LC_WORDS, LC_8(LC_LOOKUP)); }

#define LC_FMA(SUM) "vfmadd231ps %%ymm12, %%ymm12, %%ymm" SUM "\n"

void fma(int64_t rounds) { LC_AVX_LOOP(LC_12(LC_ZERO) "vmovdqu 320(%1), %%ymm12\n", LC_12(LC_FMA)); }

// vpmaddubsw, vpmaddwd, add: exact only while no pair leaves 16 bits.
#define LC_PAIRS(SUM)                       \
    "vpmaddubsw %%ymm12, %%ymm12, %%ymm14\n" \
    "vpmaddwd %%ymm13, %%ymm14, %%ymm14\n"   \
    "vpaddd %%ymm14, %%ymm" SUM ", %%ymm" SUM "\n"

void pairs(int64_t rounds) {
    LC_AVX_LOOP(LC_8(LC_ZERO) "vmovdqu 192(%1), %%ymm12\nvmovdqu 256(%1), %%ymm13\n", LC_8(LC_PAIRS));
}

#define LC_READ(N) "vmovdqa 32*" N "(%0), %%ymm" N "\n"

void read(const void* buffer, size_t bytes) {
    asm volatile("1:\n" LC_8(LC_READ) "add $256, %0\nsub $256, %1\njnz 1b\nvzeroupper\n"
                 : "+r"(buffer), "+r"(bytes) : : "cc", "memory", LC_VECTORS);
}

const PeakLoop kLoops[] = {
    {"table of an input nibble (vpshufb), 256 bits", "avx2", "binary", supported, 8 * 128, lookup},
    {"nibble table (vpshufb), 256 bits", "avx2", "binary", supported, 8 * 256, nibbles},
    {"Harley-Seal, 256 bits", "avx2", "binary", supported, 16 * 256, harley_seal},
    {"vpmaddubsw, vpmaddwd, add, 256 bits", "avx2", "int8", supported, 8 * 32, pairs},
    {"FMA, 256 bits", "avx2", "fp32", supported, 12 * 8, fma},
};

}  // namespace

extern const PeakFile kPeaksAvx2;
const PeakFile kPeaksAvx2 = {kLoops, sizeof(kLoops) / sizeof(kLoops[0]), {supported, read}};

}  // namespace leanconv
