// The kernels of aw_kernels.h over a vector type `V` and two arithmetics; included inside the namespace of each instruction
// set (see common_inl.h for why).
//
// V::F, kLanes, zero, set1, load, load_n, store, store_n, store_bf16_n(uint16_t*, F, n), add, mul, fma(a, b, c) = a * b + c,
// V::kPixels[v]: the most result pixels of a register tile with v vectors.

#if LEANCONV_SANITIZE  // checked code that is inlined everywhere takes minutes to build
#define AW_INLINE inline
#else
#define AW_INLINE inline __attribute__((always_inline))
#endif
#if defined(__clang__)
#define AW_UNROLL _Pragma("unroll")
#else
#define AW_UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

using Stored = uint32_t;  // a float or a pair of bfloat16

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline float wide(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    __builtin_memcpy(&f, &bits, sizeof f);
    return f;
}

// One float a word.
struct Floats {
    static constexpr int kHalves = 1;
    using Weight = V::F;
    static AW_INLINE Weight load(const Stored* p) { return V::load(reinterpret_cast<const float*>(p)); }
    static AW_INLINE V::F mac(V::F sum, const char* word, Weight w) {
        float x;
        __builtin_memcpy(&x, word, sizeof x);
        return V::fma(V::set1(x), w, sum);
    }
    static AW_INLINE void store_scaled(Stored* out, const float* w, const V::F* g) {
        V::store(reinterpret_cast<float*>(out), V::mul(V::load(w), g[0]));
    }
    static AW_INLINE void spread(const float* g, V::F* all) { all[0] = V::set1(g[0]); }
    static AW_INLINE void of_lanes(V::F g, V::F* all) { all[0] = g; }
    static AW_INLINE void transpose(V::F (&rows)[V::kLanes]) { V::transpose(rows); }
};

Packing packing(const Correlation& a) {
    const int halves = a.source.words == Words::channel_pairs ? 2 : 1;
    return {a.source.groups, a.lanes, a.source.per_group, a.taps, V::kLanes, halves, a.depthwise};
}

Packing packing(const WeightGradient& a) {
    return {a.source.groups, a.lanes, a.source.per_group, a.taps, V::kLanes, 1, a.depthwise};
}

// --- Packing ----------------------------------------------------------------------------------------------------------

// The scalar way, for any strides: one(packed index from the plane's start, offset in the filters) for each weight.
template <class One>
void each_weight(const Packing& k, const Filters& f, int block, int plane, int64_t origin, const One& one) {
    const int row = k.vectors(block) * V::kLanes, lane0 = block * kVectors * V::kLanes, u = k.halves, words = k.words();
    const int lanes = static_cast<int>(smaller(row, k.lanes - lane0));
    const int first = plane * kWords * u, terms = static_cast<int>(smaller(words * u, k.terms - first));
    const int64_t lane_step = f.lane(), term_step = f.term();
    const int64_t from = origin + lane0 * lane_step + first * term_step;
    for (int t = 0; t < k.taps; ++t)
        for (int i = 0; i < terms; ++i) {
            const int64_t to = (int64_t{t} * words + i / u) * row * u + i % u, at = from + i * term_step + f.tap(t);
            for (int l = 0; l < lanes; ++l) one(to + l * u, at + l * lane_step);
        }
}

