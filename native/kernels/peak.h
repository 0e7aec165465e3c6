// What one core can do at most: loops over registers that nothing but the instructions under test can slow down.
// core/peaks.h times them. The loops are assembly, so that no compiler removes, reorders or spills anything; each has
// enough independent chains (registers of sums) to hide the latency of its instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace leanconv {

struct PeakLoop {
    const char* name;
    const char* isa;   // the plainest instruction set of the engine (kernels.h) that may use these instructions
    const char* kind;  // binary, int8, bf16 or fp32: what is multiplied
    bool (*supported)();
    int macs;          // a round
    void (*run)(int64_t rounds);  // at least 1
};

struct ReadLoop {
    bool (*supported)();
    void (*run)(const void* buffer, size_t bytes);  // reads it all once; a multiple of 1024 bytes, aligned to 64
};

struct PeakFile {
    const PeakLoop* loops;
    int count;
    ReadLoop read;  // run may be null
};

// Built files, the widest registers first.
extern const PeakFile* const kPeakFiles[];
extern const int kPeakFileCount;

// Additions each of which waits for the one before: `rounds` * kClockCycles cycles. Null where it isn't written.
extern void (*const kClockLoop)(int64_t rounds);
inline constexpr int kClockCycles = 64;

// What the loops work on, rows of 64 bytes: words, the ones of a nibble (twice in each half), bytes of 0x0f, of 1, 16-bit
// ones, floats of 1, pairs of bf16 ones.
#define LC_ROW(A, B, C, D) A, B, C, D, A, B, C, D, A, B, C, D, A, B, C, D
alignas(64) inline constexpr uint32_t kPeakData[] = {
    LC_ROW(0x01234567, 0x89abcdef, 0x76543210, 0xfedcba98),
    LC_ROW(0x02010100, 0x03020201, 0x03020201, 0x04030302),
    LC_ROW(0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f),
    LC_ROW(0x01010101, 0x01010101, 0x01010101, 0x01010101),
    LC_ROW(0x00010001, 0x00010001, 0x00010001, 0x00010001),
    LC_ROW(0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000),
    LC_ROW(0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80),
};
#undef LC_ROW

}  // namespace leanconv

// START once, then ROUND `rounds` times, then END; %1 is kPeakData. What follows are the registers that they change.
#define LC_LOOP(START, ROUND, END, ...)                                    \
    asm volatile(START ".p2align 6\n1:\n" ROUND "sub $1, %0\njnz 1b\n" END \
                 : "+r"(rounds) : "r"(kPeakData) : "cc", "memory", __VA_ARGS__)
#define LC_AVX_LOOP(START, ROUND) LC_LOOP(START, ROUND, "vzeroupper\n", LC_VECTORS)
#define LC_VECTORS                                                                                                       \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
        "xmm14", "xmm15"

// M for each of 4, 8, 12 registers of sums.
#define LC_4(M) M("0") M("1") M("2") M("3")
#define LC_8(M) LC_4(M) M("4") M("5") M("6") M("7")
#define LC_12(M) LC_8(M) M("8") M("9") M("10") M("11")
#define LC_ZERO(N) "vpxor %%xmm" N ", %%xmm" N ", %%xmm" N "\n"  // the wider register too
