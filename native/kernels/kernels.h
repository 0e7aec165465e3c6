// What an instruction set offers: one table of functions on raw pointers. No allocation, no threads, no Python.
//
// Layouts. Real maps: NHWC float or Bf16, `pixel_stride` numbers between pixels, never framed. Bit maps: NHWC uint32 words,
// (channels + 31) / 32 words a pixel, channel c is bit c % 32 of word c / 32, inside a frame of zero words (= -1) wide
// enough for every reader's padding; unused high bits of the last word are 0. Pixels are numbered y * width + x.
// Output channels come in blocks of 64; the last block has lanes(rest) = rest rounded up to 16.
#pragma once

#include <cstdint>

namespace leanconv {

constexpr int kBlock = 64;

constexpr int block_lanes(int out_channels, int block) {
    const int rest = out_channels - block * kBlock;
    return rest >= kBlock ? kBlock : (rest + 15) / 16 * 16;
}
constexpr int block_count(int channels) { return (channels + kBlock - 1) / kBlock; }

// The upper half of a float. What is written is rounded to the nearest, ties to even; NaN stays NaN, denormal numbers become
// zeros of their sign: what x86's instruction does.
struct Bf16 {
    uint16_t bits;
};

enum class StepKind : uint8_t { affine, add, mul, clip, prelu, sigmoid, silu, hard_sigmoid, hard_swish, store, sign, quantize };

// One step of docs/format.md with its addresses. Per-channel arrays are padded to a multiple of 64 floats.
struct Step {
    StepKind kind;
    const float* scale = nullptr;       // affine, sign: may be null. prelu: the slope
    const float* bias = nullptr;        // affine, sign: may be null
    float min = 0, max = 0;             // clip (infinities where open)
    float* real = nullptr;              // add, mul: read; store: written
    Bf16* bf16 = nullptr;               // in the place of `real`
    int32_t pixel_stride = 0;           // of `real` or `bf16`; 0 = a 1x1 map, broadcast
    uint32_t* bits = nullptr;           // sign: word of pixel p, channel c: bits[bit_offset[p] + c / 32]
    const int32_t* bit_offset = nullptr;  // quantize: bytes[bit_offset[p] + c]
    uint8_t* bytes = nullptr;           // quantize: round(x * factor) between `min` and `max`, plus -min
    float factor = 1;
};

struct Epilogue {
    const Step* steps = nullptr;
    int count = 0;
    int channels = 0;  // valid channels; nothing is read from or written to real maps beyond them
};

// How an instruction set wants the weights of a binary convolution. `words`: per block, at block * words * 64, words
// [words][block_lanes]. `nibbles`: per block, at block * words * 512 bytes, bytes [8 * words][lanes] with four bits each,
// the lowest first; lanes are block_lanes rounded up to 32.
enum class BinaryWeights : uint8_t { words, nibbles };

// Jobs j in [begin, end) of one channel block. Job j computes output pixel (pixel ? pixel[j] : j).
struct BinaryConvArgs {
    const uint32_t* input;         // framed bit map
    const int32_t* job_offset;     // word offset of job j's first tap
    const int32_t* pixel;          // null = identity
    const int32_t* word_offset;    // [words] offset of each reduction word from the job's first tap
    int words;                     // reduction length in words
    const uint32_t* weights;       // BinaryWeights
    const int32_t* start;          // [border cases][out_channels rounded up to 64]
    const float* odd;              // [border cases], 0 or 1; null: all 0
    const int32_t* border_case;    // of job j; result = odd[case] - 2 * (start[case][channel] + popcount(input xor weight))
    int out_channels;
    const Epilogue* epilogue;
    const char* upcoming = nullptr;  // weights of a layer that runs soon, worth fetching; may be empty
    int64_t upcoming_bytes = 0;
};

// Sums of products of bytes and int8 weights. A group is four bytes that follow one another in memory; weights of bytes
// that belong to no tap are 0.
struct Int8ConvArgs {
    const uint8_t* input;          // framed map; at least 3 bytes may be read behind it
    const int32_t* job_offset;     // byte offset of job j's first tap
    const int32_t* group_offset;   // [groups] from the job's first tap
    int groups;
    const int8_t* weights;         // per block, at block * groups * 256: [groups][block_lanes][4]
    const int32_t* base;           // [out_channels rounded up to 64]: added to each sum
    int out_channels;
    const Epilogue* epilogue;
};

// An int8 convolution and the maximum of 3x3 windows (stride 2, padding 1) of what its steps make of it, where these never
// decrease (or never increase) with the sum, in each channel: then the largest (or smallest) sums are all that is needed.
struct Int8PoolArgs {
    Int8ConvArgs conv;             // its jobs: all pixels of the map, row by row. Its epilogue: what becomes of the sums chosen
    int height, width;             // of the convolution's map; the pooled one has half of each, rounded up
    const int32_t* flip;           // [out_channels rounded up to 64]: -1 where the smallest sum counts, else 0
    int32_t* above;                // scratch, [pooled width][64]
};

struct RealConvArgs {
    const float* input;            // zero-framed (or unpadded) map
    const int32_t* job_offset;     // float offset of job j's first tap
    const int32_t* pixel;          // null = identity
    const int32_t* run_offset;     // [runs] offsets of contiguous runs from the job's first tap
    int runs;
    int run_length;                // floats a run; the reduction has runs * run_length terms
    const float* weights;          // per block, at block * runs * run_length * 64: [runs * run_length][block_lanes]
    int out_channels;
    const Epilogue* epilogue;
};

struct DepthwiseArgs {
    const float* input;            // zero-framed (or unpadded) map
    const int32_t* job_offset;     // float offset of job j's first tap; job j computes output pixel j
    const int32_t* tap_offset;     // [taps] from there
    int taps;
    const float* weights;          // [taps][channels]
    int channels;
    const Epilogue* epilogue;
};

enum class PoolKind : uint8_t { max, avg };

struct PoolArgs {
    PoolKind kind;
    const float* input;
    int pixel_stride, height, width, channels;  // of the input
    int out_width;
    int kernel[2], stride[2], padding[2], dilation[2];
    bool count_include_pad;
    const float *scale, *bias;     // both or neither (null): every number read becomes x * scale + bias
    const Epilogue* epilogue;
    const Bf16* bf16 = nullptr;    // in the place of `input`
};

struct ElementwiseArgs {
    const float* input;
    int pixel_stride, channels;
    const Epilogue* epilogue;
    const Bf16* bf16 = nullptr;    // in the place of `input`
};

struct Kernels {
    const char* name;
    bool (*supported)();  // by this processor
    BinaryWeights binary_weights;
    void (*binary_conv)(const BinaryConvArgs&, int begin, int end, int block);
    void (*real_conv)(const RealConvArgs&, int begin, int end, int block);
    void (*pool)(const PoolArgs&, int begin, int end);                // output pixels, all channels
    void (*elementwise)(const ElementwiseArgs&, int begin, int end);  // pixels, all channels
    void (*int8_conv)(const Int8ConvArgs&, int begin, int end, int block);
    void (*int8_conv_pooled)(const Int8PoolArgs&, int begin, int end, int block);  // rows of the pooled map
    void (*depthwise)(const DepthwiseArgs&, int begin, int end);      // output pixels, all channels
};

// Built instruction sets, best first; the portable one is always last.
extern const Kernels* const kBuiltKernels[];
extern const int kBuiltKernelCount;

// The best supported set, or the one that LEANCONV_ISA names; throws std::runtime_error with the choices otherwise.
const Kernels& select_kernels();

}  // namespace leanconv
