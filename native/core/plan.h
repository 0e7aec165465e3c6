// What one run does, for one size of the inputs: stages with their kernel arguments, tables and places in one arena.
//
// Until a Context binds them to its memory, arena addresses in a plan are byte offsets (never 0: that is null).
#pragma once

#include <map>
#include <vector>

#include "core/pack.h"
#include "core/program.h"
#include "core/sizes.h"

namespace leanconv {

// A float map in the arena: pixel (y, x) at data + (y * row_pixels + x) * pixel_stride.
struct MapRef {
    float* data = nullptr;
    int pixel_stride = 0;
    int row_pixels = 0;
};

// Map to map, and bits to bits with each group at the start of a word.
struct CopyArgs {
    MapRef from, to;
    int height, width, channels;
    uint8_t* bytes = nullptr;    // an input of bytes: in the place of `to.data`; its stride is in bytes
};

struct RegroupArgs {
    const uint32_t* from;        // first pixel inside the frame
    uint32_t* to;
    int height, width;
    int from_row, to_row;        // words
    int from_words, to_words;    // a pixel
    int groups, group_channels;
};

// The weights of one group of a gated convolution, each times its gain.
struct GainArgs {
    const float* weights;  // packed, as the convolution reads them
    float* scaled;         // the same layout
    const float* gains;    // of tap (0, 0), at this group's first channel
    GainKind kind;
    int pixel_stride, row_pixels;  // of the gains; both 0: one gain for all taps
    int taps, kernel_width;
    int in, out;           // channels of the group
    bool depthwise;        // weights are [taps][out]
};

struct AdaptivePoolArgs {
    MapRef from;
    int height, width, channels;
    int out_height, out_width;
    float* output;         // [out_height * out_width][channels]
};

// A convolution whose map only a pooling reads: a few rows of it at a time, so that the map never leaves the cache.
struct BandArgs {
    char* band;            // of slot 0; the part's `store` step writes here, floats or Bf16. pooled_sums: its scratch
    int64_t slot_bytes;    // from one slot's band to the next one's
    int store;             // index of that step
    int height;            // of the convolution's map
    int64_t row_bytes;
    int width;
    int pool_rows;         // at a time
};

// A pooling whose map only a 1x1 convolution reads: some pixels of it at a time, so that the map never leaves the cache.
struct PooledInputArgs {
    char* scratch = nullptr;     // of slot 0; the pooling's `output` step writes here, floats or bytes
    int64_t slot_bytes = 0;      // from one slot's scratch to the next one's
    int output = 0;              // index of that step
    int64_t pixel_bytes = 0;
    int pixels = 0;              // at a time
};

// A framed map of bytes: all of its pixels start as the value's zero points.
struct FillArgs {
    uint8_t* data;
    int64_t pixels;
    const Value* value;
};

struct Unit {
    int part, block, begin, end;
};

enum class StageKind : uint8_t {
    binary, real, int8, pooled, pooled_sums, pooled_input, depthwise, pool,
    elementwise, copy, regroup, flatten, gains, adaptive_pool
};

struct Stage {
    StageKind kind = StageKind::elementwise;
    int op = 0;
    std::vector<std::vector<Step>> steps;   // of each epilogue
    std::vector<Epilogue> epilogues;        // one, or one a part; pooled, pooled_input: the convolution's and the pooling's
    std::vector<BinaryConvArgs> binary;     // one a part
    std::vector<RealConvArgs> real;
    std::vector<Int8ConvArgs> int8;         // at most one
    Int8PoolArgs int8_pool{};               // pooled_sums: all but `conv` and the thread's scratch
    PoolArgs pool{};
    BandArgs band{};
    PooledInputArgs pooled_input{};
    ElementwiseArgs elementwise{};
    DepthwiseArgs depthwise{};
    bool gated = false;                     // the weights of `real` or `depthwise` lie in the arena
    std::vector<GainArgs> gains;            // one a group
    AdaptivePoolArgs adaptive{};
    CopyArgs copy{};
    RegroupArgs regroup{};
    std::vector<int> part_jobs;             // jobs of each part
    std::vector<int> part_blocks;
    double cost = 0;                        // estimate in nanoseconds
    std::vector<Unit> units;                // pieces for several threads; empty: not worth it
};

struct Plan {
    std::vector<Size> sizes;                // of every value
    std::vector<CopyArgs> inputs;           // `to` and sizes only
    std::vector<CopyArgs> outputs;          // `from` and sizes only
    std::vector<FillArgs> fills;
    std::vector<Stage> stages;
    std::vector<double> macs_binary, macs_real;  // of each op
    double cost = 0;
    size_t bytes = 0;                       // of the arena
    size_t zeroed = 0;                      // from here on the arena starts as zeros (frames, never written later)
    std::map<uint64_t, std::vector<std::unique_ptr<std::vector<int32_t>>>> tables;
    std::vector<Aligned<int32_t>> starts;   // of the binary convolutions' border cases, and which of them are odd
    std::vector<std::vector<float>> odd;
};

// A stage of less than `grain_ns` (estimated) is not split between threads.
// Throws Error when the sizes do not fit the network.
std::unique_ptr<const Plan> make_plan(const Program& program, const std::vector<PackedOp>& packed,
                                      const std::vector<Size>& inputs, int threads, double grain_ns);

}  // namespace leanconv
