// Height and width of every value, given those of the inputs: the same rules as leanconv.program.infer_sizes.
#pragma once

#include <vector>

#include "core/program.h"

namespace leanconv {

struct Size {
    int height = 0, width = 0;

    bool operator==(const Size&) const = default;
    int64_t pixels() const { return int64_t{height} * width; }
};

// `inputs` in the order of the program's inputs. Throws Error when a map becomes empty, too large, or does not fit.
std::vector<Size> infer_sizes(const Program& program, const std::vector<Size>& inputs);

}  // namespace leanconv
