// Correlation of a framed map with scaled weights: the forward pass and, with transposed filters, the gradient of the input;
// included by aw_inl.h.

namespace {

// Where the results of a tile go: partial sums, or the map itself (`n` lanes of it).
struct Target {
    float* sums;
    bool first, last;
    void* out;
    int64_t step;  // elements between pixels
    bool bf16;
    int n;
};

// Lanes of vector v that are channels; all but the last vector are full.
template <int VECTORS>
AW_INLINE int valid(const Target& t, int v) {
    return v + 1 < VECTORS ? V::kLanes : t.n - v * V::kLanes;
}

// P pixels next to each other x VECTORS vectors of lanes.
template <class A, int P, int VECTORS>
__attribute__((noinline)) void tile(const char* source, const int64_t* runs, int run_count, int words, const Stored* weights,
                                    const Target& target) {
    constexpr int kRow = VECTORS * V::kLanes;
    V::F sum[P][VECTORS];
    if (target.first)
        AW_UNROLL for (int p = 0; p < P; ++p)
            AW_UNROLL for (int v = 0; v < VECTORS; ++v) sum[p][v] = V::zero();
    else
        AW_UNROLL for (int p = 0; p < P; ++p)
            AW_UNROLL for (int v = 0; v < VECTORS; ++v) sum[p][v] = V::load(target.sums + p * kRow + v * V::kLanes);
    for (int r = 0; r < run_count; ++r) {
        const char* s = source + runs[r];
        for (int k = 0; k < words; ++k, s += 4, weights += kRow) {
            typename A::Weight w[VECTORS];
            for (int v = 0; v < VECTORS; ++v) w[v] = A::load(weights + v * V::kLanes);
            AW_UNROLL for (int p = 0; p < P; ++p)
                AW_UNROLL for (int v = 0; v < VECTORS; ++v) sum[p][v] = A::mac(sum[p][v], s + p * kPixel, w[v]);
        }
    }
    if (!target.last) {
        AW_UNROLL for (int p = 0; p < P; ++p)
            AW_UNROLL for (int v = 0; v < VECTORS; ++v) V::store(target.sums + p * kRow + v * V::kLanes, sum[p][v]);
    } else if (target.bf16) {
        AW_UNROLL for (int p = 0; p < P; ++p)
            AW_UNROLL for (int v = 0; v < VECTORS; ++v)
                V::store_bf16_n(static_cast<uint16_t*>(target.out) + p * target.step + v * V::kLanes, sum[p][v], valid<VECTORS>(target, v));
    } else {
        AW_UNROLL for (int p = 0; p < P; ++p)
            AW_UNROLL for (int v = 0; v < VECTORS; ++v)
                V::store_n(static_cast<float*>(target.out) + p * target.step + v * V::kLanes, sum[p][v], valid<VECTORS>(target, v));
    }
}

using TileFunction = void (*)(const char*, const int64_t*, int, int, const Stored*, const Target&);

template <class A, int VECTORS, int P>
constexpr void fill_tiles(TileFunction* table) {
    table[P] = tile<A, P, VECTORS>;
    if constexpr (P > 1) fill_tiles<A, VECTORS, P - 1>(table);
}

template <class A, int VECTORS>
struct Tiles {
    TileFunction of[V::kPixels[VECTORS] + 1] = {};
    constexpr Tiles() { fill_tiles<A, VECTORS, V::kPixels[VECTORS]>(of); }
};

template <class A, int VECTORS>
void correlate_rows(const Phase& phase, const char* source, int64_t row_bytes, const int64_t* runs, int run_count, int words,
                    const Stored* weights, Target target, int64_t out_row) {
    static constexpr Tiles<A, VECTORS> kTiles;
    constexpr int kMost = V::kPixels[VECTORS];
    const int pieces = (phase.cols + kMost - 1) / kMost;
    char* out = static_cast<char*>(target.out);
    for (int u = 0; u < phase.rows; ++u, out += out_row) {
        const char* row = source + u * phase.source_step * row_bytes;
        for (int piece = 0; piece < pieces; ++piece) {
            const int begin = phase.cols * piece / pieces, count = phase.cols * (piece + 1) / pieces - begin;
            Target t = target;
            t.out = out + begin * target.step * (target.bf16 ? 2 : 4);
            t.sums = target.sums + (int64_t{u} * phase.cols + begin) * VECTORS * V::kLanes;
            kTiles.of[count](row + int64_t{begin} * kPixel, runs, run_count, words, weights, t);
        }
    }
}

// How a correlation is cut: planes whose scaled weights stay in the second cache, samples that share a reading of them.
struct Cut {
    int planes, samples;
    int64_t source, weights, packed, sums, runs;  // bytes

