// Peak of bf16 dot products with AVX-512 BF16.
#include "peak.h"

namespace leanconv {

namespace {

bool supported() { return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f"); }

#define LC_DOT(SUM) "vdpbf16ps %%zmm15, %%zmm15, %%zmm" SUM "\n"
#define LC_14(M) LC_12(M) M("12") M("13")

void dot512(int64_t rounds) { LC_AVX_LOOP(LC_14(LC_ZERO) "vmovdqu32 384(%1), %%zmm15\n", LC_14(LC_DOT)); }

const PeakLoop kLoops[] = {{"vdpbf16ps, 512 bits", "avx512", "bf16", supported, 14 * 32, dot512}};

}  // namespace

extern const PeakFile kPeaksBf16;
const PeakFile kPeaksBf16 = {kLoops, sizeof(kLoops) / sizeof(kLoops[0]), {nullptr, nullptr}};

}  // namespace leanconv
