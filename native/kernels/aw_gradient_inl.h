// The gradients of weights and factors; included by aw_inl.h.

namespace {

// one(lane) for n lanes; in blocks of a fixed size, which compilers make into vectors.
template <class One>
AW_INLINE void copy_lanes(int n, const One& one) {
    int l = 0;
    for (; l + kWords <= n; l += kWords)
        for (int i = 0; i < kWords; ++i) one(l + i);
    for (; l < n; ++l) one(l);
}

// Lanes of a block for all result pixels: [row][word][lane]; a word is a column, or a pair of columns.
template <class A>
void frame_result(const WeightGradient& a, int sample, int group, int lane0, int row_lanes, Stored* to) {
    constexpr int U = A::kHalves;
    const int n = static_cast<int>(smaller(row_lanes, a.lanes - lane0)), words = (a.out_width + U - 1) / U;
    const int64_t channels = int64_t{a.source.groups} * a.lanes;
    for (int u = 0; u < a.out_height; ++u)
        for (int w = 0; w < words; ++w, to += row_lanes) {
            const int64_t at = ((int64_t{sample} * a.out_height + u) * a.out_width + w * U) * channels + int64_t{group} * a.lanes + lane0;
            if (!a.result_bf16) {
                const float* from = static_cast<const float*>(a.result) + at;
                copy_lanes(n, [&](int l) { __builtin_memcpy(to + l, from + l, sizeof(float)); });
            } else {
                const uint16_t* from = static_cast<const uint16_t*>(a.result) + at;
                if constexpr (U == 1) {
                    copy_lanes(n, [&](int l) { to[l] = static_cast<uint32_t>(from[l]) << 16; });
                } else if (w * U + 1 < a.out_width) {
                    const uint16_t* second = from + channels;
                    copy_lanes(n, [&](int l) { to[l] = from[l] | static_cast<uint32_t>(second[l]) << 16; });
                } else {
                    copy_lanes(n, [&](int l) { to[l] = from[l]; });
                }
            }
            for (int l = n; l < row_lanes; ++l) to[l] = 0;
        }
}

// dK of TERMS terms x VECTORS vectors of lanes for one tap, summed over all pixels.
template <class A, int TERMS, int VECTORS>
__attribute__((noinline)) void gradient_tile(const char* source, int64_t row_bytes, const Stored* result, int rows, int words,
                                             float* to) {
    constexpr int kRow = VECTORS * V::kLanes;
    V::F sum[TERMS][VECTORS];
    AW_UNROLL for (int i = 0; i < TERMS; ++i)
        AW_UNROLL for (int v = 0; v < VECTORS; ++v) sum[i][v] = V::zero();
    for (int u = 0; u < rows; ++u, source += row_bytes) {
        const char* s = source;
        for (int k = 0; k < words; ++k, s += kPixel * A::kHalves, result += kRow) {
            typename A::Weight g[VECTORS];
            for (int v = 0; v < VECTORS; ++v) g[v] = A::load(result + v * V::kLanes);
            AW_UNROLL for (int i = 0; i < TERMS; ++i)
                AW_UNROLL for (int v = 0; v < VECTORS; ++v) sum[i][v] = A::mac(sum[i][v], s + i * 4, g[v]);
        }
    }
    AW_UNROLL for (int i = 0; i < TERMS; ++i)
        AW_UNROLL for (int v = 0; v < VECTORS; ++v) V::store(to + i * kRow + v * V::kLanes, sum[i][v]);
}

template <class A, int VECTORS>
void gradient_plane(const WeightGradient& a, const char* source, const Stored* result, int words, float* to) {
    constexpr int kTerms = V::kTerms / VECTORS;
    const Phase& phase = a.phase;
    const int columns = (a.out_width + A::kHalves - 1) / A::kHalves;
    for (int t = 0; t < phase.tap_count; ++t)
        for (int i = 0; i < words; i += kTerms)
            gradient_tile<A, kTerms, VECTORS>(source + phase.taps[t].offset + i * 4, phase.source_step * a.source.row_bytes(),
                                              result, a.out_height, columns,
                                              to + (int64_t{phase.taps[t].weight} * kWords + i) * VECTORS * V::kLanes);
}

AW_INLINE float sum_of(V::F x) {
    alignas(64) float all[V::kLanes];
    V::store(all, x);
    float sum = 0;
    for (float one : all) sum += one;
    return sum;
}

// weight_grad += dK * gain and gain_grad += dK * weight, for one plane. `shared` [tap][lane] collects the second where a
// factor belongs to a lane and all of its terms.
void apply(const WeightGradient& a, const Packing& k, int sample, int group, int block, int plane, const float* dk,
           const float* weights, float* sums, float* gain_grad, float* shared) {
    const int vectors = k.vectors(block), row = vectors * V::kLanes, words = k.words(), lane0 = block * kVectors * V::kLanes;
    const int lanes = static_cast<int>(smaller(row, a.lanes - lane0));
    const int64_t own = sample * a.gain.sample + group * a.gain.group;
    const float* gains = a.gain.data + own;
    float* gain_sums = gain_grad + own;
    alignas(64) float table[kVectors * V::kLanes] = {};
    for (int t = 0; t < k.taps; ++t) {
        const float* at = gains + t * a.gain.tap;
        float* to = gain_sums + t * a.gain.tap;
        V::F g[kVectors], collected[kVectors];
        if (a.gain.term == 0) factors<Floats>(a.gain, at, lane0, lanes, 0, 1, vectors, g);
        for (int v = 0; v < vectors; ++v) collected[v] = V::load(shared + t * row + v * V::kLanes);
        for (int w = 0; w < words; ++w) {
            const int term = plane * kWords + w;
            if (term >= k.terms) break;
            if (a.gain.term != 0) {
                factors<Floats>(a.gain, at, lane0, lanes, term, 1, vectors, g);
                for (int v = 0; v < vectors; ++v) collected[v] = V::zero();
            }
            for (int v = 0; v < vectors; ++v) {
                const V::F d = V::load(dk + (int64_t{t} * kWords + w) * row + v * V::kLanes);
                const int64_t i = (int64_t{t} * words + w) * row + v * V::kLanes;
                V::store(sums + i, V::fma(d, g[v], V::load(sums + i)));
                collected[v] = V::fma(d, V::load(weights + i), collected[v]);
            }
            if (a.gain.term == 0) continue;
            if (a.gain.lane == 0) {
                for (int v = 0; v < vectors; ++v) to[term * a.gain.term] += sum_of(collected[v]);
                continue;
            }
            for (int v = 0; v < vectors; ++v) V::store(table + v * V::kLanes, collected[v]);
            for (int l = 0; l < lanes; ++l) to[(lane0 + l) * a.gain.lane + term * a.gain.term] += table[l];
        }
        if (a.gain.term == 0)
            for (int v = 0; v < vectors; ++v) V::store(shared + t * row + v * V::kLanes, collected[v]);
    }
}

// What a gradient needs: framed sources of some samples, the results' lanes of one block, dK of one plane, sums.
struct GradientCut {
    int samples;
    int64_t source, result, dk, shared, packed;

