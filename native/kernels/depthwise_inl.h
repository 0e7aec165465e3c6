// Depthwise convolutions, whatever the instruction set. Included inside the namespace of each set, behind common_inl.h.

namespace {

constexpr int kDepthwiseChannels = 32;  // at a time

// P pixels, channels [c0, c0 + count), at most 32: sums in registers up to the end of the epilogue.
template <int P, bool PARTIAL>
KERNEL_INLINE void depthwise_tile(const DepthwiseArgs& a, const EpilogueRunner& run, int j, int c0, int count) {
    constexpr int kVectors = kDepthwiseChannels / V::kLanes;
    const auto load = [&](const float* from, int v) KERNEL_LAMBDA {
        return PARTIAL ? V::load_n(from + v * V::kLanes, std::clamp(count - v * V::kLanes, 0, V::kLanes)) : V::load(from + v * V::kLanes);
    };
    const float* in[P];
    int32_t pixel[P];
    for (int i = 0; i < P; ++i) in[i] = a.input + a.job_offset[j + i] + c0, pixel[i] = j + i;
    V::F sum[P][kVectors];
    unrolled<P>([&](auto i) KERNEL_LAMBDA { unrolled<kVectors>([&](auto v) KERNEL_LAMBDA { sum[i][v] = V::set1(0.0f); }); });
    for (int t = 0; t < a.taps; ++t) {
        const int64_t offset = a.tap_offset[t];
        const float* weights = a.weights + int64_t{t} * a.channels + c0;
        unrolled<kVectors>([&](auto v) KERNEL_LAMBDA {
            const V::F weight = load(weights, v);
            unrolled<P>([&](auto i) KERNEL_LAMBDA { sum[i][v] = V::fma(load(in[i] + offset, v), weight, sum[i][v]); });
        });
    }
    run.tile(pixel, c0, sum);
}

template <int P>
void depthwise_pixels(const DepthwiseArgs& a, const EpilogueRunner& run, int begin, int end) {
    int j = begin;
    for (; j + P <= end; j += P) {
        int c = 0;
        for (; c + kDepthwiseChannels <= a.channels; c += kDepthwiseChannels) depthwise_tile<P, false>(a, run, j, c, kDepthwiseChannels);
        if (c < a.channels) depthwise_tile<P, true>(a, run, j, c, a.channels - c);
    }
    if constexpr (P > 1) depthwise_pixels<1>(a, run, j, end);
}

void depthwise(const DepthwiseArgs& a, int begin, int end) {
    const EpilogueRunner run(*a.epilogue);
    depthwise_pixels<V::kLanes == 16 ? 4 : 2>(a, run, begin, end);  // as many as the registers hold
}

}  // namespace
