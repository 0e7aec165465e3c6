// Weights and per-channel tensors in the layouts of kernels.h, made once when a file is loaded.
#pragma once

#include <vector>

#include "core/aligned.h"
#include "core/program.h"

namespace leanconv {

// A kernel tap along one axis: its index, and its offset in input pixels from the job's first tap.
struct Tap {
    int k, offset;
};

// An ordinary convolution over some of the taps. A binary_conv is one phase. A transposed convolution has one for each
// remainder of (output + padding) modulo the stride: within it, every output pixel sees the same taps.
struct Phase {
    int remainder[2] = {0, 0};
    std::vector<Tap> rows, columns;
    int words = 0;                             // reduction length in words
    std::vector<Aligned<uint32_t>> weights;    // of each group
    std::vector<Aligned<int32_t>> tap_sums;    // of each group: [taps][padded out]: sum of a tap's +-1 weights; empty if unused
};

struct StepTensors {
    Aligned<float> scale, bias;  // padded to whole blocks; empty = null
};

struct PackedOp {
    int group_words = 0;               // of a pixel's bits that belong to one group
    bool regroup = false;              // groups do not start at words: the bits are moved first
    bool depthwise = false;            // conv with one input and one output channel a group
    std::vector<Phase> phases;         // binary_conv, binary_conv_transpose
    std::vector<Aligned<float>> real;  // conv, linear: of each group. Depthwise: one array [taps][channels]
    Aligned<int8_t> int8;              // int8_conv: as Int8ConvArgs reads them
    Aligned<int32_t> int8_base;        // of each output channel: minus the sum of weight times zero point
    std::vector<StepTensors> steps;
};

// Groups of four bytes of one run of an int8_conv: the taps of a kernel row, or each tap where they are dilated.
inline int int8_row_runs(const Op& op) { return op.dilation[1] == 1 ? 1 : op.kernel[1]; }
inline int int8_run_bytes(const Op& op) { return op.kernel[1] / int8_row_runs(op) * op.in_channels; }
inline int int8_run_groups(const Op& op) { return (int8_run_bytes(op) + 3) / 4; }

inline int padded_channels(int channels) { return block_count(channels) * kBlock; }

PackedOp pack(const Program& program, const Op& op, BinaryWeights binary_weights);

}  // namespace leanconv
