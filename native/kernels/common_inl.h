// The kernels that are written once for every instruction set, over a small vector type `V`. Each instruction set's
// source file defines `V` and the two convolution tiles inside a namespace of its own and then includes this file there:
// no symbol is shared between files that are compiled with different flags.
//
// V::F      kLanes floats          V::kLanes   8, 16 or 32
// V::load / load_n(p, n) / store / store_n of float* and Bf16*, set1, add, mul, min, max, ge0 -> bits; write_signs where
// that is quicker
// V::fma(a, b, c): a * b + c, rounded once
// V::I      kLanes integers, with load_int / store_int, set1_int, add_int, max_int, xor_int, to_float
// V::max_or(x, y): y where x is NaN
// V::store_bytes_n(p, x, zero, n): x rounded to an integer, half to even, plus `zero`

#if LEANCONV_SANITIZE || LEANCONV_PORTABLE  // checked code, and loops in the place of vectors, take minutes to build where all is inlined
#define KERNEL_INLINE inline
#define KERNEL_LAMBDA
#else
#define KERNEL_INLINE inline __attribute__((always_inline))
#define KERNEL_LAMBDA __attribute__((always_inline))
#endif
#define KERNEL_NOINLINE __attribute__((noinline))

namespace {

// f(0), f(1) ... with constants for indices: arrays of vectors that are only accessed so stay in registers.
template <int N, class F>
KERNEL_INLINE void unrolled(F f) {
    [&]<int... I>(std::integer_sequence<int, I...>) KERNEL_LAMBDA {
        (f(std::integral_constant<int, I>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

constexpr std::array<float, 32> filled(float x) {
    std::array<float, 32> all{};
    for (float& one : all) one = x;
    return all;
}

// (min > x ? min : x) and (max < x ? max : x): NaN goes through, as in PyTorch.
inline V::F clip(V::F x, V::F lo, V::F hi) { return V::min(hi, V::max(lo, x)); }

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
inline float silu(float x) { return x / (1.0f + std::exp(-x)); }

// relu6(x + 3)
inline V::F hard(V::F x) { return clip(V::add(x, V::set1(3.0f)), V::set1(0.0f), V::set1(6.0f)); }

inline V::F prelu(V::F x, V::F slope) { return V::select_ge0(x, x, V::mul(x, slope)); }

// Bits of up to 64 channels of one pixel; bits from `valid` on are cut.
inline void write_bits(uint32_t* words, uint64_t bits, int valid) {
    if (valid < 64) bits &= (uint64_t{1} << valid) - 1;
    words[0] = static_cast<uint32_t>(bits);
    if (valid > 32) words[1] = static_cast<uint32_t>(bits >> 32);
}

// Which stages an epilogue has. Code that knows them needs no branches and no pointers that may be empty, which layers with
// a short reduction feel most. kUnknownForm asks for every stage as it comes; kHalves: the maps are Bf16;
// kCounts: what comes in is to be multiplied by -2 first (the affine does so at no cost); kPartial: not all channels exist.
enum Form : unsigned {
    kUnknownForm = 0, kAffine = 1, kAdd = 2, kStore = 4, kSign = 8, kHalves = 16, kCounts = 32, kQuantize = 64, kPartial = 128
};

// The common form of an epilogue, in this order: affine, mul, up to two adds, affine, clip or prelu, then a store and signs.
// It runs in registers; anything else goes step by step through a row of 64 floats.
struct FusedEpilogue {
    static constexpr int kSigns = 4;
    const Step* affine = nullptr;
    const Step* mul = nullptr;
    const Step* add[2] = {nullptr, nullptr};
    const Step* after = nullptr;  // the affine behind the adds
    const Step* clip = nullptr;
    const Step* prelu = nullptr;
    const Step* store = nullptr;
    const Step* quantize = nullptr;
    const Step* sign[kSigns] = {};
    int signs = 0;
    bool valid = true;

    explicit FusedEpilogue(const Epilogue& e) {
        int stage = 0;
        for (int i = 0; i < e.count; ++i) {
            const Step* s = &e.steps[i];
            switch (s->kind) {
                case StepKind::affine: stage == 0 ? take(affine, s, stage, 1) : take(after, s, stage, 5); break;
                case StepKind::mul: take(mul, s, stage, 2); break;
                case StepKind::add: stage < 3 ? take(add[0], s, stage, 3) : take(add[1], s, stage, 4); break;
                case StepKind::clip: take(clip, s, stage, 6); break;
                case StepKind::prelu: take(prelu, s, stage, 6); break;
                // store, quantize and sign leave x as it is, so their mutual order is free
                case StepKind::quantize:
                    valid = valid && !quantize;
                    quantize = s, stage = 7;
                    break;
                case StepKind::store:
                    valid = valid && !store;
                    store = s, stage = 7;
                    break;
                case StepKind::sign:
                    if (signs < kSigns) sign[signs] = s;
                    valid = valid && ++signs <= kSigns;
                    stage = 7;
                    break;
                default: valid = false;
            }
        }
    }

    // The form, where it is made of the stages of `Form` alone, each complete: scale and bias, a sign of x itself.
    Form form() const {
        const bool simple = valid && !mul && !add[1] && !after && !clip && !prelu && signs <= 1 &&
                            !(affine && !(affine->scale && affine->bias)) && !(signs && (sign[0]->scale || sign[0]->bias));
        const bool halves = (add[0] ? add[0]->bf16 : store ? store->bf16 : nullptr) != nullptr;  // the maps are Bf16
        if (!simple || (store && halves != (store->bf16 != nullptr))) return kUnknownForm;
        return static_cast<Form>((affine ? kAffine : 0u) | (add[0] ? kAdd : 0u) | (store ? kStore : 0u) | (signs ? kSign : 0u) | (quantize ? kQuantize : 0u) | (halves ? kHalves : 0u));
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

    explicit EpilogueRunner(const Epilogue& epilogue) : e(epilogue), fused(epilogue) {}

    // P pixels, channels [c0, c0 + N * kLanes) as far as they are valid: x[i][v] is vector v of pixel[i]. Each step runs
    // over the whole tile, so that its addresses and branches cost once and the next tile's work can start beneath it.
    // A FORM that is known is that of `fused`, and all channels are valid but with kPartial.
    template <Form FORM = kUnknownForm, int P, int N>
    KERNEL_INLINE void tile(const int32_t* pixel, int c0, V::F (&x)[P][N]) const {
        const int count = std::min(N * V::kLanes, e.channels - c0);
        if constexpr (FORM != kUnknownForm) return in_registers<(FORM & kPartial) != 0, FORM>(pixel, c0, count, x);
        if (!fused.valid) return stepwise(pixel, c0, count, x);
        count == N * V::kLanes ? in_registers<false, FORM>(pixel, c0, count, x) : in_registers<true, FORM>(pixel, c0, count, x);
    }

private:
    template <Form FORM>
    static KERNEL_INLINE bool has(Form stage, const void* step) {
        return FORM == kUnknownForm ? step != nullptr : (FORM & stage) != 0;
    }

    template <Form FORM, int P, int N>
    static KERNEL_INLINE void affine(V::F (&x)[P][N], const Step& s, int c0) {
        const bool scaled = has<FORM>(kAffine, s.scale), biased = has<FORM>(kAffine, s.bias);
        unrolled<N>([&](auto v) KERNEL_LAMBDA {
            if (scaled) {
                V::F scale = V::load(s.scale + c0 + v * V::kLanes);
                if constexpr ((FORM & kCounts) != 0) scale = V::mul(scale, V::set1(-2.0f));
                if (biased) {
                    const V::F bias = V::load(s.bias + c0 + v * V::kLanes);
                    unrolled<P>([&](auto i) KERNEL_LAMBDA { x[i][v] = V::fma(x[i][v], scale, bias); });
                } else {
                    unrolled<P>([&](auto i) KERNEL_LAMBDA { x[i][v] = V::mul(x[i][v], scale); });
                }
            } else if (biased) {
                const V::F bias = V::load(s.bias + c0 + v * V::kLanes);
                unrolled<P>([&](auto i) KERNEL_LAMBDA { x[i][v] = V::add(x[i][v], bias); });
            }
        });
    }

    // Signs of `valid` channels, where the instruction set has a quicker way; returns whether it has.
    template <bool PARTIAL, class Vector, int N>
    static KERNEL_INLINE bool write_by_masks(uint32_t* words, const typename Vector::F (&x)[N], int valid) {
        constexpr bool kHas = requires { Vector::template write_signs<PARTIAL>(words, x, valid); };
        if constexpr (kHas) Vector::template write_signs<PARTIAL>(words, x, valid);
        return kHas;
    }

    template <bool PARTIAL, int P, int N>
    static KERNEL_INLINE void write_signs(const Step& s, const int32_t* pixel, int c0, int count, const V::F (&x)[P][N]) {
        unrolled<P>([&](auto i) KERNEL_LAMBDA {
            uint32_t* words = s.bits + s.bit_offset[pixel[i]] + c0 / 32;
            if (write_by_masks<PARTIAL, V>(words, x[i], count)) return;
            uint64_t bits = 0;
            unrolled<N>([&](auto v) KERNEL_LAMBDA { bits |= static_cast<uint64_t>(V::ge0(x[i][v])) << (v * V::kLanes); });
            write_bits(words, bits, count);
        });
    }

    // Through V::Rounded, where the instruction set has it and the processor can.
    template <class Vector, class Store>
    static KERNEL_INLINE void store_halves(Bf16* map, Store store) {
        if constexpr (requires { typename Vector::Rounded; })
            if (Vector::has_rounded()) return store(typename Vector::Rounded{map});
        store(map);
    }

    // Bytes of a whole block, where the instruction set has a quicker way; returns whether it has.
    template <class Vector, int N>
    static KERNEL_INLINE bool quantize_whole_block(const Step& s, int32_t p, int c, const typename Vector::F (&x)[N]) {
        constexpr bool kHas = requires { Vector::store_block_bytes(s.bytes, x, x[0], 0); };
        if constexpr (kHas) {
            const typename Vector::F factor = Vector::set1(s.factor);
            typename Vector::F y[N];
            unrolled<N>([&](auto v) KERNEL_LAMBDA { y[v] = Vector::mul(x[v], factor); });
            Vector::store_block_bytes(s.bytes + s.bit_offset[p] + c, y, Vector::set1(s.max), static_cast<int>(-s.min));
        }
        return kHas;
    }

    // n channels from c on.
    static KERNEL_INLINE void quantize(const Step& s, int32_t p, int c, V::F x, int n) {
        x = V::min(V::set1(s.max), V::max_or(V::mul(x, V::set1(s.factor)), V::set1(s.min)));
        V::store_bytes_n(s.bytes + s.bit_offset[p] + c, x, static_cast<int>(-s.min), n);
    }

    // PARTIAL: the last vectors have channels that don't exist.
    template <bool PARTIAL, Form FORM, int P, int N>
    KERNEL_INLINE void in_registers(const int32_t* pixel, int c0, int count, V::F (&x)[P][N]) const {
        const auto load = [&](const auto* from, int v) KERNEL_LAMBDA {
            return PARTIAL ? V::load_n(from + v * V::kLanes, std::clamp(count - v * V::kLanes, 0, V::kLanes)) : V::load(from + v * V::kLanes);
        };
        constexpr Form kNever = static_cast<Form>(0);  // in a known form
        const auto halves = [&](const Step& s) KERNEL_LAMBDA { return FORM == kUnknownForm ? s.bf16 != nullptr : (FORM & kHalves) != 0; };
        if (has<FORM>(kAffine, fused.affine)) affine<FORM>(x, *fused.affine, c0);
        const auto with_map = [&](const auto* map, int64_t stride, auto operation) KERNEL_LAMBDA {
            unrolled<P>([&](auto i) KERNEL_LAMBDA {
                const auto* other = map + pixel[i] * stride + c0;
                unrolled<N>([&](auto v) KERNEL_LAMBDA { x[i][v] = operation(x[i][v], load(other, v)); });
            });
        };
        const auto add = [&](const Step& s) KERNEL_LAMBDA {
            const auto sum = [](V::F a, V::F b) KERNEL_LAMBDA { return V::add(a, b); };
            halves(s) ? with_map(s.bf16, s.pixel_stride, sum) : with_map(s.real, s.pixel_stride, sum);
        };
        if (has<FORM>(kNever, fused.mul)) {
            const auto product = [](V::F a, V::F b) KERNEL_LAMBDA { return V::mul(a, b); };
            const Step& s = *fused.mul;
            s.bf16 ? with_map(s.bf16, s.pixel_stride, product) : with_map(s.real, s.pixel_stride, product);
        }
        if (has<FORM>(kAdd, fused.add[0])) add(*fused.add[0]);
        if (has<FORM>(kNever, fused.add[1])) add(*fused.add[1]);
        if (has<FORM>(kNever, fused.after)) affine<FORM>(x, *fused.after, c0);
        if (has<FORM>(kNever, fused.clip)) {
            const V::F lo = V::set1(fused.clip->min), hi = V::set1(fused.clip->max);
            unrolled<P>([&](auto i) KERNEL_LAMBDA { unrolled<N>([&](auto v) KERNEL_LAMBDA { x[i][v] = clip(x[i][v], lo, hi); }); });
        }
        if (has<FORM>(kNever, fused.prelu))
            unrolled<N>([&](auto v) KERNEL_LAMBDA {
                const V::F slope = V::load(fused.prelu->scale + c0 + v * V::kLanes);
                unrolled<P>([&](auto i) KERNEL_LAMBDA { x[i][v] = prelu(x[i][v], slope); });
            });
        const auto store_map = [&](auto map) KERNEL_LAMBDA {
            const int64_t stride = fused.store->pixel_stride;
            unrolled<P>([&](auto i) KERNEL_LAMBDA {
                const auto out = map + (pixel[i] * stride + c0);
                unrolled<N>([&](auto v) KERNEL_LAMBDA {
                    if constexpr (PARTIAL)
                        V::store_n(out + v * V::kLanes, x[i][v], std::clamp(count - v * V::kLanes, 0, V::kLanes));
                    else
                        V::store(out + v * V::kLanes, x[i][v]);
                });
            });
        };
        if (has<FORM>(kStore, fused.store))
            halves(*fused.store) ? store_halves<V>(fused.store->bf16, store_map) : store_map(fused.store->real);
        if (has<FORM>(kQuantize, fused.quantize))
            unrolled<P>([&](auto i) KERNEL_LAMBDA {
                if constexpr (!PARTIAL)
                    if (quantize_whole_block<V>(*fused.quantize, pixel[i], c0, x[i])) return;
                unrolled<N>([&](auto v) KERNEL_LAMBDA {
                    const int n = PARTIAL ? std::clamp(count - v * V::kLanes, 0, V::kLanes) : V::kLanes;
                    quantize(*fused.quantize, pixel[i], c0 + v * V::kLanes, x[i][v], n);
                });
            });
        const int signs = FORM == kUnknownForm ? fused.signs : has<FORM>(kSign, nullptr);
        for (int k = 0; k < signs; ++k) {
            const Step& s = *fused.sign[k];
            if (FORM != kUnknownForm || (!s.scale && !s.bias)) {
                write_signs<PARTIAL>(s, pixel, c0, count, x);
                continue;
            }
            V::F y[P][N];
            unrolled<P>([&](auto i) KERNEL_LAMBDA { unrolled<N>([&](auto v) KERNEL_LAMBDA { y[i][v] = x[i][v]; }); });
            affine<kUnknownForm>(y, s, c0);
            write_signs<PARTIAL>(s, pixel, c0, count, y);
        }
    }

    template <int P, int N>
    KERNEL_INLINE void stepwise(const int32_t* pixel, int c0, int count, const V::F (&x)[P][N]) const {
        alignas(64) float rows[P][kBlock];
        unrolled<P>([&](auto i) KERNEL_LAMBDA { unrolled<N>([&](auto v) KERNEL_LAMBDA { V::store(rows[i] + v * V::kLanes, x[i][v]); }); });
        for (int i = 0; i < P; ++i) run_steps(pixel[i], c0, count, rows[i]);
    }

    KERNEL_NOINLINE void run_steps(int32_t p, int c0, int count, float* row) const {
        const int vectors = (count + V::kLanes - 1) / V::kLanes;
        for (int i = 0; i < e.count; ++i) {
            const Step& s = e.steps[i];
            const int64_t at = int64_t{p} * s.pixel_stride + c0;
            const auto load = [&](int c, int n) { return s.bf16 ? V::load_n(s.bf16 + at + c, n) : V::load_n(s.real + at + c, n); };
            uint64_t bits = 0;
            for (int v = 0; v < vectors; ++v) {
                const int c = v * V::kLanes;
                const int n = std::min(V::kLanes, count - c);
                V::F x = V::load(row + c);
                switch (s.kind) {
                    case StepKind::affine:
                    case StepKind::sign:
                        if (s.scale && s.bias)
                            x = V::fma(x, V::load(s.scale + c0 + c), V::load(s.bias + c0 + c));
                        else if (s.scale || s.bias)
                            x = s.scale ? V::mul(x, V::load(s.scale + c0 + c)) : V::add(x, V::load(s.bias + c0 + c));
                        if (s.kind == StepKind::sign) {
                            bits |= static_cast<uint64_t>(V::ge0(x)) << c;
                            continue;  // x itself goes on unchanged
                        }
                        break;
                    case StepKind::add: x = V::add(x, load(c, n)); break;
                    case StepKind::mul: x = V::mul(x, load(c, n)); break;
                    case StepKind::clip: x = clip(x, V::set1(s.min), V::set1(s.max)); break;
                    case StepKind::prelu: x = prelu(x, V::load(s.scale + c0 + c)); break;
                    case StepKind::quantize: quantize(s, p, c0 + c, x, n); continue;
                    case StepKind::store:
                        s.bf16 ? V::store_n(s.bf16 + at + c, x, n) : V::store_n(s.real + at + c, x, n);
                        continue;
                    case StepKind::hard_sigmoid: x = V::div(hard(x), V::set1(6.0f)); break;
                    case StepKind::hard_swish: x = V::div(V::mul(x, hard(x)), V::set1(6.0f)); break;
                    case StepKind::sigmoid:
                    case StepKind::silu:
                        for (int k = 0; k < n; ++k) row[c + k] = s.kind == StepKind::silu ? silu(row[c + k]) : sigmoid(row[c + k]);
                        continue;
                }
                V::store(row + c, x);
            }
            if (s.kind == StepKind::sign) write_bits(s.bits + s.bit_offset[p] + c0 / 32, bits, count);
        }
    }
};

// f(form) for the forms that residual, dense and plain networks have most; `whole`: all channels of the block are valid.
template <class F>
KERNEL_INLINE void with_form(const EpilogueRunner& run, bool whole, F f) {
    constexpr auto kResidual = static_cast<Form>(kAffine | kAdd | kStore | kSign), kLast = static_cast<Form>(kAffine | kAdd | kStore);
    constexpr auto kStored = static_cast<Form>(kAffine | kStore), kSigned = static_cast<Form>(kAffine | kSign);
    switch (static_cast<unsigned>(whole ? run.fused.form() : kUnknownForm)) {
        case kResidual: return f(std::integral_constant<Form, kResidual>{});
        case kResidual | kHalves: return f(std::integral_constant<Form, static_cast<Form>(kResidual | kHalves)>{});
        case kLast: return f(std::integral_constant<Form, kLast>{});
        case kStored: return f(std::integral_constant<Form, kStored>{});
        case kSigned: return f(std::integral_constant<Form, kSigned>{});
        default: return f(std::integral_constant<Form, kUnknownForm>{});
    }
}

// The same for a binary convolution: with kCounts where all channels exist and no sum is odd; else, for fewer forms, with
// kPartial.
template <class F>
KERNEL_INLINE void with_counts(const EpilogueRunner& run, const BinaryConvArgs& a, bool whole, F f) {
    if (whole && !a.odd)
        return with_form(run, true, [&](auto form) KERNEL_LAMBDA {
            f(std::integral_constant<Form, static_cast<Form>(form() == kUnknownForm ? form() : form() | kCounts)>{});
        });
    constexpr auto kResidual = static_cast<Form>(kAffine | kAdd | kStore | kSign), kStored = static_cast<Form>(kAffine | kStore);
    switch (static_cast<unsigned>(run.fused.form())) {
        case kResidual: return f(std::integral_constant<Form, static_cast<Form>(kResidual | kPartial)>{});
        case kStored: return f(std::integral_constant<Form, static_cast<Form>(kStored | kPartial)>{});
        default: return f(std::integral_constant<Form, kUnknownForm>{});
    }
}

// What a count stands for.
inline V::F sum_of(const BinaryConvArgs& a, int job, V::F count) {
    return V::fma(V::set1(-2.0f), count, V::set1(a.odd ? a.odd[a.border_case[job]] : 0.0f));
}

// Rows of up to 64 sums, one a pixel, to the epilogue: four pixels at a time, then one.
template <int N, int P = 4>
KERNEL_INLINE void finish_rows(const EpilogueRunner& run, const int32_t* pixel, int block, const float (*rows)[kBlock], int count) {
    int j = 0;
    for (; j + P <= count; j += P) {
        V::F x[P][N];
        unrolled<P>([&](auto i) KERNEL_LAMBDA { unrolled<N>([&](auto v) KERNEL_LAMBDA { x[i][v] = V::load(rows[j + i] + v * V::kLanes); }); });
        run.tile(pixel + j, block * kBlock, x);
    }
    if constexpr (P > 1) finish_rows<N, 1>(run, pixel + j, block, rows + j, count - j);
}

// One row: channels [c0, c0 + channels), at most 64 of them; 1, 2, 4 ... vectors, since each number is code of its own. Not
// inlined: its many callers would double what there is to build.
template <int N = kBlock / V::kLanes>
KERNEL_NOINLINE void finish_row(const EpilogueRunner& run, int32_t pixel, int c0, int channels, const float* row) {
    if constexpr (N > 1)
        if (channels <= N / 2 * V::kLanes) return finish_row<N / 2>(run, pixel, c0, channels, row);
    V::F x[1][N];
    unrolled<N>([&](auto v) KERNEL_LAMBDA { x[0][v] = V::load(row + v * V::kLanes); });
    run.tile(&pixel, c0, x);
}

// The part of one pooling window that lies inside the picture: taps [begin, end) of each axis.
struct Window {
    int y0, x0, ky0, ky1, kx0, kx1, divisor;

    Window(const PoolArgs& a, int y0, int x0) : y0(y0), x0(x0) {
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
template <int VECTORS, bool MAX, bool SCALED, class T>
KERNEL_INLINE void pool_window(const PoolArgs& a, const T* map, const Window& w, int c, int n, float* row) {
    V::F sum[VECTORS], scale[VECTORS], bias[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        sum[v] = V::set1(MAX ? -std::numeric_limits<float>::infinity() : 0.0f);
        if constexpr (SCALED) scale[v] = V::load(a.scale + c + v * V::kLanes), bias[v] = V::load(a.bias + c + v * V::kLanes);
    }
    const T* input = map + c;
    for (int ky = w.ky0; ky < w.ky1; ++ky) {
        const int64_t y = w.y0 + ky * a.dilation[0];
        for (int kx = w.kx0; kx < w.kx1; ++kx) {
            const T* at = input + (y * a.width + w.x0 + kx * a.dilation[1]) * a.pixel_stride;
            for (int v = 0; v < VECTORS; ++v) {
                V::F x = v + 1 < VECTORS || n == V::kLanes ? V::load(at + v * V::kLanes) : V::load_n(at + v * V::kLanes, n);
                if constexpr (SCALED) x = V::fma(x, scale[v], bias[v]);
                sum[v] = MAX ? V::max(sum[v], x) : V::add(sum[v], x);  // NaN is taken from the picture
            }
        }
    }
    for (int v = 0; v < VECTORS; ++v)
        V::store(row + v * V::kLanes, MAX ? sum[v] : V::div(sum[v], V::set1(static_cast<float>(w.divisor))));
}

// Windows that lie inside the picture: where their taps are, once for all of them.
struct InnerWindows {
    static constexpr int kTaps = 64;
    int64_t offset[kTaps];
    int64_t taps;
    int row_end, column_end;        // windows that start in [0, end) of each axis lie inside
    float share;                    // of a tap, where a product with it equals the quotient; else 0

    explicit InnerWindows(const PoolArgs& a)
        : taps(int64_t{a.kernel[0]} * a.kernel[1]), row_end(a.height - (a.kernel[0] - 1) * a.dilation[0]),
          column_end(a.width - (a.kernel[1] - 1) * a.dilation[1]), share(taps & (taps - 1) ? 0 : 1.0f / static_cast<float>(taps)) {
        if (taps > kTaps) row_end = 0;
        if (row_end <= 0) return;
        int64_t* to = offset;
        for (int ky = 0; ky < a.kernel[0]; ++ky)
            for (int kx = 0; kx < a.kernel[1]; ++kx) *to++ = (int64_t{ky} * a.dilation[0] * a.width + kx * a.dilation[1]) * a.pixel_stride;
    }
    bool contain(int y0, int x0) const { return y0 >= 0 && x0 >= 0 && y0 < row_end && x0 < column_end; }
    // Of windows `stride` apart along a row, the first of which is contained: how many are.
    int count_from(int x0, int stride) const { return (column_end - 1 - x0) / stride + 1; }
};

// P of them, `step` numbers apart: a whole block of channels from c on.
template <bool MAX, bool SCALED, class T, int P, int N>
KERNEL_INLINE void pool_inner(const PoolArgs& a, const InnerWindows& inner, const T* first, int64_t step, int c, V::F (&sum)[P][N]) {
    V::F scale[N], bias[N];
    unrolled<N>([&](auto v) KERNEL_LAMBDA {
        unrolled<P>([&](auto i) KERNEL_LAMBDA { sum[i][v] = V::set1(MAX ? -std::numeric_limits<float>::infinity() : 0.0f); });
        if constexpr (SCALED) scale[v] = V::load(a.scale + c + v * V::kLanes), bias[v] = V::load(a.bias + c + v * V::kLanes);
    });
    const auto take = [&](int64_t offset) KERNEL_LAMBDA {
        const T* at = first + offset + c;
        unrolled<P>([&](auto i) KERNEL_LAMBDA {
            unrolled<N>([&](auto v) KERNEL_LAMBDA {
                V::F x = V::load(at + i * step + v * V::kLanes);
                if constexpr (SCALED) x = V::fma(x, scale[v], bias[v]);
                sum[i][v] = MAX ? V::max(sum[i][v], x) : V::add(sum[i][v], x);
            });
        });
    };
    for (int t = 0; t < inner.taps; ++t) take(inner.offset[t]);
    if constexpr (MAX) return;
    const auto divide = [&](auto quotient) KERNEL_LAMBDA {
        unrolled<P>([&](auto i) KERNEL_LAMBDA { unrolled<N>([&](auto v) KERNEL_LAMBDA { sum[i][v] = quotient(sum[i][v]); }); });
    };
    const V::F share = V::set1(inner.share), taps = V::set1(static_cast<float>(inner.taps));
    if (inner.share != 0)
        divide([&](V::F x) KERNEL_LAMBDA { return V::mul(x, share); });
    else
        divide([&](V::F x) KERNEL_LAMBDA { return V::div(x, taps); });
}

// `count` of them, neighbours in a row from pixel p on: the whole blocks of channels.
template <bool MAX, bool SCALED, Form FORM, int P, class T>
KERNEL_INLINE void pool_inner_row(const PoolArgs& a, const InnerWindows& inner, const EpilogueRunner& run, const T* first, int p, int count) {
    const int64_t step = int64_t{a.stride[1]} * a.pixel_stride;
    for (; count >= P; count -= P, first += P * step, p += P) {
        int32_t pixel[P];
        unrolled<P>([&](auto i) KERNEL_LAMBDA { pixel[i] = p + i; });
        for (int c = 0; c + kBlock <= a.channels; c += kBlock) {
            V::F x[P][kBlock / V::kLanes];
            pool_inner<MAX, SCALED>(a, inner, first, step, c, x);
            run.tile<FORM>(pixel, c, x);
        }
    }
    if constexpr (P > 1) pool_inner_row<MAX, SCALED, FORM, 1>(a, inner, run, first, p, count);
}

template <bool MAX, bool SCALED, class T>
void pool_pixels(const PoolArgs& a, const T* map, int begin, int end) {
    constexpr int kGroup = 32 / V::kLanes;  // vectors at a time
    constexpr int kPixels = V::kLanes == 16 ? 2 : 1;  // of inner windows at a time: what the registers hold
    const EpilogueRunner run(*a.epilogue);
    alignas(64) float sums[kBlock];
    const InnerWindows inner(a);
    const int blocks_end = a.channels / kBlock * kBlock;
    // an average in bytes, what the shortcut of a residual network in int8 reads, has code of its own
    [[maybe_unused]] const bool bytes = run.fused.form() == kQuantize;
    int row = begin / a.out_width, column = begin % a.out_width;
    for (int p = begin, inner_end = begin; p < end; ++p, ++column) {
        if (column == a.out_width) column = 0, ++row;
        const int y0 = row * a.stride[0] - a.padding[0], x0 = column * a.stride[1] - a.padding[1];
        if (p >= inner_end && inner.contain(y0, x0)) {
            const int count = std::min({end - p, a.out_width - column, inner.count_from(x0, a.stride[1])});
            const auto pool_row = [&](auto form) KERNEL_LAMBDA {
                pool_inner_row<MAX, SCALED, form, kPixels>(a, inner, run, map + (int64_t{y0} * a.width + x0) * a.pixel_stride, p, count);
            };
            if constexpr (!MAX && !SCALED)
                bytes ? pool_row(std::integral_constant<Form, kQuantize>{}) : pool_row(std::integral_constant<Form, kUnknownForm>{});
            else
                pool_row(std::integral_constant<Form, kUnknownForm>{});
            inner_end = p + count;
        }
        int c0 = p < inner_end ? blocks_end : 0;
        if (c0 == a.channels) {  // nothing is left of all of these
            column += inner_end - 1 - p, p = inner_end - 1;
            continue;
        }
        const Window window(a, y0, x0);
        for (; c0 < a.channels; c0 += kBlock) {
            const int count = std::min(kBlock, a.channels - c0);
            int c = 0;
            for (; c + 32 <= count; c += 32) pool_window<kGroup, MAX, SCALED>(a, map, window, c0 + c, V::kLanes, sums + c);
            for (; c < count; c += V::kLanes)
                pool_window<1, MAX, SCALED>(a, map, window, c0 + c, std::min(V::kLanes, count - c), sums + c);
            finish_row(run, p, c0, count, sums);
        }
    }
}

template <class T>
void pool_map(const PoolArgs& a, const T* map, int begin, int end) {
    if (a.scale)
        a.kind == PoolKind::max ? pool_pixels<true, true>(a, map, begin, end) : pool_pixels<false, true>(a, map, begin, end);
    else
        a.kind == PoolKind::max ? pool_pixels<true, false>(a, map, begin, end) : pool_pixels<false, false>(a, map, begin, end);
}

void pool(const PoolArgs& a, int begin, int end) {
    a.bf16 ? pool_map(a, a.bf16, begin, end) : pool_map(a, a.input, begin, end);
}

// Signs alone, of a map in memory: PIXELS at a time, so that their scales and biases are loaded once.
template <int PIXELS, class T>
int sign_pixels(const ElementwiseArgs& a, const T* map, int begin, int end) {
    constexpr int kVectors = 32 / V::kLanes;
    alignas(64) static constexpr std::array<float, 32> kOnes = filled(1.0f), kZeros = filled(-0.0f);  // x + -0.0 is x, for 0.0 too
    int p = begin;
    for (; p + PIXELS <= end; p += PIXELS)
        for (int c = 0; c < a.channels; c += 32) {
            const T* at = map + int64_t{p} * a.pixel_stride + c;
            const int valid = std::min(32, a.channels - c);
            V::F x[PIXELS][kVectors];
            for (int i = 0; i < PIXELS; ++i)
                for (int v = 0; v < kVectors; ++v) {
                    const T* from = at + int64_t{i} * a.pixel_stride + v * V::kLanes;
                    x[i][v] = valid == 32 ? V::load(from) : V::load_n(from, std::clamp(valid - v * V::kLanes, 0, V::kLanes));
                }
            for (int k = 0; k < a.epilogue->count; ++k) {
                const Step& s = a.epilogue->steps[k];
                const float* scale = s.scale ? s.scale + c : kOnes.data();
                const float* bias = s.bias ? s.bias + c : kZeros.data();
                uint32_t bits[PIXELS] = {};
                for (int v = 0; v < kVectors; ++v) {
                    const V::F m = V::load(scale + v * V::kLanes), n = V::load(bias + v * V::kLanes);
                    for (int i = 0; i < PIXELS; ++i) bits[i] |= V::ge0(V::fma(x[i][v], m, n)) << (v * V::kLanes);
                }
                for (int i = 0; i < PIXELS; ++i)
                    s.bits[s.bit_offset[p + i] + c / 32] = valid == 32 ? bits[i] : bits[i] & ((uint32_t{1} << valid) - 1);
            }
        }
    if constexpr (PIXELS > 1) p = sign_pixels<1>(a, map, p, end);
    return p;
}

bool only_signs(const Epilogue& e) {
    return e.count > 0 && std::all_of(e.steps, e.steps + e.count, [](const Step& s) { return s.kind == StepKind::sign; });
}

// P pixels at a time, 64 channels of each; the rest of a pixel's channels go through a row.
template <int P, class T>
void elementwise_pixels(const ElementwiseArgs& a, const T* map, const EpilogueRunner& run, int begin, int end) {
    constexpr int kVectors = kBlock / V::kLanes / 2;  // half a block: four pixels of it fit the registers
    constexpr int kChannels = kVectors * V::kLanes;
    int p = begin;
    for (; p + P <= end; p += P) {
        int32_t pixel[P];
        const T* at[P];
        for (int i = 0; i < P; ++i) pixel[i] = p + i, at[i] = map + int64_t{p + i} * a.pixel_stride;
        int c = 0;
        for (; c + kChannels <= a.channels; c += kChannels) {
            V::F x[P][kVectors];
            unrolled<P>([&](auto i) KERNEL_LAMBDA { unrolled<kVectors>([&](auto v) KERNEL_LAMBDA { x[i][v] = V::load(at[i] + c + v * V::kLanes); }); });
            run.tile(pixel, c, x);
        }
        for (; c < a.channels; c += kBlock) {
            const int count = std::min(kBlock, a.channels - c);
            for (int i = 0; i < P; ++i) {
                alignas(64) float row[kBlock];
                for (int v = 0; v * V::kLanes < count; ++v)
                    V::store(row + v * V::kLanes, V::load_n(at[i] + c + v * V::kLanes, std::min(V::kLanes, count - v * V::kLanes)));
                finish_row(run, pixel[i], c, count, row);
            }
        }
    }
    if constexpr (P > 1) elementwise_pixels<1>(a, map, run, p, end);
}

template <class T>
void elementwise_map(const ElementwiseArgs& a, const T* map, int begin, int end) {
    if (only_signs(*a.epilogue)) {
        sign_pixels<4>(a, map, begin, end);
        return;
    }
    const EpilogueRunner run(*a.epilogue);
    elementwise_pixels<4>(a, map, run, begin, end);
}

void elementwise(const ElementwiseArgs& a, int begin, int end) {
    a.bf16 ? elementwise_map(a, a.bf16, begin, end) : elementwise_map(a, a.input, begin, end);
}

inline int32_t pixel_of(const int32_t* table, int job) { return table ? table[job] : job; }

}  // namespace
