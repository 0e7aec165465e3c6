// The kernels that are written once for every instruction set, over a small vector type `V`. Each instruction set's
// source file defines `V` and the two convolution tiles inside a namespace of its own and then includes this file there:
// no symbol is shared between files that are compiled with different flags.
//
// V::F      kLanes floats          V::kLanes   8 or 16          V::kMasked   load_n and store_n cost no more than load and store
// V::load / load_n(p, n) / store / store_n, set1, add, mul, min, max, cvt (int32 -> float), ge0 -> bits

#define KERNEL_INLINE inline __attribute__((always_inline))
#define KERNEL_NOINLINE __attribute__((noinline))

namespace {

constexpr std::array<float, 32> filled(float x) {
    std::array<float, 32> all{};
    for (float& one : all) one = x;
    return all;
}

// (min > x ? min : x) and (max < x ? max : x): NaN goes through, as in PyTorch.
inline V::F clip(V::F x, V::F lo, V::F hi) { return V::min(hi, V::max(lo, x)); }

inline float transcendental(StepKind kind, float x) {
    switch (kind) {
        case StepKind::sigmoid: return 1.0f / (1.0f + std::exp(-x));
        case StepKind::silu: return x / (1.0f + std::exp(-x));
        case StepKind::hard_sigmoid: return std::min(std::max(x + 3.0f, 0.0f), 6.0f) / 6.0f;
        case StepKind::hard_swish: return x * std::min(std::max(x + 3.0f, 0.0f), 6.0f) / 6.0f;
        default: return x;
    }
}

inline V::F prelu(V::F x, V::F slope) { return V::select_ge0(x, x, V::mul(x, slope)); }

// Bits of up to 64 channels of one pixel; bits from `valid` on are cut.
inline void write_bits(uint32_t* words, uint64_t bits, int valid) {
    if (valid < 64) bits &= (uint64_t{1} << valid) - 1;
    words[0] = static_cast<uint32_t>(bits);
    if (valid > 32) words[1] = static_cast<uint32_t>(bits >> 32);
}

// The common shape of an epilogue, in this order: affine, up to two adds, affine, clip or prelu, then a store and signs.
// It runs in registers; anything else goes step by step through a row of 64 floats.
struct FusedEpilogue {
    static constexpr int kSigns = 4;
    const Step* affine = nullptr;
    const Step* add[2] = {nullptr, nullptr};
    const Step* after = nullptr;  // the affine behind the adds
    const Step* clip = nullptr;
    const Step* prelu = nullptr;
    const Step* store = nullptr;
    const Step* sign[kSigns] = {};
    int signs = 0;
    bool valid = true;
    // The hot ones among them: they run without a branch.
    enum Shape : uint8_t {
        kOther, kPlainStore, kPlainStoreSign, kStore, kSign, kStoreSign, kAddStore, kAddStoreSign, kAdd2Store, kAdd2StoreSign,
        kMean, kMeanSign, kPlainMean, kPlainStoreScaledSign
    } shape = kOther;

    explicit FusedEpilogue(const Epilogue& e) {
        int stage = 0;
        for (int i = 0; i < e.count; ++i) {
            const Step* s = &e.steps[i];
            switch (s->kind) {
                case StepKind::affine: stage == 0 ? take(affine, s, stage, 1) : take(after, s, stage, 4); break;
                case StepKind::add: stage < 2 ? take(add[0], s, stage, 2) : take(add[1], s, stage, 3); break;
                case StepKind::clip: take(clip, s, stage, 5); break;
                case StepKind::prelu: take(prelu, s, stage, 5); break;
                // store and sign leave x as it is, so their mutual order is free
                case StepKind::store:
                    valid = valid && !store;
                    store = s, stage = 6;
                    break;
                case StepKind::sign:
                    if (signs < kSigns) sign[signs] = s;
                    valid = valid && ++signs <= kSigns;
                    stage = 6;
                    break;
                default: valid = false;
            }
        }
        if (!valid || clip || prelu || signs > 1) return;
        if (signs && (sign[0]->scale || sign[0]->bias)) {
            const bool whole = sign[0]->scale && sign[0]->bias;
            if (whole && store && !affine && !add[0]) shape = kPlainStoreScaledSign;
            return;
        }
        if (!affine && !after && !add[0] && store) shape = signs ? kPlainStoreSign : kPlainStore;
        const bool mean = after && add[1] && after->scale && !after->bias && store;
        if (!affine && mean && !signs) shape = kPlainMean;
        if (!affine || !affine->scale || !affine->bias || (add[0] && !store) || (after && !mean)) return;
        if (mean) shape = signs ? kMeanSign : kMean;
        else if (add[1]) shape = signs ? kAdd2StoreSign : kAdd2Store;
        else if (add[0]) shape = signs ? kAddStoreSign : kAddStore;
        else if (store) shape = signs ? kStoreSign : kStore;
        else if (signs) shape = kSign;
    }

private:
    void take(const Step*& slot, const Step* s, int& stage, int order) {
        if (slot || stage >= order) valid = false;
        slot = s;
        stage = order;
    }
};

struct EpilogueRunner {
    const Epilogue& e;
    FusedEpilogue fused;

