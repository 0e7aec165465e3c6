// Depthwise convolutions, whose vectors are channels: the correlation and the gradients; included by aw_inl.h.

namespace {

constexpr int kPixelVectors = kWords / V::kLanes;

// Factors of a plane's channels: [tap][16] = weight * gain, or the gain alone.
void depthwise_factors(const Gain& g, const float* weights, int taps, int channels, int sample, int plane, float* to) {
    const float* base = g.data + sample * g.sample;
    for (int t = 0; t < taps; ++t)
        for (int c = 0; c < kWords; ++c) {
            const int channel = plane * kWords + c;
            const float gain = channel < channels ? base[channel * g.group + t * g.tap] : 0.0f;
            to[t * kWords + c] = weights ? gain * weights[(int64_t{plane} * taps + t) * kWords + c] : gain;
        }
}

template <int P>
AW_INLINE void depthwise_tile(const char* source, const Phase& phase, const float* kernel, const Target& t) {
    for (int v = 0; v < kPixelVectors; ++v) {
        V::F sum[P];
        for (int p = 0; p < P; ++p) sum[p] = V::zero();
        for (int i = 0; i < phase.tap_count; ++i) {
            const float* s = reinterpret_cast<const float*>(source + phase.taps[i].offset) + v * V::kLanes;
            const V::F w = V::load(kernel + phase.taps[i].weight * kWords + v * V::kLanes);
            for (int p = 0; p < P; ++p) sum[p] = V::fma(V::load(s + p * kWords), w, sum[p]);
        }
        const int n = static_cast<int>(smaller(V::kLanes, t.n - v * V::kLanes));
        if (n <= 0) return;
        for (int p = 0; p < P; ++p) {
            const int64_t at = p * t.step + v * V::kLanes;
            if (t.bf16)
                V::store_bf16_n(static_cast<uint16_t*>(t.out) + at, sum[p], n);
            else
                V::store_n(static_cast<float*>(t.out) + at, sum[p], n);
        }
    }
}

void correlate_depthwise(const Correlation& a, const Part& part, char* scratch) {
    float* kernel = reinterpret_cast<float*>(scratch + a.source.plane_bytes());
    const int channels = a.source.per_group, size = a.out_bf16 ? 2 : 4;
    for (int n = part.sample0; n < part.sample1; ++n)
        for (int b = part.block0; b < part.block1; ++b) {
            frame_plane(a.source, n, 0, b, scratch);
            depthwise_factors(a.gain, a.weights, a.taps, channels, n, b, kernel);
            for (int f = 0; f < a.phase_count; ++f) {
                const Phase& phase = a.phases[f];
                for (int u = 0; u < phase.rows; ++u) {
                    const int64_t row = int64_t{n} * a.out_height + phase.row0 + u * phase.row_step;
                    const int64_t at = (row * a.out_width + phase.col0) * channels + b * kWords;
                    Target t = {};
                    t.step = int64_t{phase.col_step} * channels, t.bf16 = a.out_bf16;
                    t.n = static_cast<int>(smaller(kWords, channels - b * kWords));
                    const char* source = scratch + u * phase.source_step * a.source.row_bytes();
                    for (int v = 0; v < phase.cols;) {
                        t.out = static_cast<char*>(a.out) + (at + v * t.step) * size;
                        if (v + 8 <= phase.cols)
                            depthwise_tile<8>(source + v * kPixel, phase, kernel, t), v += 8;
                        else
                            depthwise_tile<1>(source + v * kPixel, phase, kernel, t), v += 1;
                    }
                }
            }
        }
}

void gradient_depthwise(const WeightGradient& a, const Part& part, float* weight_grad, float* gain_grad, char* scratch) {
    const int channels = a.source.per_group, taps = a.taps;
    const Map& m = a.source;
    float* results = reinterpret_cast<float*>(scratch + m.plane_bytes());
    float* gains = results + int64_t{a.out_height} * a.out_width * kWords;
    float* dk = gains + int64_t{taps} * kWords;
    for (int n = part.sample0; n < part.sample1; ++n)
        for (int b = part.block0; b < part.block1; ++b) {
            frame_plane(m, n, 0, b, scratch);
            const int count = static_cast<int>(smaller(kWords, channels - b * kWords));
            for (int64_t p = 0; p < int64_t{a.out_height} * a.out_width; ++p) {
                const int64_t at = (int64_t{n} * a.out_height * a.out_width + p) * channels + b * kWords;
                if (a.result_bf16)
                    put_floats(results + p * kWords, static_cast<const uint16_t*>(a.result) + at, count);
                else
                    put_floats(results + p * kWords, static_cast<const float*>(a.result) + at, count);
            }
            depthwise_factors(a.gain, nullptr, taps, channels, n, b, gains);
            for (int t = 0; t < taps; ++t)
                for (int v = 0; v < kPixelVectors; ++v) {
                    V::F sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
                    for (int u = 0; u < a.out_height; ++u) {
                        const char* row = scratch + u * a.phase.source_step * m.row_bytes() + a.phase.taps[t].offset;
                        const float* s = reinterpret_cast<const float*>(row) + v * V::kLanes;
                        const float* g = results + int64_t{u} * a.out_width * kWords + v * V::kLanes;
                        int c = 0;
                        for (; c + 4 <= a.out_width; c += 4)
                            for (int i = 0; i < 4; ++i)
                                sum[i] = V::fma(V::load(s + (c + i) * kWords), V::load(g + (c + i) * kWords), sum[i]);
                        for (; c < a.out_width; ++c) sum[0] = V::fma(V::load(s + c * kWords), V::load(g + c * kWords), sum[0]);
                    }
                    V::store(dk + v * V::kLanes, V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
                    const int64_t at = (int64_t{b} * taps + t) * kWords + v * V::kLanes;
                    for (int l = 0; l < V::kLanes; ++l) {
                        const int c = b * kWords + v * V::kLanes + l;
                        if (c >= channels) break;
                        const float d = dk[v * V::kLanes + l];
                        weight_grad[at + l] += d * gains[t * kWords + v * V::kLanes + l];
                        gain_grad[n * a.gain.sample + c * a.gain.group + t * a.gain.tap] += d * a.weights[at + l];
                    }
                }
        }
}

}  // namespace