// Blocks of kLanes lanes x kLanes terms that lie next to each other are transposed in registers. PACK or unpack.
template <class A, bool PACK>
void transpose_plane(const Packing& k, const Filters& f, int block, int plane, int64_t origin, float* packed) {
    constexpr int N = V::kLanes, U = A::kHalves;
    const int vectors = k.vectors(block), words = k.words(), lane0 = block * kVectors * N;
    const int first = plane * kWords * U, terms = static_cast<int>(smaller(words * U, k.terms - first));
    const int64_t row = int64_t{vectors} * N * U, lane_step = f.lane();
    for (int v = 0; v < vectors; ++v) {
        const int lane = lane0 + v * N, lanes = static_cast<int>(smaller(N, k.lanes - lane));
        float* corner = f.data + origin + lane * lane_step + first;
        for (int t = 0; t < k.taps; ++t)
            for (int i = 0; i < words * U; i += N) {
                const int count = static_cast<int>(smaller(N, terms - i)), rows = static_cast<int>(smaller(N / U, words - i / U));
                float *at = corner + f.tap(t) + i, *to = packed + (int64_t{t} * words + i / U) * row + v * N * U;
                V::F r[N];
                if constexpr (PACK) {
                    for (int l = 0; l < N; ++l) {
                        r[l] = l < lanes && count > 0 ? V::load_n(at + l * lane_step, count) : V::zero();
                        if (l < lanes) __builtin_prefetch(at + l * lane_step + kWords * U);  // the next plane's
                    }
                    A::transpose(r);
                    for (int w = 0; w < rows; ++w)
                        for (int h = 0; h < U; ++h) V::store(to + w * row + h * N, r[w * U + h]);
                } else {
                    for (int w = 0; w < N; ++w) r[w] = w < rows ? V::load(to + w * row) : V::zero();
                    A::transpose(r);
                    for (int l = 0; l < lanes && count > 0; ++l) V::store_n(at + l * lane_step, r[l], count);
                }
            }
    }
}

// Where the filters of a group begin.
int64_t origin_of(const Packing& k, const Filters& f, int group) {
    return int64_t{group} * (f.transposed ? k.terms : k.lanes) * f.strides[0];
}

// Lanes next to each other, term by term.
template <class A>
void copy_plane(const Packing& k, const Filters& f, int block, int plane, int64_t origin, float* packed) {
    constexpr int U = A::kHalves;
    const int row = k.vectors(block) * V::kLanes, lane0 = block * kVectors * V::kLanes, words = k.words();
    const int lanes = static_cast<int>(smaller(row, k.lanes - lane0));
    const int first = plane * kWords * U, terms = static_cast<int>(smaller(words * U, k.terms - first));
    for (int w = 0; w < words; ++w) {
        const float* from = f.data + origin + lane0 + (first + w * U) * f.term();
        for (int t = 0; t < k.taps; ++t) {
            const float* a = from + f.tap(t);
            for (int l = 0; l < lanes; l += kWords) __builtin_prefetch(a + l + kWords * U * f.term());  // the next plane's
            float* to = packed + (int64_t{t} * words + w) * row * U;
            if (U == 1 && w < terms) {
                for (int l = 0; l < lanes; ++l) to[l] = a[l];
            } else if (w * U + 1 < terms) {
                const float* b = a + f.term();
                for (int l = 0; l < lanes; ++l) to[2 * l] = a[l], to[2 * l + 1] = b[l];
            } else if (w * U < terms) {
                for (int l = 0; l < lanes; ++l) to[U * l] = a[l];
            }
        }
    }
}

template <class A>
void pack_with(const Packing& k, const Filters& f, int group, int block, int plane0, int plane1, float* to) {
    const int64_t origin = origin_of(k, f, group), size = k.plane_floats(block);
    for (int p = plane0; p < plane1; ++p, to += size) {
        if (!f.transposed && f.term() == 1) {
            transpose_plane<A, true>(k, f, block, p, origin, to);
            continue;
        }
        __builtin_memset(to, 0, static_cast<size_t>(size) * sizeof(float));
        if (f.transposed && f.lane() == 1)
            copy_plane<A>(k, f, block, p, origin, to);
        else
            each_weight(k, f, block, p, origin, [&](int64_t at, int64_t from) { to[at] = f.data[from]; });
    }
}

void pack_depthwise(const Packing& k, const Filters& f, int block, float* to) {
    for (int t = 0; t < k.taps; ++t)
        for (int i = 0; i < kWords; ++i) {
            const int c = block * kWords + i;
            to[t * kWords + i] = c < k.lanes ? f.data[c * f.strides[0] + f.tap(t)] : 0.0f;
        }
}

