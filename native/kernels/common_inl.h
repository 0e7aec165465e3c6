// The kernels that are written once for every instruction set, over a small vector type `V`. Each instruction set's
// source file defines `V` and the two convolution tiles inside a namespace of its own and then includes this file there:
// no symbol is shared between files that are compiled with different flags.
//
// V::F      kLanes floats          V::kLanes   8 or 16
// V::load / load_n(p, n) / store / store_n, set1, add, mul, min, max, cvt (int32 -> float), ge0 -> bits

#define KERNEL_INLINE inline __attribute__((always_inline))
#define KERNEL_NOINLINE __attribute__((noinline))

namespace {

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

// The common shape of an epilogue: affine, add, clip or prelu, store, sign, each at most once and in that order. It
// runs in registers; anything else goes step by step through a row of 64 floats.
struct FusedEpilogue {
    const Step* affine = nullptr;
    const Step* add = nullptr;
    const Step* clip = nullptr;
    const Step* prelu = nullptr;
    const Step* store = nullptr;
    const Step* sign = nullptr;
    bool valid = true;
    enum WholeBlock { kNone, kPlainStore, kPlainStoreSign, kStore, kSign, kStoreSign, kAddStore, kAddStoreSign } whole_block = kNone;

    explicit FusedEpilogue(const Epilogue& e) {
        int stage = 0;
        for (int i = 0; i < e.count; ++i) {
            const Step* s = &e.steps[i];
            switch (s->kind) {
                case StepKind::affine: take(affine, s, stage, 1); break;
                case StepKind::add: take(add, s, stage, 2); break;
                case StepKind::clip: take(clip, s, stage, 3); break;
                case StepKind::prelu: take(prelu, s, stage, 3); break;
                // store and sign leave x as it is, so their mutual order is free
                case StepKind::store: take_output(store, s, stage); break;
                case StepKind::sign: take_output(sign, s, stage); break;
                default: valid = false;
            }
        }
        const bool plain_sign = sign && !sign->scale && !sign->bias;
        if (!valid || clip || prelu || (sign && !plain_sign)) return;
        if (!affine && !add && store) whole_block = sign ? kPlainStoreSign : kPlainStore;
        if (!affine || !affine->scale || !affine->bias || (add && !store)) return;
        if (add) whole_block = sign ? kAddStoreSign : kAddStore;
        else if (store) whole_block = sign ? kStoreSign : kStore;
        else if (sign) whole_block = kSign;
    }

private:
    void take(const Step*& slot, const Step* s, int& stage, int order) {
        if (slot || stage >= order) valid = false;
        slot = s;
        stage = order;
    }
    void take_output(const Step*& slot, const Step* s, int& stage) {
        if (slot) valid = false;
        slot = s;
        stage = 4;
    }
};

struct EpilogueRunner {
    const Epilogue& e;
    FusedEpilogue fused;

    // Addresses of the hot forms, side by side.
    struct Hot {
        const float *scale = nullptr, *bias = nullptr, *residual = nullptr;
        float* out = nullptr;
        uint32_t* bits = nullptr;
        const int32_t* bit_offset = nullptr;
        int64_t residual_stride = 0, out_stride = 0;
    } hot;

    explicit EpilogueRunner(const Epilogue& epilogue) : e(epilogue), fused(epilogue) {
        if (fused.affine) hot.scale = fused.affine->scale, hot.bias = fused.affine->bias;
        if (fused.add) hot.residual = fused.add->real, hot.residual_stride = fused.add->pixel_stride;
        if (fused.store) hot.out = fused.store->real, hot.out_stride = fused.store->pixel_stride;
        if (fused.sign) hot.bits = fused.sign->bits, hot.bit_offset = fused.sign->bit_offset;
    }

    // One pixel, channels [c0, c0 + lanes): `get(v)` yields vector v of the incoming values.
    template <class Get>
    KERNEL_INLINE void pixel(int32_t p, int c0, Get get) const {
        const int count = std::min(kBlock, e.channels - c0);
        switch (count == kBlock ? fused.whole_block : FusedEpilogue::kNone) {
            case FusedEpilogue::kPlainStore: return run_whole_block<false, false, true, false>(p, c0, get);
            case FusedEpilogue::kPlainStoreSign: return run_whole_block<false, false, true, true>(p, c0, get);
            case FusedEpilogue::kStore: return run_whole_block<true, false, true, false>(p, c0, get);
            case FusedEpilogue::kSign: return run_whole_block<true, false, false, true>(p, c0, get);
            case FusedEpilogue::kStoreSign: return run_whole_block<true, false, true, true>(p, c0, get);
            case FusedEpilogue::kAddStore: return run_whole_block<true, true, true, false>(p, c0, get);
            case FusedEpilogue::kAddStoreSign: return run_whole_block<true, true, true, true>(p, c0, get);
            default: return fused.valid ? run_fused(p, c0, count, get) : run_steps(p, c0, count, get);
        }
    }

private:
    // The hot ones, 64 channels, without a branch: [x * scale + bias] [+ residual], stored and/or signed.
    template <bool AFFINE, bool ADD, bool STORE, bool SIGN, class Get>
    KERNEL_INLINE void run_whole_block(int32_t p, int c0, Get get) const {
        const float* scale = hot.scale + c0;
        const float* bias = hot.bias + c0;
        const float* residual = hot.residual + p * hot.residual_stride + c0;
        float* out = hot.out + p * hot.out_stride + c0;
        uint32_t* words = SIGN ? hot.bits + hot.bit_offset[p] + c0 / 32 : nullptr;
        for (int c = 0; c < kBlock; c += 32) {
            uint32_t bits = 0;
            for (int i = 0; i < 32; i += V::kLanes) {
                V::F x = get((c + i) / V::kLanes);
                if constexpr (AFFINE) x = V::add(V::mul(x, V::load(scale + c + i)), V::load(bias + c + i));
                if constexpr (ADD) x = V::add(x, V::load(residual + c + i));
                if constexpr (STORE) V::store(out + c + i, x);
                if constexpr (SIGN) bits |= V::ge0(x) << i;
            }
            if constexpr (SIGN) words[c / 32] = bits;
        }
    }

