// A plan bound to memory of its own: everything that one run of one picture needs.
#pragma once

#include <memory>
#include <vector>

#include "core/plan.h"
#include "core/threads.h"

namespace leanconv {

// One picture in the caller's memory.
struct Picture {
    const void* data;
    const float* table;  // uint8: [channels][256] values of a byte; null: float, channel-major
};

class Context {
public:
    // Throws Error when the machine has less memory than the plan needs.
    Context(std::shared_ptr<const Plan> plan, const Kernels& kernels);

    void load(int input, const Picture& picture) const;
    void run(size_t stage, const Team* team) const;
    void store(int output, float* to) const;  // channel-major

    const Plan& plan() const { return *plan_; }
    const std::vector<Stage>& stages() const { return stages_; }

private:
    template <class T>
    void bind(T*& p) const;
    void unit(const Stage& stage, const Unit& u, int slot) const;
    void pooled(const Stage& stage, int begin, int end, int slot) const;
    void pooled_sums(const Stage& stage, const Unit& u, int slot) const;
    void pooled_input(const Stage& stage, int begin, int end, int slot) const;

    std::shared_ptr<const Plan> plan_;
    const Kernels& kernels_;
    Aligned<char> arena_;
    std::vector<Stage> stages_;
    std::vector<CopyArgs> inputs_, outputs_;
};

}  // namespace leanconv