    // Addresses of the hot forms, side by side.
    struct Hot {
        const float *scale = nullptr, *bias = nullptr, *after = nullptr, *sign_scale = nullptr, *sign_bias = nullptr;
        const float* residual[2] = {nullptr, nullptr};
        float* out = nullptr;
        uint32_t* bits = nullptr;
        const int32_t* bit_offset = nullptr;
        int64_t residual_stride[2] = {0, 0}, out_stride = 0;
    } hot;

    explicit EpilogueRunner(const Epilogue& epilogue) : e(epilogue), fused(epilogue) {
        if (fused.affine) hot.scale = fused.affine->scale, hot.bias = fused.affine->bias;
        if (fused.after) hot.after = fused.after->scale;
        for (int i = 0; i < 2 && fused.add[i]; ++i)
            hot.residual[i] = fused.add[i]->real, hot.residual_stride[i] = fused.add[i]->pixel_stride;
        if (fused.store) hot.out = fused.store->real, hot.out_stride = fused.store->pixel_stride;
        if (fused.signs) {
            const Step& sign = *fused.sign[0];
            hot.bits = sign.bits, hot.bit_offset = sign.bit_offset, hot.sign_scale = sign.scale, hot.sign_bias = sign.bias;
        }
    }

    // One pixel, channels [c0, c0 + VECTORS * kLanes), as far as they are valid: `get(v)` yields vector v of the incoming
    // values.
    template <int VECTORS = kBlock / V::kLanes, class Get>
    KERNEL_INLINE void pixel(int32_t p, int c0, Get get) const {
        const int count = std::min(kBlock, e.channels - c0);
        if (count == VECTORS * V::kLanes) return run<VECTORS, false>(p, c0, count, get);
        if constexpr (V::kMasked)
            if (count > (VECTORS - 1) * V::kLanes) return run<VECTORS, true>(p, c0, count, get);
        run_other(p, c0, count, get);
    }

private:
    enum Sign { kNoSign, kPlainSign, kScaledSign };