// The gradient of the filters; the terms are inputs, words are floats.
void unpack(const Packing& k, const Filters& f, int group, int block, int plane0, int plane1, const float* from) {
    if (k.depthwise) {
        for (int t = 0; t < k.taps; ++t)
            for (int c = block * kWords; c < smaller(k.lanes, (block + 1) * kWords); ++c)
                f.data[c * f.strides[0] + f.tap(t)] = from[t * kWords + c % kWords];
        return;
    }
    const int64_t origin = origin_of(k, f, group), size = k.plane_floats(block);
    for (int p = plane0; p < plane1; ++p, from += size) {
        if (f.term() == 1)
            transpose_plane<Floats, false>(k, f, block, p, origin, const_cast<float*>(from));
        else
            each_weight(k, f, block, p, origin, [&](int64_t at, int64_t to) { f.data[to] = from[at]; });
    }
}

// --- Framed maps -----------------------------------------------------------------------------------------------------

AW_INLINE void put_floats(float* to, const float* from, int n) {
    if (n == kWords) {
        __builtin_memcpy(to, from, kPixel);
        return;
    }
    for (int i = 0; i < kWords; ++i) to[i] = i < n ? from[i] : 0.0f;
}

AW_INLINE void put_floats(float* to, const uint16_t* from, int n) {
    if (n == kWords)
        for (int i = 0; i < kWords; ++i) to[i] = wide(from[i]);
    else
        for (int i = 0; i < kWords; ++i) to[i] = i < n ? wide(from[i]) : 0.0f;
}

AW_INLINE void put_pixel(char* to, const uint16_t* from, int n) {
    if (n == 2 * kWords)
        __builtin_memcpy(to, from, kPixel);
    else if (n == kWords) {
        __builtin_memcpy(to, from, kPixel / 2);
        __builtin_memset(to + kPixel / 2, 0, kPixel / 2);
    } else {
        __builtin_memset(to, 0, kPixel);
        __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(uint16_t));
    }
}

// Two pixels, channel by channel; a null one is zeros.
AW_INLINE void put_pairs(uint32_t* to, const uint16_t* a, const uint16_t* b, int n) {
    if (a && b && n == kWords)
        for (int i = 0; i < kWords; ++i) to[i] = a[i] | static_cast<uint32_t>(b[i]) << 16;
    else
        for (int i = 0; i < kWords; ++i)
            to[i] = i < n ? (a ? a[i] : 0u) | static_cast<uint32_t>(b ? b[i] : 0u) << 16 : 0u;
}

// One plane of a sample.
void frame_plane(const Map& m, int sample, int group, int block, char* to) {
    const int step = m.words == Words::channel_pairs ? 2 * kWords : kWords;
    const int n = static_cast<int>(smaller(step, m.per_group - block * step));
    const int64_t channels = m.channels(), first = int64_t{group} * m.per_group + block * step;
    for (int r = 0; r < m.rows; ++r, to += m.row_bytes()) {
        const int row = r - m.top;
        if (row < 0 || row >= m.height) {
            __builtin_memset(to, 0, static_cast<size_t>(m.row_bytes()));
            continue;
        }
        const int64_t at = (int64_t{sample} * m.height + row) * m.width * channels + first;
        char* pixel = to;
        if (m.words == Words::floats && !m.bf16) {
            const float* data = static_cast<const float*>(m.data) + at;
            for (int s = 0; s < m.slots; ++s, pixel += kPixel)
                if (m.column[s] < 0)
                    __builtin_memset(pixel, 0, kPixel);
                else
                    put_floats(reinterpret_cast<float*>(pixel), data + m.column[s] * channels, n);
            continue;
        }
        const uint16_t* data = static_cast<const uint16_t*>(m.data) + at;
        for (int s = 0; s < m.slots; ++s, pixel += kPixel) {
            const uint16_t* from = m.column[s] < 0 ? nullptr : data + m.column[s] * channels;
            if (m.words == Words::column_pairs) {
                const uint16_t* second = m.partner[s] < 0 ? nullptr : data + m.partner[s] * channels;
                put_pairs(reinterpret_cast<uint32_t*>(pixel), from, second, n);
            } else if (!from)
                __builtin_memset(pixel, 0, kPixel);
            else if (m.words == Words::floats)
                put_floats(reinterpret_cast<float*>(pixel), from, n);
            else
                put_pixel(pixel, from, n);
        }
    }
}

