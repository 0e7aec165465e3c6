// A program of docs/format.md, typed and fully checked: whatever is built from it may trust every number in it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/file.h"
#include "kernels/kernels.h"

namespace leanconv {

enum class OpKind : uint8_t {
    binary_conv, binary_conv_transpose, conv, linear, max_pool, avg_pool, global_avg_pool, elementwise, concat, flatten,
    gated_conv, windowed_conv, adaptive_avg_pool, int8_conv
};

// Along which axes of its weights the gains of a gated convolution differ, besides its taps.
enum class GainKind : uint8_t { output, input, tap, weight };

const char* op_kind_name(OpKind kind);
const char* step_kind_name(StepKind kind);

struct Value {
    bool bits = false;
    int channels = 0;
    bool bytes = false;
    bool bf16 = false;               // a real map stored in 16 bits
    std::vector<uint8_t> zero = {};  // bytes: the one that stands for 0, of all channels or of each

    int64_t real_bytes() const { return bf16 ? 2 : 4; }
    uint8_t zero_of(int channel) const { return zero[zero.size() == 1 ? 0 : static_cast<size_t>(channel)]; }
};

struct StepSpec {
    StepKind kind = StepKind::affine;
    int value = -1;                     // add, mul: read; store, sign, quantize: written
    const Tensor* scale = nullptr;      // affine, sign; prelu: the slope
    const Tensor* bias = nullptr;
    float min = 0, max = 0;
    float factor = 1;                   // quantize
};

// Whether a step of this kind writes its value.
constexpr bool writes(StepKind kind) {
    return kind == StepKind::store || kind == StepKind::sign || kind == StepKind::quantize;
}

struct Op {
    OpKind kind = OpKind::elementwise;
    std::string name;
    std::vector<int> inputs;
    int output = -1;  // concat, flatten
    std::vector<StepSpec> steps;
    const Tensor* weight = nullptr;
    int channels = 0;  // of the result
    int in_channels = 0;
    int groups = 1;
    int group_in = 0;     // input channels that a group reads, and from one group's first to the next one's
    int group_shift = 0;  // (windowed_conv: cyclic)
    GainKind gain = GainKind::output;
    int kernel[2] = {1, 1}, stride[2] = {1, 1}, dilation[2] = {1, 1};
    int padding[4] = {0, 0, 0, 0};  // top, left, bottom, right
    int output_padding[2] = {0, 0};
    int pad_value = 0;
    bool ceil_mode = false, count_include_pad = false;
    int height = 1, width = 1;  // flatten, adaptive_avg_pool

    // Whether it reads real maps of bf16 as they are.
    bool reads_bf16() const {
        return kind == OpKind::elementwise || kind == OpKind::max_pool || kind == OpKind::avg_pool || kind == OpKind::global_avg_pool;
    }
    bool real_conv() const { return kind == OpKind::conv || kind == OpKind::gated_conv || kind == OpKind::windowed_conv; }
    // How many channels the last windows reach beyond the input's last one, where they go on with the first.
    int wrapped_channels() const {
        int most = 0;
        for (int g = 0; kind == OpKind::windowed_conv && g < groups; ++g) {
            const int beyond = static_cast<int>(int64_t{g} * group_shift % in_channels) + group_in - in_channels;
            most = beyond > most ? beyond : most;
        }
        return most;
    }
};

struct Port {
    std::string name;
    int value = 0;
    int channels = 0;
    int height = 0, width = 0;  // 0 = free; inputs only
    int dims = 4;
};

struct Program {
    Container file;  // owns the tensors
    std::vector<Port> inputs, outputs;
    std::vector<Value> values;
    std::vector<Op> ops;
    std::vector<float> mean, std;  // of the preprocessing; empty when there is none
};

// Throws Error (one line; without the file's name).
Program parse_program(Container file);

}  // namespace leanconv