    template <int VECTORS, bool PARTIAL, class Get>
    KERNEL_INLINE void run(int32_t p, int c0, int count, Get get) const {
        const int rest = count - (VECTORS - 1) * V::kLanes;
        using Fused = FusedEpilogue;
        switch (fused.shape) {
            case Fused::kPlainStore: return run_shape<VECTORS, PARTIAL, false, 0, false, true, kNoSign>(p, c0, rest, get);
            case Fused::kPlainStoreSign: return run_shape<VECTORS, PARTIAL, false, 0, false, true, kPlainSign>(p, c0, rest, get);
            case Fused::kStore: return run_shape<VECTORS, PARTIAL, true, 0, false, true, kNoSign>(p, c0, rest, get);
            case Fused::kSign: return run_shape<VECTORS, PARTIAL, true, 0, false, false, kPlainSign>(p, c0, rest, get);
            case Fused::kStoreSign: return run_shape<VECTORS, PARTIAL, true, 0, false, true, kPlainSign>(p, c0, rest, get);
            case Fused::kAddStore: return run_shape<VECTORS, PARTIAL, true, 1, false, true, kNoSign>(p, c0, rest, get);
            case Fused::kAddStoreSign: return run_shape<VECTORS, PARTIAL, true, 1, false, true, kPlainSign>(p, c0, rest, get);
            case Fused::kAdd2Store: return run_shape<VECTORS, PARTIAL, true, 2, false, true, kNoSign>(p, c0, rest, get);
            case Fused::kAdd2StoreSign: return run_shape<VECTORS, PARTIAL, true, 2, false, true, kPlainSign>(p, c0, rest, get);
            case Fused::kMean: return run_shape<VECTORS, PARTIAL, true, 2, true, true, kNoSign>(p, c0, rest, get);
            case Fused::kMeanSign: return run_shape<VECTORS, PARTIAL, true, 2, true, true, kPlainSign>(p, c0, rest, get);
            case Fused::kPlainMean: return run_shape<VECTORS, PARTIAL, false, 2, true, true, kNoSign>(p, c0, rest, get);
            case Fused::kPlainStoreScaledSign: return run_shape<VECTORS, PARTIAL, false, 0, false, true, kScaledSign>(p, c0, rest, get);
            default: run_other(p, c0, count, get);
        }
    }

    // The hot shapes without a branch: [x * scale + bias] [+ residuals] [* after], stored and/or signed. PARTIAL: the last
    // vector has `rest` channels.
    template <int VECTORS, bool PARTIAL, bool AFFINE, int ADDS, bool AFTER, bool STORE, Sign SIGN, class Get>
    KERNEL_INLINE void run_shape(int32_t p, int c0, int rest, Get get) const {
        const float* residual[2];
        for (int i = 0; i < ADDS; ++i) residual[i] = hot.residual[i] + p * hot.residual_stride[i] + c0;
        float* out = hot.out + p * hot.out_stride + c0;
        uint64_t bits = 0;
        for (int v = 0; v < VECTORS; ++v) {
            const int c = v * V::kLanes;
            const bool whole = !PARTIAL || v + 1 < VECTORS;
            V::F x = get(v);
            if constexpr (AFFINE) x = V::add(V::mul(x, V::load(hot.scale + c0 + c)), V::load(hot.bias + c0 + c));
            for (int i = 0; i < ADDS; ++i) x = V::add(x, whole ? V::load(residual[i] + c) : V::load_n(residual[i] + c, rest));
            if constexpr (AFTER) x = V::mul(x, V::load(hot.after + c0 + c));
            if constexpr (STORE) whole ? V::store(out + c, x) : V::store_n(out + c, x, rest);
            if constexpr (SIGN == kScaledSign)
                x = V::add(V::mul(x, V::load(hot.sign_scale + c0 + c)), V::load(hot.sign_bias + c0 + c));
            if constexpr (SIGN != kNoSign) bits |= static_cast<uint64_t>(V::ge0(x)) << c;
        }
        if constexpr (SIGN != kNoSign) write_bits(hot.bits + hot.bit_offset[p] + c0 / 32, bits, (VECTORS - 1) * V::kLanes + rest);
    }

    template <class Get>
    KERNEL_INLINE void run_other(int32_t p, int c0, int count, Get get) const {
        fused.valid ? run_vectors<1>(p, c0, count, get) : run_steps(p, c0, count, get);
    }

    template <int VECTORS, class Get>
    KERNEL_INLINE void run_vectors(int32_t p, int c0, int count, Get get) const {
        if constexpr (VECTORS * V::kLanes < kBlock)
            if (count > VECTORS * V::kLanes) return run_vectors<VECTORS + 1>(p, c0, count, get);
        run_fused<VECTORS>(p, c0, count, get);
    }

    template <int VECTORS>
    static KERNEL_INLINE void affine(V::F (&x)[VECTORS], const Step& s, int c0) {
        if (s.scale)
            for (int v = 0; v < VECTORS; ++v) x[v] = V::mul(x[v], V::load(s.scale + c0 + v * V::kLanes));
        if (s.bias)
            for (int v = 0; v < VECTORS; ++v) x[v] = V::add(x[v], V::load(s.bias + c0 + v * V::kLanes));
    }

