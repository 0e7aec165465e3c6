// Convolutions whose weights are scaled for each sample (AW-convolution), for training: one table of functions an
// instruction set, on raw pointers.
//
// Maps are NHWC in memory, float or bfloat16. Before it is used, a part of a sample is copied into a framed map: planes of
// 64 bytes a pixel, 16 words each, where a word is one float or a pair of bfloat16 (two channels next to each other, or
// two columns of one channel); zeros stand where the kernel looks beyond the picture. A convolution with column stride s
// has its columns sorted by remainder modulo s, so that neighbours in the result always read neighbours.
#pragma once

#include <cstddef>
#include <cstdint>

namespace leanconv::aw {

constexpr int kWords = 16;       // of a pixel in a plane
constexpr int kPixel = 64;       // bytes of them
constexpr int kVectors = 2;      // most vectors of lanes in a block

enum class Words : uint8_t { floats, channel_pairs, column_pairs };

// A NHWC map and its frame. `per_group` channels in each of `groups`; a group has `blocks` planes.
struct Map {
    const void* data;
    bool bf16;
    int height, width, groups, per_group;
    Words words;
    int blocks;             // planes a group
    int top, rows, slots;   // framed: row r holds source row r - top; `slots` pixels a row
    const int32_t* column;  // [slots] source column, -1 beyond the picture
    const int32_t* partner; // [slots] column of the second half (column_pairs), else null

    int64_t row_bytes() const { return int64_t{slots} * kPixel; }
    int64_t plane_bytes() const { return rows * row_bytes(); }
    int64_t sample_bytes() const { return groups * blocks * plane_bytes(); }
    int64_t channels() const { return int64_t{groups} * per_group; }
};

struct Tap {
    int32_t weight;  // which tap of the kernel
    int32_t offset;  // bytes in the framed plane from a result's own place
};

// Results (row0 + u * row_step, col0 + v * col_step) for u < rows, v < cols, each the sum over `taps`.
struct Phase {
    int row0, col0, row_step, col_step, rows, cols, source_step;  // source_step: framed rows from u to u + 1
    const Tap* taps;
    int tap_count;
};

// Factors of the weights: number (sample, group, lane, term, tap) is at data[sample * .sample + ...]; 0 is "the same".
struct Gain {
    const float* data;
    int64_t sample, group, lane, term, tap;
};

// Packed weights and their gradients: [group][block of lanes][plane][tap][word][lane][half]: the words of a plane are
// `words` (fewer than 16 where one plane holds all terms), halves are 2 for channel pairs.
struct Packing {
    int groups, lanes, terms, taps, width, halves;  // width: lanes of one vector
    bool depthwise;                                 // [block of 16 channels][tap][16]

    int blocks() const { return (lanes + kVectors * width - 1) / (kVectors * width); }
    int planes() const { return (terms + kWords * halves - 1) / (kWords * halves); }
    int words() const { return planes() > 1 ? kWords : (terms + halves - 1) / halves; }
    int vectors(int block) const {
        const int rest = lanes - block * kVectors * width;
        return rest >= kVectors * width ? kVectors : (rest + width - 1) / width;
    }
    int64_t run(int block) const { return int64_t{words()} * vectors(block) * width * halves; }  // floats of a tap
    int64_t plane_floats(int block) const { return taps * run(block); }
    int64_t block_floats(int block) const { return planes() * plane_floats(block); }
    int64_t group_floats() const { return (blocks() - 1) * block_floats(0) + block_floats(blocks() - 1); }
    int64_t at(int group, int block) const { return group * group_floats() + block * block_floats(0); }
    int64_t floats() const {
        return depthwise ? int64_t{(lanes + kWords - 1) / kWords} * taps * kWords : groups * group_floats();
    }
};

// A weight [O, I, h, w]: strides in elements. `transposed`: the lanes are the inputs of a group, the terms its outputs.
struct Filters {
    float* data;
    int64_t strides[4];
    int kernel_width;
    bool transposed;

