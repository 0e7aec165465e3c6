// Which instruction sets were built, and which one runs: built *and* reported by the processor, best first;
// LEANCONV_ISA forces one.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace leanconv {

namespace portable {
extern const Kernels kKernels;
}
#if LEANCONV_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels, kVnniKernels;
}
namespace avx512vpopcntdq {
extern const Kernels kKernels;
}
#endif

const Kernels* const kBuiltKernels[] = {
#if LEANCONV_X86
    &avx512vpopcntdq::kKernels,
    &avx512::kVnniKernels,
    &avx512::kKernels,
    &avx2::kKernels,
#endif
    &portable::kKernels,
};
const int kBuiltKernelCount = sizeof(kBuiltKernels) / sizeof(kBuiltKernels[0]);

const Kernels& select_kernels() {
    const char* forced = std::getenv("LEANCONV_ISA");
    const bool choose = forced && *forced;
    std::string choices;
    for (const Kernels* kernels : kBuiltKernels) {
        if (!kernels->supported()) continue;
        if (!choose || std::string(forced) == kernels->name) return *kernels;
        choices += std::string(choices.empty() ? "" : ", ") + kernels->name;
    }
    throw std::runtime_error("LEANCONV_ISA=" + std::string(forced) +
                             " is not an instruction set that was built and that this processor has; choose from: " + choices);
}

}  // namespace leanconv
