// What both AVX-512 sets share: the vector type, the loops over channel blocks and jobs, and the float convolution.
// Included inside the namespace of each set (see common_inl.h for why).

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
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F select_ge0(F x, F yes, F no) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), no, yes);
    }
    // Signs of 64 channels; masks are joined in mask registers and stored from there.
    static void write_signs(uint32_t* words, const F (&x)[4]) {
        const __m512 zero = _mm512_setzero_ps();
        const auto mask = [&](int v) { return static_cast<__mmask32>(_mm512_cmp_ps_mask(x[v], zero, _CMP_GE_OQ)); };
        _store_mask32(reinterpret_cast<__mmask32*>(words), _mm512_kunpackw(mask(1), mask(0)));
        _store_mask32(reinterpret_cast<__mmask32*>(words + 1), _mm512_kunpackw(mask(3), mask(2)));
    }
    static uint32_t ge0(F a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GE_OQ); }
    static F sum_of(const int32_t* a, const int32_t* b) {
        return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_loadu_si512(a), _mm512_loadu_si512(b)));
    }
    static F max_or(F x, F y) { return _mm512_max_ps(x, y); }
    static void store_bytes_n(uint8_t* p, F x, int zero, int n) {
        _mm512_mask_cvtepi32_storeu_epi8(p, first(n), _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(zero)));
    }
};

}  // namespace

#include "common_inl.h"

namespace {

// Where a tile of P jobs reads: framed input of each job, and the words of the reduction.
template <int P>
struct TileInput {
    const uint32_t* job[P];
    const int32_t* word_offset;
    int words;
};

// The weights of the next block, fetched into the second cache a part a tile: the blocks of a wide layer come from memory
// that is farther away.
struct Ahead {
    const char* next = nullptr;
    int64_t bytes = 0, part = 0;

    Ahead(const BinaryConvArgs& a, int block, int tiles) {
        if (block + 1 >= block_count(a.out_channels) || tiles == 0) return;
        next = reinterpret_cast<const char*>(a.weights + int64_t{block + 1} * a.words * kBlock);
        bytes = int64_t{a.words} * block_lanes(a.out_channels, block + 1) * 4;
        part = (bytes / tiles + 63) / 64 * 64;
    }
    void fetch(int tile) const {
        const int64_t end = std::min(bytes, (tile + 1) * part);
        for (int64_t at = tile * part; at < end; at += 64) _mm_prefetch(next + at, _MM_HINT_T1);
    }
};

// Walks [begin, end) in tiles of P, then of P/2 ... 1 jobs. Tile<P, VECTORS>::run(input, weights, ones) counts the ones of
// input xor weights, in registers; VECTORS is the number of 16-channel vectors in the block. base - 2 * ones is exact in
// floats (program.cpp bounds the reduction).
template <template <int, int> class Tile, int VECTORS, int P>
int binary_tiles(const BinaryConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    const int padded = block_count(a.out_channels) * kBlock;
    const uint32_t* weights = a.weights + int64_t{block} * a.words * kBlock;
    const __m512 minus_two = _mm512_set1_ps(-2.0f);
    const Ahead ahead(a, block, (end - begin) / P);
    int j = begin;
    for (int t = 0; j + P <= end; j += P, ++t) {
        ahead.fetch(t);
        TileInput<P> in;
        for (int i = 0; i < P; ++i) in.job[i] = a.input + a.job_offset[j + i];
        in.word_offset = a.word_offset;
        in.words = a.words;
        __m512i ones[P][VECTORS];
        Tile<P, VECTORS>::run(in, weights, ones);
        int32_t pixel[P];
        __m512 x[P][VECTORS];
        unrolled<P>([&](auto i) KERNEL_LAMBDA {
            pixel[i] = pixel_of(a.pixel, j + i);
            const float* base = a.base + int64_t{a.border_case[j + i]} * padded + block * kBlock;
            unrolled<VECTORS>([&](auto v) KERNEL_LAMBDA {
                x[i][v] = _mm512_fmadd_ps(minus_two, _mm512_cvtepi32_ps(ones[i][v]), _mm512_loadu_ps(base + v * V::kLanes));
            });
        });
        run.tile(pixel, block * kBlock, x);
    }
    if constexpr (P > 1) j = binary_tiles<Tile, VECTORS, P / 2>(a, run, j, end, block);
    return j;
}

// NARROW, WIDE: jobs a tile for up to 32 channels and for more.
template <template <int, int> class Tile, int NARROW, int WIDE>
void binary_conv_blocks(const BinaryConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    switch (block_lanes(a.out_channels, block) / V::kLanes) {
        case 1: binary_tiles<Tile, 1, NARROW>(a, run, begin, end, block); break;
        case 2: binary_tiles<Tile, 2, NARROW>(a, run, begin, end, block); break;
        case 3: binary_tiles<Tile, 3, WIDE>(a, run, begin, end, block); break;
        default: binary_tiles<Tile, 4, WIDE>(a, run, begin, end, block); break;
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
