// What both AVX-512 sets share: the vector type, the loops over channel blocks and jobs, and the float convolution.
// Included inside the namespace of each set (see common_inl.h for why), which has defined has_bf16(): whether the
// processor rounds to bf16 by one instruction.

namespace {

struct V {
    static constexpr int kLanes = 16;
    using F = __m512;
    static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
    static F set1(float a) { return _mm512_set1_ps(a); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
    static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
    static void store_n(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
    static F widen(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }
    static F load(const Bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static F load_n(const Bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
    // Adds just below half of what is cut, one more where the last bit that stays is 1; NaN becomes the quiet one of its sign.
    static __m256i narrow(F a) {
        const __m512i bits = _mm512_castps_si512(a);
        __m512i sum = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
        sum = _mm512_mask_add_epi32(sum, _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000)), sum, _mm512_set1_epi32(1));
        sum = _mm512_mask_or_epi32(sum, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
        sum = _mm512_mask_and_epi32(sum, _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000)), bits, _mm512_set1_epi32(INT32_MIN));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
    }
    static void store(Bf16* p, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
    static void store_n(Bf16* p, F a, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow(a)); }
    // The same by the instruction, where has_bf16(). Written out: this file is also compiled for processors without it.
    struct Rounded {
        Bf16* at;
        Rounded operator+(int64_t n) const { return {at + n}; }
    };
    static bool has_rounded() { return has_bf16(); }
    static __m256i rounded(F a) {
        __m256i halves;
        asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(a));
        return halves;
    }
    static void store(Rounded p, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.at), rounded(a)); }
    static void store_n(Rounded p, F a, int n) { _mm256_mask_storeu_epi16(p.at, first(n), rounded(a)); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F select_ge0(F x, F yes, F no) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), no, yes);
    }
    // Signs of up to 64 channels, stored from mask registers: joined there first, they would crowd the one port that compares.
    template <bool PARTIAL, int N>
    static void write_signs(uint32_t* words, const F (&x)[N], int valid) {
        using Sixteen __attribute__((may_alias)) = __mmask16;
        Sixteen* to = reinterpret_cast<Sixteen*>(words);
        const __m512 zero = _mm512_setzero_ps();
        for (int v = 0; v < (N + 1) / 2 * 2; ++v) {
            if (PARTIAL && v >= 2 && valid <= 32) return;
            if (v == N)
                to[v] = 0;
            else
                to[v] = PARTIAL ? _mm512_mask_cmp_ps_mask(first(std::clamp(valid - v * kLanes, 0, kLanes)), x[v], zero, _CMP_GE_OQ)
                                : _mm512_cmp_ps_mask(x[v], zero, _CMP_GE_OQ);
        }
    }
    static uint32_t ge0(F a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GE_OQ); }
    using I = __m512i;
    static I load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
    static void store_int(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
    static I set1_int(int32_t a) { return _mm512_set1_epi32(a); }
    static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
    static I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
    static I xor_int(I a, I b) { return _mm512_xor_si512(a, b); }
    static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
    static F max_or(F x, F y) { return _mm512_max_ps(x, y); }
    static void store_bytes_n(uint8_t* p, F x, int zero, int n) {
        const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(zero));
        if (n == kLanes)  // the masked form takes many times as long
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(whole));
        else
            _mm512_mask_cvtepi32_storeu_epi8(p, first(n), whole);
    }
    // 64 of them, where what lies outside a byte is meant to be cut; beyond the integers only upwards does it need help.
    static void store_block_bytes(uint8_t* p, const F (&x)[4], F most, int zero) {
        const auto whole = [&](int v) { return _mm512_cvtps_epi32(_mm512_min_ps(most, x[v])); };
        const __m512i offset = _mm512_set1_epi16(static_cast<short>(zero));
        const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(whole(0), whole(1)), offset);
        const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(whole(2), whole(3)), offset);
        const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
    }
};

}  // namespace

#include "common_inl.h"
#include "depthwise_inl.h"

namespace {

// Where a tile of P jobs reads: framed input and start of each job, and the words of the reduction; and what it fetches for later,
// a line every `ahead_step` bytes, one a word.
template <int P>
struct TileInput {
    const uint32_t* job[P];
    const int32_t* start[P];  // of the counts, VECTORS * 16 of them
    const int32_t* word_offset;
    int words;
    const char* ahead;
    int64_t ahead_step;