    // Any channel count, any of the fused steps. Only the last vector may have fewer than kLanes channels.
    template <int VECTORS, class Get>
    KERNEL_NOINLINE void run_fused(int32_t p, int c0, int count, Get get) const {
        const int rest = count - (VECTORS - 1) * V::kLanes;
        const auto lanes = [=](int v) { return v + 1 < VECTORS ? V::kLanes : rest; };
        V::F x[VECTORS];
        for (int v = 0; v < VECTORS; ++v) x[v] = get(v);
        if (fused.affine) affine(x, *fused.affine, c0);
        for (const Step* add : fused.add) {
            if (!add) break;
            const float* other = add->real + int64_t{p} * add->pixel_stride + c0;
            for (int v = 0; v < VECTORS; ++v) x[v] = V::add(x[v], V::load_n(other + v * V::kLanes, lanes(v)));
        }
        if (fused.after) affine(x, *fused.after, c0);
        if (fused.clip)
            for (int v = 0; v < VECTORS; ++v) x[v] = clip(x[v], V::set1(fused.clip->min), V::set1(fused.clip->max));
        if (fused.prelu)
            for (int v = 0; v < VECTORS; ++v) x[v] = prelu(x[v], V::load(fused.prelu->scale + c0 + v * V::kLanes));
        if (fused.store) {
            float* out = fused.store->real + int64_t{p} * fused.store->pixel_stride + c0;
            for (int v = 0; v < VECTORS; ++v) V::store_n(out + v * V::kLanes, x[v], lanes(v));
        }
        for (int i = 0; i < fused.signs; ++i) {
            const Step& s = *fused.sign[i];
            V::F y[VECTORS];
            for (int v = 0; v < VECTORS; ++v) y[v] = x[v];
            affine(y, s, c0);
            uint64_t bits = 0;
            for (int v = 0; v < VECTORS; ++v) bits |= static_cast<uint64_t>(V::ge0(y[v])) << (v * V::kLanes);
            write_bits(s.bits + s.bit_offset[p] + c0 / 32, bits, count);
        }
    }

    template <class Get>
    KERNEL_NOINLINE void run_steps(int32_t p, int c0, int count, Get get) const {
        alignas(64) float row[kBlock];
        const int vectors = (count + V::kLanes - 1) / V::kLanes;
        for (int v = 0; v < vectors; ++v) V::store(row + v * V::kLanes, get(v));
        for (int i = 0; i < e.count; ++i) {
            const Step& s = e.steps[i];
            const float* other = s.real ? s.real + int64_t{p} * s.pixel_stride + c0 : nullptr;
            uint64_t bits = 0;
            for (int v = 0; v < vectors; ++v) {
                const int c = v * V::kLanes;
                const int n = std::min(V::kLanes, count - c);
                V::F x = V::load(row + c);
                switch (s.kind) {
                    case StepKind::affine:
                    case StepKind::sign:
                        if (s.scale) x = V::mul(x, V::load(s.scale + c0 + c));
                        if (s.bias) x = V::add(x, V::load(s.bias + c0 + c));
                        if (s.kind == StepKind::sign) {
                            bits |= static_cast<uint64_t>(V::ge0(x)) << c;
                            continue;  // x itself goes on unchanged
                        }
                        break;
                    case StepKind::add: x = V::add(x, V::load_n(other + c, n)); break;
                    case StepKind::mul: x = V::mul(x, V::load_n(other + c, n)); break;
                    case StepKind::clip: x = clip(x, V::set1(s.min), V::set1(s.max)); break;
                    case StepKind::prelu: x = prelu(x, V::load(s.scale + c0 + c)); break;
                    case StepKind::store: V::store_n(s.real + int64_t{p} * s.pixel_stride + c0 + c, x, n); continue;
                    default:
                        for (int k = 0; k < V::kLanes; ++k) row[c + k] = transcendental(s.kind, row[c + k]);
                        continue;
                }
                V::store(row + c, x);
            }
            if (s.kind == StepKind::sign) write_bits(s.bits + s.bit_offset[p] + c0 / 32, bits, count);
        }
    }
};

// Integer sums of one pixel's block to the epilogue.
template <int VECTORS = kBlock / V::kLanes>
KERNEL_INLINE void finish_binary(const EpilogueRunner& run, int32_t pixel, int block, const int32_t* base, const int32_t* pop) {
    run.pixel<VECTORS>(pixel, block * kBlock, [=](int v) { return V::base_minus_twice(base + v * V::kLanes, pop + v * V::kLanes); });
}

template <int VECTORS = kBlock / V::kLanes>
KERNEL_INLINE void finish_real(const EpilogueRunner& run, int32_t pixel, int block, const float* sums) {
    run.pixel<VECTORS>(pixel, block * kBlock, [=](int v) { return V::load(sums + v * V::kLanes); });
}

// The part of one pooling window that lies inside the picture: taps [begin, end) of each axis.
struct Window {
    int y0, x0, ky0, ky1, kx0, kx1, divisor;

