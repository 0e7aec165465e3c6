// Peaks of what every processor of a family has; the clock; the list of all files.
#include <bit>

#include "peak.h"

namespace leanconv {

namespace {

bool always() { return true; }

// A chain of additions of constants would be folded by some processors before it runs: a register is added.
#if defined(__x86_64__)
#define LC_ADD8 "add %1, %1\nadd %1, %1\nadd %1, %1\nadd %1, %1\nadd %1, %1\nadd %1, %1\nadd %1, %1\nadd %1, %1\n"
#define LC_NEXT "sub $1, %0\njnz 1b\n"
#elif defined(__aarch64__)
#define LC_ADD8                                                                                                 \
    "add %1, %1, %1\nadd %1, %1, %1\nadd %1, %1, %1\nadd %1, %1, %1\nadd %1, %1, %1\nadd %1, %1, %1\n"            \
    "add %1, %1, %1\nadd %1, %1, %1\n"
#define LC_NEXT "subs %0, %0, #1\nb.ne 1b\n"
#endif

#if defined(__x86_64__) || defined(__aarch64__)
void clock(int64_t rounds) {
    uint64_t x = 1;
    asm volatile("1:\n" LC_ADD8 LC_ADD8 LC_ADD8 LC_ADD8 LC_ADD8 LC_ADD8 LC_ADD8 LC_ADD8 LC_NEXT
                 : "+r"(rounds), "+r"(x) : : "cc");
}
#endif

#if defined(__x86_64__)
bool has_popcnt() { return __builtin_cpu_supports("popcnt"); }

#define LC_COUNT(SUM) "mov %1, %%rax\nxor %%rcx, %%rax\npopcnt %%rax, %%rax\nadd %%rax, %%" SUM "\n"

void popcnt64(int64_t rounds) {
    LC_LOOP("mov (%1), %%rcx\n", LC_COUNT("r8") LC_COUNT("r9") LC_COUNT("r10") LC_COUNT("r11"), "", "rax", "rcx", "r8", "r9",
            "r10", "r11");
}

// Without FMA: what any processor of this family can do.
#define LC_FMA(SUM) "movaps %%xmm14, %%xmm15\nmulps %%xmm14, %%xmm15\naddps %%xmm15, %%xmm" SUM "\n"
#define LC_CLEAR(N) "xorps %%xmm" N ", %%xmm" N "\n"

void fma128(int64_t rounds) { LC_LOOP(LC_12(LC_CLEAR) "movups 320(%1), %%xmm14\n", LC_12(LC_FMA), "", LC_VECTORS); }
#elif defined(__aarch64__)
#define LC_FMA(N) "fmla v" N ".4s, v16.4s, v16.4s\n"
#define LC_CLEAR(N) "movi v" N ".4s, #0\n"

void fma128(int64_t rounds) {
    asm volatile(LC_12(LC_CLEAR) "fmov v16.4s, #1.0\n1:\n" LC_12(LC_FMA) LC_NEXT : "+r"(rounds) : : "cc", "v0", "v1", "v2", "v3", "v4",
                 "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v16");
}
#endif

inline void hide(uint64_t& x) { asm volatile("" : "+r"(x)); }  // the compiler knows nothing of x from here on

// As the portable kernels count where the compiler may use no such instruction.
void popcount64(int64_t rounds) {
    uint64_t a = 0x0123456789abcdef, b = 0x76543210fedcba98, c = 3, d = 5;
    uint64_t sum[4] = {};
    for (int64_t r = 0; r < rounds; ++r) {
        hide(a);
        hide(b);
        sum[0] += static_cast<uint64_t>(std::popcount(a ^ c));
        sum[1] += static_cast<uint64_t>(std::popcount(a ^ d));
        sum[2] += static_cast<uint64_t>(std::popcount(b ^ c));
        sum[3] += static_cast<uint64_t>(std::popcount(b ^ d));
    }
    for (uint64_t& s : sum) hide(s);
}

void read64(const void* buffer, size_t bytes) {
    const uint64_t* p = static_cast<const uint64_t*>(buffer);
    for (const uint64_t* end = p + bytes / 8; p < end; p += 8)
        for (int i = 0; i < 8; ++i) {
            uint64_t x = p[i];
            hide(x);
        }
}

const PeakLoop kLoops[] = {
#if defined(__x86_64__)
    {"scalar popcnt, 64 bits", "avx2", "binary", has_popcnt, 4 * 64, popcnt64},
    {"mulps, addps, 128 bits", "portable", "fp32", always, 12 * 4, fma128},
#elif defined(__aarch64__)
    {"fmla, 128 bits", "portable", "fp32", always, 12 * 4, fma128},
#endif
    {"popcount in plain C++, 64 bits", "portable", "binary", always, 4 * 64, popcount64},
};

}  // namespace

extern const PeakFile kPeaksPortable;
const PeakFile kPeaksPortable = {kLoops, sizeof(kLoops) / sizeof(kLoops[0]), {always, read64}};

#if LEANCONV_X86
extern const PeakFile kPeaksVpopcntdq, kPeaksVnni, kPeaksBf16, kPeaksAvx512, kPeaksAvxVnni, kPeaksAvx2;
#endif

const PeakFile* const kPeakFiles[] = {
#if LEANCONV_X86
    &kPeaksVpopcntdq, &kPeaksVnni, &kPeaksBf16, &kPeaksAvx512, &kPeaksAvxVnni, &kPeaksAvx2,
#endif
    &kPeaksPortable,
};
const int kPeakFileCount = sizeof(kPeakFiles) / sizeof(kPeakFiles[0]);

#if defined(__x86_64__) || defined(__aarch64__)
void (*const kClockLoop)(int64_t) = clock;
#else
void (*const kClockLoop)(int64_t) = nullptr;
#endif

}  // namespace leanconv