    int64_t lane() const { return strides[transposed ? 1 : 0]; }
    int64_t term() const { return strides[transposed ? 0 : 1]; }
    int64_t tap(int t) const { return t / kernel_width * strides[2] + t % kernel_width * strides[3]; }
};

// result[n][pixel][lane] = sum over taps and terms of source[n][pixel + tap][term] * weight * gain[n]. Lanes are the
// channels of the result, terms those of the source. Depthwise: a lane's only term is its own channel.
struct Correlation {
    Map source;
    void* out;
    bool out_bf16;
    int out_height, out_width, lanes;  // lanes of a group
    const Phase* phases;
    int phase_count;
    int taps;             // of the kernel
    const float* weights; // packed, see `Packing`; null: part by part from `filters`, which pays if each is used once
    Filters filters;
    Gain gain;
    bool depthwise;
};

// dK[n][tap][term][lane] = sum over pixels of source[n][pixel + tap][term] * result[n][pixel][lane];
// weight_grad += dK * gain, gain_grad += the sum of dK * weight over what shares a factor.
struct WeightGradient {
    Map source;
    const void* result;   // the gradient of the result, NHWC
    bool result_bf16;
    int out_height, out_width, lanes;
    Phase phase;
    int taps;
    const float* weights; // packed; null: from `filters`, and the gradient goes to `grads` (one call for all samples)
    Filters filters, grads;
    Gain gain;
    bool depthwise;
};

enum class Gate : uint8_t { none, sigmoid, tanh };

// Batch normalisation with fixed statistics; null weight and bias are 1 and 0, null mean none at all.
struct Norm {
    const float *mean, *variance, *weight, *bias;
    double eps;
};

// maps[n] = gate(norm2(second * relu(norm1(first * average(x[n]))))) + offset, the averages over pooled_rows x pooled_cols
// bins as in PyTorch's adaptive pooling. x: NHWC float; first [hidden][channels], second [maps][hidden].
struct Attention {
    const float* x;
    int height, width, channels, pooled_rows, pooled_cols, hidden, maps;
    const float *first, *second;
    Norm norm1, norm2;
    Gate gate;
    float offset;
    float* out;  // [n][maps][pooled_rows][pooled_cols]

    int positions() const { return pooled_rows * pooled_cols; }
};

// Samples [sample0, sample1) and blocks [block0, block1) of all groups' blocks (depthwise: planes).
struct Part {
    int sample0, sample1, block0, block1;
};

struct Kernels {
    const char* name;
    bool (*supported)();
    int width;            // floats of a vector
    bool dots;            // sums of products of bfloat16 pairs in one instruction
    // Weights of planes [plane0, plane1) of one block (depthwise: one plane of channels), to `to` and on.
    void (*pack)(const Packing&, const Filters&, int group, int block, int plane0, int plane1, float* to);
    void (*unpack)(const Packing&, const Filters&, int group, int block, int plane0, int plane1, const float* from);
    int (*correlate_samples)(const Correlation&);  // that share a reading of the weights
    size_t (*correlate_scratch)(const Correlation&);
    void (*correlate)(const Correlation&, const Part&, char* scratch);
    int (*weight_gradient_samples)(const WeightGradient&);
    size_t (*weight_gradient_scratch)(const WeightGradient&);
    // Adds to weight_grad (packed, null where a.weights is); gain_grad has the places of `gain` and is added to.
    void (*weight_gradient)(const WeightGradient&, const Part&, float* weight_grad, float* gain_grad, char* scratch);
    size_t (*attention_scratch)(const Attention&);
    void (*attention)(const Attention&, int sample, char* scratch);
};

extern const Kernels* const kBuilt[];
extern const int kBuiltCount;

// The best supported set, or the one that is named (`isa`, else LEANCONV_ISA); throws Error with the choices otherwise.
const Kernels& select(const char* isa);

}  // namespace leanconv::aw