    Window(const PoolArgs& a, int pixel) {
        y0 = pixel / a.out_width * a.stride[0] - a.padding[0];
        x0 = pixel % a.out_width * a.stride[1] - a.padding[1];
        ky0 = first_inside(y0, a.dilation[0]), ky1 = end_inside(y0, a.height, a.kernel[0], a.dilation[0]);
        kx0 = first_inside(x0, a.dilation[1]), kx1 = end_inside(x0, a.width, a.kernel[1], a.dilation[1]);
        // average: the divisor counts the window inside the padded picture, or inside the picture itself
        const int y1 = std::min(y0 + a.kernel[0], a.height + a.padding[0]);
        const int x1 = std::min(x0 + a.kernel[1], a.width + a.padding[1]);
        divisor = a.count_include_pad ? (y1 - y0) * (x1 - x0) : (ky1 - ky0) * (kx1 - kx0);
    }

private:
    static int first_inside(int start, int dilation) { return start >= 0 ? 0 : (dilation - 1 - start) / dilation; }
    static int end_inside(int start, int size, int kernel, int dilation) {
        return start >= size ? 0 : std::min(kernel, (size - 1 - start) / dilation + 1);
    }
};

// VECTORS vectors of channels [c, ...) of one window; `n` valid lanes in the last. SCALED: every tap through the affine.
template <int VECTORS, bool MAX, bool SCALED>
KERNEL_INLINE void pool_window(const PoolArgs& a, const Window& w, int c, int n, float* row) {
    V::F sum[VECTORS], scale[VECTORS], bias[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        sum[v] = V::set1(MAX ? -std::numeric_limits<float>::infinity() : 0.0f);
        if constexpr (SCALED) scale[v] = V::load(a.scale + c + v * V::kLanes), bias[v] = V::load(a.bias + c + v * V::kLanes);
    }
    const float* input = a.input + c;
    for (int ky = w.ky0; ky < w.ky1; ++ky) {
        const int64_t y = w.y0 + ky * a.dilation[0];
        for (int kx = w.kx0; kx < w.kx1; ++kx) {
            const float* at = input + (y * a.width + w.x0 + kx * a.dilation[1]) * a.pixel_stride;
            for (int v = 0; v < VECTORS; ++v) {
                V::F x = v + 1 < VECTORS || n == V::kLanes ? V::load(at + v * V::kLanes) : V::load_n(at + v * V::kLanes, n);
                if constexpr (SCALED) x = V::add(V::mul(x, scale[v]), bias[v]);
                sum[v] = MAX ? V::max(sum[v], x) : V::add(sum[v], x);  // NaN is taken from the picture
            }
        }
    }
    for (int v = 0; v < VECTORS; ++v)
        V::store(row + v * V::kLanes, MAX ? sum[v] : V::div(sum[v], V::set1(static_cast<float>(w.divisor))));
}

template <bool MAX, bool SCALED>
void pool_pixels(const PoolArgs& a, int begin, int end) {
    constexpr int kGroup = 32 / V::kLanes;  // vectors at a time
    const EpilogueRunner run(*a.epilogue);
    alignas(64) float row[kBlock];
    for (int p = begin; p < end; ++p) {
        const Window window(a, p);
        for (int c0 = 0; c0 < a.channels; c0 += kBlock) {
            const int count = std::min(kBlock, a.channels - c0);
            int c = 0;
            for (; c + 32 <= count; c += 32) pool_window<kGroup, MAX, SCALED>(a, window, c0 + c, V::kLanes, row + c);
            for (; c < count; c += V::kLanes)
                pool_window<1, MAX, SCALED>(a, window, c0 + c, std::min(V::kLanes, count - c), row + c);
            finish_real(run, p, c0 / kBlock, row);
        }
    }
}

void pool(const PoolArgs& a, int begin, int end) {
    if (a.scale)
        a.kind == PoolKind::max ? pool_pixels<true, true>(a, begin, end) : pool_pixels<false, true>(a, begin, end);
    else
        a.kind == PoolKind::max ? pool_pixels<true, false>(a, begin, end) : pool_pixels<false, false>(a, begin, end);
}

// Signs alone, of a map in memory: PIXELS at a time, so that their scales and biases are loaded once.
template <int PIXELS>
int sign_pixels(const ElementwiseArgs& a, int begin, int end) {
    constexpr int kVectors = 32 / V::kLanes;
    alignas(64) static constexpr std::array<float, 32> kOnes = filled(1.0f), kZeros = filled(-0.0f);  // x + -0.0 is x, for 0.0 too
    int p = begin;
    for (; p + PIXELS <= end; p += PIXELS)
        for (int c = 0; c < a.channels; c += 32) {
            const float* at = a.input + int64_t{p} * a.pixel_stride + c;
            const int valid = std::min(32, a.channels - c);
            V::F x[PIXELS][kVectors];
            for (int i = 0; i < PIXELS; ++i)
                for (int v = 0; v < kVectors; ++v) {
                    const float* from = at + int64_t{i} * a.pixel_stride + v * V::kLanes;
                    x[i][v] = valid == 32 ? V::load(from) : V::load_n(from, std::clamp(valid - v * V::kLanes, 0, V::kLanes));
                }
            for (int k = 0; k < a.epilogue->count; ++k) {
                const Step& s = a.epilogue->steps[k];
                const float* scale = s.scale ? s.scale + c : kOnes.data();
                const float* bias = s.bias ? s.bias + c : kZeros.data();
                uint32_t bits[PIXELS] = {};
                for (int v = 0; v < kVectors; ++v) {
                    const V::F m = V::load(scale + v * V::kLanes), n = V::load(bias + v * V::kLanes);
                    for (int i = 0; i < PIXELS; ++i) bits[i] |= V::ge0(V::add(V::mul(x[i][v], m), n)) << (v * V::kLanes);
                }
                for (int i = 0; i < PIXELS; ++i)
                    s.bits[s.bit_offset[p + i] + c / 32] = valid == 32 ? bits[i] : bits[i] & ((uint32_t{1} << valid) - 1);
            }
        }
    if constexpr (PIXELS > 1) p = sign_pixels<1>(a, p, end);
    return p;
}

bool only_signs(const Epilogue& e) {
    return e.count > 0 && std::all_of(e.steps, e.steps + e.count, [](const Step& s) { return s.kind == StepKind::sign; });
}

void elementwise(const ElementwiseArgs& a, int begin, int end) {
    if (only_signs(*a.epilogue)) {
        sign_pixels<4>(a, begin, end);
        return;
    }
    const EpilogueRunner run(*a.epilogue);
    for (int p = begin; p < end; ++p)
        for (int c0 = 0; c0 < a.channels; c0 += kBlock) {
            const float* at = a.input + int64_t{p} * a.pixel_stride + c0;
            const int count = std::min(kBlock, a.channels - c0);
            run.pixel(p, c0, [=](int v) {
                return V::load_n(at + v * V::kLanes, std::min(V::kLanes, count - v * V::kLanes));
            });
        }
}

inline int32_t pixel_of(const int32_t* table, int job) { return table ? table[job] : job; }

}  // namespace
