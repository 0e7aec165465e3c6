// Plain C++: the path that is always there, and the one that the others are read against.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels.h"

namespace leanconv::portable {
namespace {

// a * b + c, rounded once.
inline float fused(float a, float b, float c) {
#ifdef FP_FAST_FMAF
    return std::fma(a, b, c);
#else  // the library's function would be called for each number
    const double product = static_cast<double>(a) * b;  // exact
    const double sum = product + c, part = sum - product;
    const double error = (product - (sum - part)) + (c - part);  // exact, too
    uint64_t bits = std::bit_cast<uint64_t>(sum);
    // rounded to odd, so that rounding once more to float errs nowhere
    if ((error < 0 || error > 0) && (bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : ~uint64_t{0};
    return static_cast<float>(std::bit_cast<double>(bits));
#endif
}

struct V {
    static constexpr int kLanes = 32;  // fewer, longer vectors build sooner
    struct F {
        float v[kLanes];
    };
    template <class Op>
    static F map(Op op) {
        F r;
        for (int i = 0; i < kLanes; ++i) r.v[i] = op(i);
        return r;
    }
    static F set1(float a) { return map([=](int) { return a; }); }
    static F load(const float* p) { return map([=](int i) { return p[i]; }); }
    static F load_n(const float* p, int n) { return map([=](int i) { return i < n ? p[i] : 0.0f; }); }
    static void store(float* p, F a) { store_n(p, a, kLanes); }
    static void store_n(float* p, F a, int n) {
        for (int i = 0; i < n; ++i) p[i] = a.v[i];
    }
    static F load(const Bf16* p) { return load_n(p, kLanes); }
    static F load_n(const Bf16* p, int n) {
        return map([=](int i) { return i < n ? std::bit_cast<float>(static_cast<uint32_t>(p[i].bits) << 16) : 0.0f; });
    }
    static void store(Bf16* p, F a) { store_n(p, a, kLanes); }
    static void store_n(Bf16* p, F a, int n) {
        for (int i = 0; i < n; ++i) {
            const uint32_t bits = std::bit_cast<uint32_t>(a.v[i]);
            const bool tiny = (bits & 0x7f800000u) == 0;  // zero or denormal
            const uint32_t rounded = tiny ? bits & 0x80000000u : a.v[i] != a.v[i] ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
            p[i].bits = static_cast<uint16_t>(rounded >> 16);
        }
    }
    static F add(F a, F b) { return map([&](int i) { return a.v[i] + b.v[i]; }); }
    static F fma(F a, F b, F c) { return map([&](int i) { return fused(a.v[i], b.v[i], c.v[i]); }); }
    static F mul(F a, F b) { return map([&](int i) { return a.v[i] * b.v[i]; }); }
    static F div(F a, F b) { return map([&](int i) { return a.v[i] / b.v[i]; }); }
    static F max(F a, F b) { return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
    static F min(F a, F b) { return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
    static F select_ge0(F x, F yes, F no) { return map([&](int i) { return x.v[i] >= 0 ? yes.v[i] : no.v[i]; }); }
    static uint32_t ge0(F a) {
        uint32_t bits = 0;
        for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(a.v[i] >= 0) << i;
        return bits;
    }
    struct I {
        int32_t v[kLanes];
    };
    template <class Op>
    static I map_int(Op op) {
        I r;
        for (int i = 0; i < kLanes; ++i) r.v[i] = op(i);
        return r;
    }
    static I load_int(const int32_t* p) { return map_int([=](int i) { return p[i]; }); }
    static void store_int(int32_t* p, const I& a) { std::copy(a.v, a.v + kLanes, p); }
    static I set1_int(int32_t a) { return map_int([=](int) { return a; }); }
    static I max_int(const I& a, const I& b) { return map_int([&](int i) { return std::max(a.v[i], b.v[i]); }); }
    static I xor_int(const I& a, const I& b) { return map_int([&](int i) { return a.v[i] ^ b.v[i]; }); }
    static F to_float(const I& a) { return map([&](int i) { return static_cast<float>(a.v[i]); }); }
    static F max_or(F x, F y) { return map([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; }); }
    static void store_bytes_n(uint8_t* p, F x, int zero, int n) {
        for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(static_cast<int>(std::nearbyint(x.v[i])) + zero);
    }
};

}  // namespace

#define LEANCONV_PORTABLE 1
#include "common_inl.h"
#include "depthwise_inl.h"
#include "int8_conv_inl.h"

namespace {

// Number of ones, by adding neighbouring fields (a form that compilers vectorise).
inline int32_t popcount(uint32_t x) {
    x -= (x >> 1) & 0x55555555u;
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0fu;
    x += x >> 8;
    return static_cast<int32_t>((x + (x >> 16)) & 0x3fu);
}

void binary_conv(const BinaryConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    const int lanes = block_lanes(a.out_channels, block);
    const int padded = block_count(a.out_channels) * kBlock;
    const uint32_t* weights = a.weights + int64_t{block} * a.words * kBlock;
    for (int j = begin; j < end; ++j) {
        alignas(64) int32_t pop[kBlock] = {};
        const uint32_t* in = a.input + a.job_offset[j];
        for (int k = 0; k < a.words; ++k) {
            const uint32_t word = in[a.word_offset[k]];
            const uint32_t* w = weights + int64_t{k} * lanes;
            for (int c = 0; c < lanes; ++c) pop[c] += popcount(word ^ w[c]);
        }
        const int32_t* start = a.start + int64_t{a.border_case[j]} * padded + block * kBlock;
        const float odd = a.odd ? a.odd[a.border_case[j]] : 0.0f;
        alignas(64) float sum[kBlock];
        for (int c = 0; c < lanes; ++c) sum[c] = odd - 2.0f * static_cast<float>(start[c] + pop[c]);
        finish_row(run, pixel_of(a.pixel, j), block * kBlock, a.out_channels - block * kBlock, sum);
    }
}

void real_conv(const RealConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    const int lanes = block_lanes(a.out_channels, block);
    for (int j = begin; j < end; ++j) {
        alignas(64) float sum[kBlock] = {};
        const float* w = a.weights + int64_t{block} * a.runs * a.run_length * kBlock;
        for (int r = 0; r < a.runs; ++r) {
            const float* in = a.input + a.job_offset[j] + a.run_offset[r];
            for (int k = 0; k < a.run_length; ++k, w += lanes)
                for (int c = 0; c < lanes; ++c) sum[c] += in[k] * w[c];
        }
        finish_row(run, pixel_of(a.pixel, j), block * kBlock, a.out_channels - block * kBlock, sum);
    }
}

template <int P, int VECTORS>
struct Int8Tile {
    static constexpr int kPixels = 2;

    template <int N>
    static void run(const Int8ConvArgs& a, int j, const int8_t* weights, const int32_t* base, V::I (&sums)[P][N]) {
        for (int i = 0; i < P; ++i) {
            uint32_t sum[N * V::kLanes];  // wraps around on its way to a total that fits
            for (int c = 0; c < N * V::kLanes; ++c) sum[c] = static_cast<uint32_t>(base[c]);
            const int8_t* w = weights;
            for (int g = 0; g < a.groups; ++g, w += VECTORS * 64) {
                const uint8_t* x = a.input + a.job_offset[j + i] + a.group_offset[g];
                for (int c = 0; c < VECTORS * 16; ++c)
                    sum[c] += static_cast<uint32_t>(x[0] * w[c * 4] + x[1] * w[c * 4 + 1] + x[2] * w[c * 4 + 2] + x[3] * w[c * 4 + 3]);
            }
            for (int v = 0; v < N; ++v) std::memcpy(sums[i][v].v, sum + v * V::kLanes, sizeof(V::I));
        }
    }
};

bool supported() { return true; }

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {"portable", supported, BinaryWeights::words, binary_conv, real_conv, pool,
                          elementwise, int8_conv_blocks<Int8Tile>, int8_conv_pooled_blocks<Int8Tile>, depthwise};

}  // namespace leanconv::portable
