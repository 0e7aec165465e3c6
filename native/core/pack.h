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
    std::vector<StepTensors> steps;
};

inline int padded_channels(int channels) { return block_count(channels) * kBlock; }

PackedOp pack(const Op& op, BinaryWeights binary_weights);

}  // namespace leanconv
