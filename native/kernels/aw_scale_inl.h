// Packed weights times the factors of one sample; included by aw_inl.h.

namespace {

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

}  // namespace