    // Any channel count, any of the fused steps.
    template <class Get>
    KERNEL_NOINLINE void run_fused(int32_t p, int c0, int count, Get get) const {
        const float* scale = fused.affine && fused.affine->scale ? fused.affine->scale + c0 : nullptr;
        const float* bias = fused.affine && fused.affine->bias ? fused.affine->bias + c0 : nullptr;
        const float* residual = fused.add ? fused.add->real + int64_t{p} * fused.add->pixel_stride + c0 : nullptr;
        const float* slope = fused.prelu ? fused.prelu->scale + c0 : nullptr;
        float* out = fused.store ? fused.store->real + int64_t{p} * fused.store->pixel_stride + c0 : nullptr;
        const Step* sign = fused.sign;
        uint64_t bits = 0;
        for (int c = 0; c < count; c += V::kLanes) {
            const int n = std::min(V::kLanes, count - c);
            V::F x = get(c / V::kLanes);
            if (scale) x = V::mul(x, V::load(scale + c));
            if (bias) x = V::add(x, V::load(bias + c));
            if (residual) x = V::add(x, V::load_n(residual + c, n));
            if (fused.clip) x = clip(x, V::set1(fused.clip->min), V::set1(fused.clip->max));
            if (slope) x = prelu(x, V::load(slope + c));
            if (out) V::store_n(out + c, x, n);
            if (sign) {
                if (sign->scale) x = V::mul(x, V::load(sign->scale + c0 + c));
                if (sign->bias) x = V::add(x, V::load(sign->bias + c0 + c));
                bits |= static_cast<uint64_t>(V::ge0(x)) << c;
            }
        }
        if (sign) write_bits(sign->bits + sign->bit_offset[p] + c0 / 32, bits, count);
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
KERNEL_INLINE void finish_binary(const EpilogueRunner& run, int32_t pixel, int block, const int32_t* base, const int32_t* pop) {
    run.pixel(pixel, block * kBlock, [=](int v) { return V::base_minus_twice(base + v * V::kLanes, pop + v * V::kLanes); });
}

KERNEL_INLINE void finish_real(const EpilogueRunner& run, int32_t pixel, int block, const float* sums) {
    run.pixel(pixel, block * kBlock, [=](int v) { return V::load(sums + v * V::kLanes); });
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

// VECTORS vectors of channels of one window, from `input` (its first channel) on; `n` valid lanes in the last.
template <int VECTORS, bool MAX>
KERNEL_INLINE void pool_window(const PoolArgs& a, const Window& w, const float* input, int n, float* row) {
    V::F sum[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sum[v] = V::set1(MAX ? -std::numeric_limits<float>::infinity() : 0.0f);
    for (int ky = w.ky0; ky < w.ky1; ++ky) {
        const int64_t y = w.y0 + ky * a.dilation[0];
        for (int kx = w.kx0; kx < w.kx1; ++kx) {
            const float* at = input + (y * a.width + w.x0 + kx * a.dilation[1]) * a.pixel_stride;
            for (int v = 0; v < VECTORS; ++v) {
                const V::F x = v + 1 < VECTORS || n == V::kLanes ? V::load(at + v * V::kLanes) : V::load_n(at + v * V::kLanes, n);
                sum[v] = MAX ? V::max(sum[v], x) : V::add(sum[v], x);  // NaN is taken from the picture
            }
        }
    }
    for (int v = 0; v < VECTORS; ++v)
        V::store(row + v * V::kLanes, MAX ? sum[v] : V::div(sum[v], V::set1(static_cast<float>(w.divisor))));
}

template <bool MAX>
void pool_pixels(const PoolArgs& a, int begin, int end) {
    constexpr int kGroup = 32 / V::kLanes;  // vectors at a time
    const EpilogueRunner run(*a.epilogue);
    alignas(64) float row[kBlock];
    for (int p = begin; p < end; ++p) {
        const Window window(a, p);
        for (int c0 = 0; c0 < a.channels; c0 += kBlock) {
            const int count = std::min(kBlock, a.channels - c0);
            int c = 0;
            for (; c + 32 <= count; c += 32) pool_window<kGroup, MAX>(a, window, a.input + c0 + c, V::kLanes, row + c);
            for (; c < count; c += V::kLanes)
                pool_window<1, MAX>(a, window, a.input + c0 + c, std::min(V::kLanes, count - c), row + c);
            finish_real(run, p, c0 / kBlock, row);
        }
    }
}

void pool(const PoolArgs& a, int begin, int end) {
    a.kind == PoolKind::max ? pool_pixels<true>(a, begin, end) : pool_pixels<false>(a, begin, end);
}

void elementwise(const ElementwiseArgs& a, int begin, int end) {
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
