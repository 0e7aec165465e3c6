// Filters as the tiles read them (Packing in aw_kernels.h), and the way back for their gradients; included by aw_inl.h.

namespace {

Packing packing(const Correlation& a) {
    const int halves = a.source.words == Words::channel_pairs ? 2 : 1;
    return {a.source.groups, a.lanes, a.source.per_group, a.taps, V::kLanes, halves, a.depthwise};
}

Packing packing(const WeightGradient& a) {
    return {a.source.groups, a.lanes, a.source.per_group, a.taps, V::kLanes, 1, a.depthwise};
}

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

}  // namespace