    Cut(const Correlation& a, const Packing& k) {
        const int64_t plane = int64_t{k.taps} * k.words() * k.vectors(0) * V::kLanes * 4;
        planes = static_cast<int>(larger(1, smaller(k.planes(), (128 << 10) / plane)));
        const bool many = k.floats() * 4 > (256 << 10);
        samples = many ? static_cast<int>(larger(1, smaller(8, (512 << 10) / a.source.sample_bytes()))) : 1;
        source = samples * a.source.sample_bytes();
        weights = (planes * plane + 63) / 64 * 64;
        packed = a.weights ? 0 : planes * k.plane_floats(0) * 4;
        runs = (int64_t{planes} * k.taps * static_cast<int>(sizeof(int64_t)) + 63) / 64 * 64;
        int64_t pixels = 0;
        for (int i = 0; i < a.phase_count; ++i) pixels = larger(pixels, int64_t{a.phases[i].rows} * a.phases[i].cols);
        sums = planes < k.planes() ? samples * pixels * k.vectors(0) * V::kLanes * 4 : 0;
    }
    int64_t bytes() const { return source + weights + packed + runs + sums; }
};

void clear(const Correlation& a, const Phase& phase, int sample, int64_t channel, int n) {
    const int64_t channels = int64_t{a.source.groups} * a.lanes;
    for (int u = 0; u < phase.rows; ++u)
        for (int v = 0; v < phase.cols; ++v) {
            const int64_t row = int64_t{sample} * a.out_height + phase.row0 + u * phase.row_step;
            const int64_t at = (row * a.out_width + phase.col0 + v * phase.col_step) * channels + channel;
            const int size = a.out_bf16 ? 2 : 4;
            __builtin_memset(static_cast<char*>(a.out) + at * size, 0, static_cast<size_t>(n) * size);
        }
}

template <class A>
void correlate_block(const Correlation& a, const Packing& k, const Cut& cut, int group, int block, int sample0, int samples,
                     const char* source, Stored* weights, float* packed, int64_t* runs, float* sums) {
    const int vectors = k.vectors(block), lane0 = block * kVectors * V::kLanes;
    const int64_t channels = int64_t{a.source.groups} * a.lanes, channel = int64_t{group} * a.lanes + lane0;
    const int n = static_cast<int>(smaller(vectors * V::kLanes, a.lanes - lane0));
    const int size = a.out_bf16 ? 2 : 4;
    for (int f = 0; f < a.phase_count; ++f) {
        const Phase& phase = a.phases[f];
        if (phase.tap_count == 0)
            for (int i = 0; i < samples; ++i) clear(a, phase, sample0 + i, channel, n);
        for (int p = 0; phase.tap_count > 0 && p < k.planes(); p += cut.planes) {
            const int end = static_cast<int>(smaller(p + cut.planes, k.planes()));
            if (!a.weights) pack_with<A>(k, a.filters, group, block, p, end, packed);
            const float* unscaled = a.weights ? a.weights + k.at(group, block) + p * k.plane_floats(block) : packed;
            int run_count = 0;
            for (int q = p; q < end; ++q)
                for (int t = 0; t < phase.tap_count; ++t) runs[run_count++] = q * a.source.plane_bytes() + phase.taps[t].offset;
            for (int i = 0; i < samples; ++i) {
                const int sample = sample0 + i;
                scale<A>(a, k, phase, sample, group, block, p, end, unscaled, weights);
                const int64_t row = int64_t{sample} * a.out_height + phase.row0;
                const int64_t at = (row * a.out_width + phase.col0) * channels + channel;
                Target target = {sums + int64_t{i} * phase.rows * phase.cols * vectors * V::kLanes, p == 0, end == k.planes(),
                                 static_cast<char*>(a.out) + at * size, phase.col_step * channels, a.out_bf16, n};
                const char* from = source + i * a.source.sample_bytes() + group * a.source.blocks * a.source.plane_bytes();
                const int64_t out_row = int64_t{phase.row_step} * a.out_width * channels * size;
                if (vectors == 1)
                    correlate_rows<A, 1>(phase, from, a.source.row_bytes(), runs, run_count, k.words(), weights, target, out_row);
                else
                    correlate_rows<A, 2>(phase, from, a.source.row_bytes(), runs, run_count, k.words(), weights, target, out_row);
            }
        }
    }
}

template <class A>
void correlate_with(const Correlation& a, const Part& part, char* scratch) {
    const Packing k = packing(a);
    const Cut cut(a, k);
    char* source = scratch;
    Stored* weights = reinterpret_cast<Stored*>(scratch + cut.source);
    float* packed = reinterpret_cast<float*>(scratch + cut.source + cut.weights);
    int64_t* runs = reinterpret_cast<int64_t*>(scratch + cut.source + cut.weights + cut.packed);
    float* sums = reinterpret_cast<float*>(scratch + cut.source + cut.weights + cut.packed + cut.runs);
    const int blocks = k.blocks(), group0 = part.block0 / blocks, group1 = (part.block1 + blocks - 1) / blocks;
    for (int n = part.sample0; n < part.sample1; n += cut.samples) {
        const int samples = static_cast<int>(smaller(cut.samples, part.sample1 - n));
        for (int i = 0; i < samples; ++i) frame_sample(a.source, n + i, group0, group1, source + i * a.source.sample_bytes());
        for (int b = part.block0; b < part.block1; ++b)
            correlate_block<A>(a, k, cut, b / blocks, b % blocks, n, samples, source, weights, packed, runs, sums);
    }
}

}  // namespace