    void fetch() const {  // all at once
        for (int64_t at = 0; at < ahead_step * words; at += 64) _mm_prefetch(ahead + at, _MM_HINT_T1);
    }
};

// What is fetched into the second cache beneath the counting, a part a tile: the weights of the next block, and of the
// layer that runs next. Wide layers have more weights than that cache holds, and what comes from farther away is waited
// for, the longer the busier the machine.
class Ahead {
public:
    Ahead(const BinaryConvArgs& a, int block, int tiles) {
        const int64_t blocks = block_count(a.out_channels);
        const int64_t from = a.upcoming_bytes * block / blocks, to = a.upcoming_bytes * (block + 1) / blocks;
        if (block + 1 < blocks)
            next_ = {reinterpret_cast<const char*>(a.weights + int64_t{block + 1} * a.words * kBlock),
                     int64_t{a.words} * block_lanes(a.out_channels, block + 1) * 4};
        upcoming_ = {a.upcoming + from, to - from};
        first_ = next_.bytes == 0 ? 0 : upcoming_.bytes == 0 ? tiles : (tiles + 1) / 2;
        next_.share(first_, a.words);
        upcoming_.share(tiles - first_, a.words);
    }

    // The part of a tile: what does not fit its words is fetched at once.
    template <int P>
    KERNEL_INLINE void part(int tile, TileInput<P>& in) const {
        const Weights& weights = tile < first_ ? next_ : upcoming_;
        const int64_t begin = std::min((tile < first_ ? tile : tile - first_) * weights.part, weights.bytes);
        in.ahead = weights.at + begin;
        in.ahead_step = weights.step;
        const int64_t end = std::min(begin + weights.part, weights.bytes);
        for (int64_t at = begin + 64 * int64_t{in.words}; at < end; at += 64) _mm_prefetch(weights.at + at, _MM_HINT_T1);
    }

private:
    struct Weights {
        const char* at = nullptr;
        int64_t bytes = 0, part = 0, step = 0;  // part: of a tile; step: of a word

