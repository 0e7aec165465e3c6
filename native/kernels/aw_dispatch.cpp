// Which instruction sets of AW-convolution were built, and which one runs; see dispatch.cpp.
#include <cstdlib>
#include <string>

#include "aw_kernels.h"
#include "core/error.h"

namespace leanconv::aw {

namespace portable {
extern const Kernels kKernels;
}
#if LEANCONV_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512bf16 {
extern const Kernels kKernels;
}
#endif

const Kernels* const kBuilt[] = {
#if LEANCONV_X86
    &avx512bf16::kKernels,
    &avx512::kKernels,
    &avx2::kKernels,
#endif
    &portable::kKernels,
};
const int kBuiltCount = sizeof(kBuilt) / sizeof(kBuilt[0]);

const Kernels& select(const char* isa) {
    const char* forced = isa && *isa ? isa : std::getenv("LEANCONV_ISA");
    std::string name = forced ? forced : "", choices;
    if (name == "avx512vpopcntdq") name.clear();  // the engine's best: no reason to hold back here
    for (const Kernels* kernels : kBuilt) {
        if (!kernels->supported()) continue;
        if (name.empty() || name == kernels->name) return *kernels;
        choices += std::string(choices.empty() ? "" : ", ") + kernels->name;
    }
    fail("\"", name, "\" is not an instruction set that was built and that this processor has; choose from: ", choices);
}

}  // namespace leanconv::aw
