// Peak of int8 dot products with AVX-512 VNNI.
#include "peak.h"

namespace leanconv {

namespace {

bool supported() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512f"); }

#define LC_DOT(SUM) "vpdpbusd %%zmm12, %%zmm12, %%zmm" SUM "\n"

void dot512(int64_t rounds) { LC_AVX_LOOP(LC_12(LC_ZERO) "vmovdqu32 192(%1), %%zmm12\n", LC_12(LC_DOT)); }

const PeakLoop kLoops[] = {{"vpdpbusd, 512 bits", "avx512vnni", "int8", supported, 12 * 64, dot512}};

}  // namespace

extern const PeakFile kPeaksVnni;
const PeakFile kPeaksVnni = {kLoops, sizeof(kLoops) / sizeof(kLoops[0]), {nullptr, nullptr}};

}  // namespace leanconv