        void share(int64_t tiles, int words) {
            if (tiles == 0 || words == 0) return;
            part = (bytes + tiles - 1) / tiles;
            step = std::min<int64_t>(64, (part + words - 1) / words);
        }
    };
    Weights next_, upcoming_;
    int first_ = 0;
};

// Walks [begin, end) in tiles of P, then of P/2 ... 1 jobs. Tile<P, VECTORS>::run(input, weights, ones) counts the ones of
// input xor weights from their start on, in registers; VECTORS is the number of 16-channel vectors in the block. Counts are
// exact in floats (program.cpp bounds the reduction).
template <template <int, int> class Tile, int VECTORS, int P, Form FORM>
KERNEL_NOINLINE int binary_tiles(const BinaryConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    const int padded = block_count(a.out_channels) * kBlock;
    const uint32_t* weights = a.weights + int64_t{block} * a.words * kBlock;
    const Ahead ahead(a, block, (end - begin) / P);
    int j = begin;
    for (int t = 0; j + P <= end; j += P, ++t) {
        TileInput<P> in;
        for (int i = 0; i < P; ++i) {
            in.job[i] = a.input + a.job_offset[j + i];
            in.start[i] = a.start + int64_t{a.border_case[j + i]} * padded + block * kBlock;
        }
        in.word_offset = a.word_offset;
        in.words = a.words;
        ahead.part(t, in);
        __m512i ones[P][VECTORS];
        Tile<P, VECTORS>::run(in, weights, ones);
        int32_t pixel[P];
        __m512 x[P][VECTORS];
        unrolled<P>([&](auto i) KERNEL_LAMBDA {
            pixel[i] = pixel_of(a.pixel, j + i);
            unrolled<VECTORS>([&](auto v) KERNEL_LAMBDA {
                x[i][v] = _mm512_cvtepi32_ps(ones[i][v]);
                if constexpr ((FORM & kCounts) == 0) x[i][v] = sum_of(a, j + i, x[i][v]);
            });
        });
        run.tile<FORM>(pixel, block * kBlock, x);
    }
    if constexpr (P > 1) j = binary_tiles<Tile, VECTORS, P / 2, FORM>(a, run, j, end, block);
    return j;
}

template <template <int, int> class Tile, int VECTORS, int P>
void binary_forms(const BinaryConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    with_counts(run, a, a.out_channels - block * kBlock >= VECTORS * V::kLanes,
              [&](auto form) { binary_tiles<Tile, VECTORS, P, form()>(a, run, begin, end, block); });
}

// NARROW, WIDE: jobs a tile for up to 32 channels and for more.
template <template <int, int> class Tile, int NARROW, int WIDE>
void binary_conv_blocks(const BinaryConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    switch (block_lanes(a.out_channels, block) / V::kLanes) {
        case 1: binary_forms<Tile, 1, NARROW>(a, run, begin, end, block); break;
        case 2: binary_forms<Tile, 2, NARROW>(a, run, begin, end, block); break;
        case 3: binary_forms<Tile, 3, WIDE>(a, run, begin, end, block); break;
        default: binary_forms<Tile, 4, WIDE>(a, run, begin, end, block); break;
    }
}

// A part of a float convolution's reduction: terms [k0, k1) of each run in [r0, r1).
struct Part {
    int r0, r1, k0, k1;
};

// Adds a part for P pixels x VECTORS * 16 channels to `sums` (or starts them); the input float is broadcast. At most
// eight pixels: more would not keep their addresses in registers.
template <int P, int VECTORS>
KERNEL_INLINE void real_tile(const RealConvArgs& a, const Part& part, int j, const float* weights, float (*sums)[kBlock]) {
    constexpr int kRow = VECTORS * V::kLanes;
    constexpr int kAhead = 16 * kRow;  // one pixel (a dense layer) is bound by reading its weights once
    const bool start = part.r0 == 0 && part.k0 == 0;
    __m512 acc[P][VECTORS];
    for (int i = 0; i < P; ++i)
        for (int v = 0; v < VECTORS; ++v) acc[i][v] = start ? _mm512_setzero_ps() : _mm512_load_ps(sums[i] + v * V::kLanes);
    for (int r = part.r0; r < part.r1; ++r) {
        const float* w = weights + (int64_t{r} * a.run_length + part.k0) * kRow;
        const float* in[P];
        for (int i = 0; i < P; ++i) in[i] = a.input + a.job_offset[j + i] + a.run_offset[r];
        for (int k = part.k0; k < part.k1; ++k, w += kRow) {
            __m512 weight[VECTORS];
            for (int v = 0; v < VECTORS; ++v) {
                weight[v] = _mm512_loadu_ps(w + v * V::kLanes);
                if constexpr (P == 1) _mm_prefetch(reinterpret_cast<const char*>(w + v * V::kLanes + kAhead), _MM_HINT_T0);
            }
            for (int i = 0; i < P; ++i) {
                const __m512 x = _mm512_set1_ps(in[i][k]);
                for (int v = 0; v < VECTORS; ++v) acc[i][v] = _mm512_fmadd_ps(x, weight[v], acc[i][v]);
            }
        }
    }
    for (int i = 0; i < P; ++i)
        for (int v = 0; v < VECTORS; ++v) _mm512_store_ps(sums[i] + v * V::kLanes, acc[i][v]);
}

// Long reductions go in parts whose weights (22 KiB) stay in the first cache while several tiles use them.
template <int VECTORS, int P, int TILES>
void real_tiles(const RealConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    constexpr int kTerms = 22528 / (VECTORS * V::kLanes * static_cast<int>(sizeof(float)));
    const int run_step = std::max(1, kTerms / a.run_length), term_step = std::min(a.run_length, kTerms);
    const float* weights = a.weights + int64_t{block} * a.runs * a.run_length * kBlock;
    alignas(64) float sums[P * TILES][kBlock];
    int j = begin;
    while (j + P <= end) {
        const int tiles = std::min(TILES, (end - j) / P);
        for (int r = 0; r < a.runs; r += run_step)
            for (int k = 0; k < a.run_length; k += term_step) {
                const Part part = {r, std::min(a.runs, r + run_step), k, std::min(a.run_length, k + term_step)};
                for (int t = 0; t < tiles; ++t) real_tile<P, VECTORS>(a, part, j + t * P, weights, sums + t * P);
            }
        int32_t pixel[P * TILES];
        for (int i = 0; i < tiles * P; ++i) pixel[i] = pixel_of(a.pixel, j + i);
        finish_rows<VECTORS>(run, pixel, block, sums, tiles * P);
        j += tiles * P;
    }
    if constexpr (P > 1) real_tiles<VECTORS, P / 2, 1>(a, run, j, end, block);
}

void real_conv(const RealConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    switch (block_lanes(a.out_channels, block) / V::kLanes) {
        case 1: real_tiles<1, 8, 4>(a, run, begin, end, block); break;
        case 2: real_tiles<2, 8, 4>(a, run, begin, end, block); break;
        case 3: real_tiles<3, 8, 4>(a, run, begin, end, block); break;
        default: real_tiles<4, 6, 4>(a, run, begin, end, block); break;
    }
}

}  // namespace
