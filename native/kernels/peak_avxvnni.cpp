// Peak of int8 dot products with AVX-VNNI, the 256-bit form of processors without AVX-512.
#include <cpuid.h>

#include "peak.h"

namespace leanconv {

namespace {

bool supported() {  // compilers do not all know this feature by name
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}

#define LC_DOT(SUM) "%{vex%} vpdpbusd %%ymm12, %%ymm12, %%ymm" SUM "\n"

void dot256(int64_t rounds) { LC_AVX_LOOP(LC_12(LC_ZERO) "vmovdqu 192(%1), %%ymm12\n", LC_12(LC_DOT)); }

const PeakLoop kLoops[] = {{"vpdpbusd (AVX-VNNI), 256 bits", "avx2", "int8", supported, 12 * 32, dot256}};

}  // namespace

extern const PeakFile kPeaksAvxVnni;
const PeakFile kPeaksAvxVnni = {kLoops, sizeof(kLoops) / sizeof(kLoops[0]), {nullptr, nullptr}};

}  // namespace leanconv
