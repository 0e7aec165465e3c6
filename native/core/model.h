// A loaded network: run it from any number of threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/program.h"

namespace leanconv {

// An array in the caller's memory, contiguous. uint8: N,H,W,C pictures. float: N,C,H,W, or N,C,L, or N,C.
struct InputArray {
    const void* data = nullptr;
    bool is_uint8 = false;
    std::vector<int64_t> shape;
};

struct OpProfile {
    std::string name, kind;
    double milliseconds = 0;  // of the whole batch
    double macs_binary = 0, macs_real = 0;
};

inline constexpr double kDefaultGrainNs = 6000;

class Model {
public:
    // threads <= 0: available_cores(). isa: a name of isa_names(), or empty for the best (or LEANCONV_ISA's). grain_ns:
    // work below this estimate is not shared between threads (0: all is, which tests use). Throws Error.
    Model(std::vector<uint8_t> file, int threads, const std::string& isa, double grain_ns = kDefaultGrainNs);
    ~Model();
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const Program& program() const;
    const char* isa() const;
    int threads() const;
    size_t file_bytes() const;

    // One call: checked inputs with the plan for their size.
    class Call {
    public:
        const std::vector<std::vector<int64_t>>& output_shapes() const { return shapes_; }

    private:
        friend class Model;
        std::shared_ptr<struct PlanEntry> entry_;
        std::vector<InputArray> inputs_;
        std::vector<std::vector<int64_t>> shapes_;
        int64_t batch_ = 0;
    };

    // Throws Error: what was given, what is expected.
    Call prepare(std::vector<InputArray> inputs) const;

    // `outputs[i]` has room for output_shapes()[i]. Safe to call from many threads.
    void run(const Call& call, const std::vector<float*>& outputs) const;

    // Median milliseconds of each operator over `repeats` runs; input and output conversions are rows of their own.
    std::vector<OpProfile> profile(const Call& call, int repeats) const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// Instruction sets that were built and that this processor has, best first.
std::vector<std::string> isa_names();

}  // namespace leanconv