void frame_sample(const Map& m, int sample, int group0, int group1, char* to) {
    for (int g = group0; g < group1; ++g)
        for (int b = 0; b < m.blocks; ++b) frame_plane(m, sample, g, b, to + (int64_t{g} * m.blocks + b) * m.plane_bytes());
}

// --- Scaling ---------------------------------------------------------------------------------------------------------

// Factors of one tap for a block of lanes and one word of `terms` terms, as the packed weights lie.
template <class A>
AW_INLINE void factors(const Gain& g, const float* at, int lane0, int lanes, int term0, int terms, int vectors, V::F* to) {
    constexpr int U = A::kHalves;
    if (g.lane == 0) {  // for all lanes
        float one[U];
        for (int h = 0; h < U; ++h) one[h] = g.term == 0 || h < terms ? at[(term0 + h) * g.term] : 0.0f;
        A::spread(one, to);
        for (int i = U; i < vectors * U; ++i) to[i] = to[i - U];
    } else if (g.term == 0 && g.lane == 1) {
        for (int v = 0; v < vectors; ++v) A::of_lanes(V::load_n(at + lane0 + v * V::kLanes, lanes - v * V::kLanes), to + v * U);
    } else {
        alignas(64) float table[kVectors * V::kLanes * U];
        for (int l = 0; l < vectors * V::kLanes; ++l)
            for (int h = 0; h < U; ++h)
                table[l * U + h] = l < lanes && (g.term == 0 || h < terms) ? at[(lane0 + l) * g.lane + (term0 + h) * g.term] : 0.0f;
        for (int i = 0; i < vectors * U; ++i) to[i] = V::load(table + i * V::kLanes);
    }
}

// The weights of planes [plane0, plane1) of one block for the taps of a phase, times the factors of a sample.
template <class A>
void scale(const Correlation& a, const Packing& k, const Phase& phase, int sample, int group, int block, int plane0,
           int plane1, const float* weights, Stored* out) {
    constexpr int U = A::kHalves;
    const int vectors = k.vectors(block), words = k.words(), row = vectors * V::kLanes;
    const int lane0 = block * kVectors * V::kLanes, lanes = static_cast<int>(smaller(row, a.lanes - lane0));
    const float* base = a.gain.data + sample * a.gain.sample + group * a.gain.group;
    for (int p = plane0; p < plane1; ++p)
        for (int t = 0; t < phase.tap_count; ++t) {
            const int tap = phase.taps[t].weight;
            const float* from = weights + (int64_t{p - plane0} * k.taps + tap) * k.run(block);
            const float* at = base + tap * a.gain.tap;
            V::F g[kVectors * U];
            if (a.gain.term == 0) factors<A>(a.gain, at, lane0, lanes, 0, U, vectors, g);
            for (int w = 0; w < words; ++w) {
                const int term = (p * kWords + w) * U;
                if (a.gain.term != 0) factors<A>(a.gain, at, lane0, lanes, term, k.terms - term, vectors, g);
                for (int v = 0; v < vectors; ++v, out += V::kLanes, from += V::kLanes * U) A::store_scaled(out, from, g + v * U);
            }
        }
}

// --- Correlation -----------------------------------------------------------------------------------------------------

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

// --- Depthwise: vectors of channels ----------------------------------------------------------------------------------

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

// --- Gradients of weights and gains ----------------------------------------------------------------------------------

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

// --- What the table offers -------------------------------------------------------------------------------------------

size_t correlate_scratch(const Correlation& a) {
    if (a.depthwise) return static_cast<size_t>(a.source.plane_bytes() + int64_t{a.taps} * kPixel);
    return static_cast<size_t>(Cut(a, packing(a)).bytes());
}

int correlate_samples(const Correlation& a) { return a.depthwise ? 1 : Cut(a, packing(a)).samples; }

int weight_gradient_samples(const WeightGradient& a) { return a.depthwise ? 1 : GradientCut(a, packing(a)).samples; }

size_t weight_gradient_scratch(const WeightGradient& a) {
    if (a.depthwise)
        return static_cast<size_t>(a.source.plane_bytes() + (int64_t{a.out_height} * a.out_width + a.taps + 1) * kPixel);
    return static_cast<size_t>(GradientCut(a, packing(a)).bytes());
}

}  // namespace