    GradientCut(const WeightGradient& a, const Packing& k) {
        const int64_t lanes = k.vectors(0) * V::kLanes;
        result = int64_t{a.out_height} * a.out_width * lanes * 4;
        const bool many = k.floats() * 4 > (128 << 10);
        samples = many ? static_cast<int>(larger(1, smaller(8, (512 << 10) / (a.source.sample_bytes() + result)))) : 1;
        source = samples * a.source.sample_bytes();
        result *= samples;
        dk = int64_t{k.taps} * kWords * lanes * 4;
        shared = samples * k.taps * lanes * 4;
        packed = a.weights ? 0 : k.plane_floats(0) * 4;
    }
    int64_t bytes() const { return source + result + dk + shared + 2 * packed; }
};

template <class A>
void gradient_with(const WeightGradient& a, const Part& part, float* weight_grad, float* gain_grad, char* scratch) {
    const Packing k = packing(a);
    const GradientCut cut(a, k);
    char* source = scratch;
    Stored* results = reinterpret_cast<Stored*>(scratch + cut.source);
    float* dk = reinterpret_cast<float*>(scratch + cut.source + cut.result);
    float* shared = reinterpret_cast<float*>(scratch + cut.source + cut.result + cut.dk);
    float* packed = shared + cut.shared / 4;
    const int blocks = k.blocks(), group0 = part.block0 / blocks, group1 = (part.block1 + blocks - 1) / blocks;
    for (int n = part.sample0; n < part.sample1; n += cut.samples) {
        const int samples = static_cast<int>(smaller(cut.samples, part.sample1 - n));
        for (int i = 0; i < samples; ++i) frame_sample(a.source, n + i, group0, group1, source + i * a.source.sample_bytes());
        for (int b = part.block0; b < part.block1; ++b) {
            const int group = b / blocks, block = b % blocks, vectors = k.vectors(block), row = vectors * V::kLanes;
            const int lane0 = block * kVectors * V::kLanes;
            const int64_t result_size = cut.result / cut.samples / 4, shared_size = int64_t{k.taps} * row;
            for (int i = 0; i < samples; ++i) frame_result<A>(a, n + i, group, lane0, row, results + i * result_size);
            for (int64_t i = 0; i < samples * shared_size; ++i) shared[i] = 0;
            for (int p = 0; p < k.planes(); ++p) {
                const int64_t size = k.plane_floats(block), start = k.at(group, block) + p * size;
                const float* weights = a.weights ? a.weights + start : packed;
                float* sums = a.weights ? weight_grad + start : packed + size;
                if (!a.weights) {
                    pack_with<Floats>(k, a.filters, group, block, p, p + 1, packed);
                    __builtin_memset(sums, 0, static_cast<size_t>(size) * sizeof(float));
                }
                for (int i = 0; i < samples; ++i) {
                    const char* from = source + i * a.source.sample_bytes() + (group * a.source.blocks + p) * a.source.plane_bytes();
                    if (vectors == 1)
                        gradient_plane<A, 1>(a, from, results + i * result_size, k.words(), dk);
                    else
                        gradient_plane<A, 2>(a, from, results + i * result_size, k.words(), dk);
                    apply(a, k, n + i, group, block, p, dk, weights, sums, gain_grad, shared + i * shared_size);
                }
                if (!a.weights) unpack(k, a.grads, group, block, p, p + 1, sums);
            }
            if (a.gain.term != 0) continue;
            const int lanes = static_cast<int>(smaller(row, a.lanes - lane0));
            for (int i = 0; i < samples; ++i)
                for (int t = 0; t < k.taps; ++t) {
                    float* to = gain_grad + (n + i) * a.gain.sample + group * a.gain.group + t * a.gain.tap;
                    const float* from = shared + i * shared_size + t * row;
                    for (int l = 0; l < lanes; ++l) to[(lane0 + l) * a.gain.lane] += from[l];
                }
        }
    }
}

}  // namespace
