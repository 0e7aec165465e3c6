// AVX2 with FMA.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels.h"

namespace leanconv::avx2 {
namespace {

struct V {
    static constexpr int kLanes = 8;
    using F = __m256;
    static __m256i first(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static F set1(float a) { return _mm256_set1_ps(a); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static F load_n(const float* p, int n) {
        return n >= kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(n));
    }
    static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
    static void store_n(float* p, F a, int n) {
        if (n >= kLanes)
            _mm256_storeu_ps(p, a);
        else
            _mm256_maskstore_ps(p, first(n), a);
    }
    static F widen(__m128i halves) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)); }
    static F load(const Bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static F load_n(const Bf16* p, int n) {
        alignas(16) Bf16 halves[kLanes] = {};
        std::memcpy(halves, p, sizeof(Bf16) * static_cast<size_t>(n));
        return load(halves);
    }
    // Adds just below half of what is cut, one more where the last bit that stays is 1; NaN becomes the quiet one of its sign.
    static __m128i narrow(F a) {
        const __m256i bits = _mm256_castps_si256(a);
        const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
        const __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
        const __m256i tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
        const __m256i zero = _mm256_and_si256(bits, _mm256_set1_epi32(INT32_MIN));
        const __m256i halves = _mm256_srli_epi32(_mm256_blendv_epi8(_mm256_blendv_epi8(sum, quiet, nan), zero, tiny), 16);
        return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    }
    static void store(Bf16* p, F a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a)); }
    static void store_n(Bf16* p, F a, int n) {
        alignas(16) Bf16 halves[kLanes];
        store(halves, a);
        std::memcpy(p, halves, sizeof(Bf16) * static_cast<size_t>(n));
    }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F select_ge0(F x, F yes, F no) {
        return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
    }
    static uint32_t ge0(F a) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GE_OQ)));
    }
    using I = __m256i;
    static I load_int(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store_int(int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
    static I set1_int(int32_t a) { return _mm256_set1_epi32(a); }
    static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
    static I max_int(I a, I b) { return _mm256_max_epi32(a, b); }
    static I xor_int(I a, I b) { return _mm256_xor_si256(a, b); }
    static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
    static F max_or(F x, F y) { return _mm256_max_ps(x, y); }
    static void store_bytes_n(uint8_t* p, F x, int zero, int n) {
        const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(zero));
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        const long long bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
        std::memcpy(p, &bytes, static_cast<size_t>(n));
    }
};

}  // namespace

#include "common_inl.h"
#include "depthwise_inl.h"
#include "int8_conv_inl.h"

namespace {

// Ones of input xor weights by table: a nibble of the input chooses one of 16 tables, a nibble of each weight (a byte for each
// of 32 channels) looks up in it how many of the four bits differ. Two instructions count 128 products, where xor and the
// usual nibble counting need four.
struct DifferenceTables {
    alignas(32) uint8_t of[16][32];
    constexpr DifferenceTables() : of() {
        for (int x = 0; x < 16; ++x)
            for (int w = 0; w < 32; ++w) of[x][w] = static_cast<uint8_t>(std::popcount(static_cast<unsigned>(x ^ (w & 15))));
    }
};
constexpr DifferenceTables kDifferences;

constexpr int kByteWords = 7;      // 7 words of 8 nibbles: 224 differences fit a byte
constexpr int kShortWords = 2044;  // 65,408 fit 16 bits; whole groups of 7

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// What P jobs read and the words of the reduction, as far as they are counted at once.
template <int P>
struct TileInput {
    const uint32_t* job[P];
    const int32_t* word_offset;
    int words;
};

// P jobs x VECTORS * 32 channels, `in.words` of the reduction, at most kShortWords: counts in 16 bits. Returns the weights
// behind those that it used.
template <int P, int VECTORS>
const uint8_t* count_tile(const TileInput<P>& in, const uint8_t* w, uint16_t (&pop)[P][kBlock]) {
    for (int k = 0; k < in.words || k == 0;) {
        const bool first = k == 0;
        __m256i bytes[P][VECTORS];
        unrolled<P>([&](auto i) KERNEL_LAMBDA { unrolled<VECTORS>([&](auto v) KERNEL_LAMBDA { bytes[i][v] = _mm256_setzero_si256(); }); });
        const int stop = std::min(k + kByteWords, in.words);
        for (; k < stop; ++k) {
            const int32_t offset = in.word_offset[k];
            uint32_t word[P];
            unrolled<P>([&](auto i) KERNEL_LAMBDA { word[i] = in.job[i][offset]; });
            unrolled<8>([&](auto nibble) KERNEL_LAMBDA {
                __m256i weight[VECTORS];
                unrolled<VECTORS>([&](auto v) KERNEL_LAMBDA { weight[v] = load_bytes(w + (nibble * VECTORS + v) * 32); });
                unrolled<P>([&](auto i) KERNEL_LAMBDA {
                    const uint32_t at = std::rotr(word[i], 4 * nibble - 5) & 15 << 5;  // nibble * 32: two instructions
                    const __m256i table = load_bytes(kDifferences.of[0] + at);
                    unrolled<VECTORS>([&](auto v) KERNEL_LAMBDA {
                        __m256i sum = _mm256_add_epi8(bytes[i][v], _mm256_shuffle_epi8(table, weight[v]));
                        asm("" : "+x"(sum));  // g++ would first look everything up and then add
                        bytes[i][v] = sum;
                    });
                });
            });
            w += 8 * VECTORS * 32;
        }
        unrolled<P>([&](auto i) KERNEL_LAMBDA {
            unrolled<VECTORS>([&](auto v) KERNEL_LAMBDA {
                __m256i* to = reinterpret_cast<__m256i*>(pop[i] + v * 32);
                const __m256i lo = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes[i][v]));
                const __m256i hi = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes[i][v], 1));
                _mm256_store_si256(to, first ? lo : _mm256_add_epi16(_mm256_load_si256(to), lo));
                _mm256_store_si256(to + 1, first ? hi : _mm256_add_epi16(_mm256_load_si256(to + 1), hi));
            });
        });
        if (in.words == 0) break;
    }
    return w;
}

// P jobs to the epilogue; ones(i, c) are the counts of job i, channels [c, c + 8).
template <Form FORM, int P, int VECTORS, class Ones>
KERNEL_INLINE void finish(const BinaryConvArgs& a, const EpilogueRunner& run, int j, int block, Ones ones) {
    const int padded = block_count(a.out_channels) * kBlock;
    for (int i = 0; i < P; ++i) {
        const int32_t pixel = pixel_of(a.pixel, j + i);
        const int32_t* start = a.start + int64_t{a.border_case[j + i]} * padded + block * kBlock;
        V::F x[1][VECTORS * 32 / V::kLanes];
        unrolled<VECTORS * 32 / V::kLanes>([&](auto v) KERNEL_LAMBDA {
            x[0][v] = V::to_float(V::add_int(ones(i, v * V::kLanes), V::load_int(start + v * V::kLanes)));
            if constexpr ((FORM & kCounts) == 0) x[0][v] = sum_of(a, j + i, x[0][v]);
        });
        run.tile<FORM>(&pixel, block * kBlock, x);
    }
}

template <int P, int VECTORS, Form FORM>
KERNEL_NOINLINE void binary_tiles(const BinaryConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    const uint8_t* weights = reinterpret_cast<const uint8_t*>(a.weights) + int64_t{block} * a.words * 8 * kBlock;
    alignas(32) uint16_t pop[P][kBlock];
    int j = begin;
    for (; j + P <= end; j += P) {
        TileInput<P> in;
        for (int i = 0; i < P; ++i) in.job[i] = a.input + a.job_offset[j + i];
        in.word_offset = a.word_offset;
        in.words = std::min(a.words, kShortWords);
        const uint8_t* w = count_tile<P, VECTORS>(in, weights, pop);
        if (a.words > kShortWords) {
            alignas(32) int32_t total[P][kBlock] = {};
            for (int done = in.words;;) {
                for (int i = 0; i < P; ++i)
                    for (int c = 0; c < VECTORS * 32; ++c) total[i][c] += pop[i][c];
                if (done == a.words) break;
                in.word_offset = a.word_offset + done;
                in.words = std::min(a.words - done, kShortWords);
                w = count_tile<P, VECTORS>(in, w, pop);
                done += in.words;
            }
            finish<FORM, P, VECTORS>(a, run, j, block, [&](int i, int c) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(total[i] + c)); });
            continue;
        }
        finish<FORM, P, VECTORS>(a, run, j, block, [&](int i, int c) { return _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(pop[i] + c))); });
    }
    if constexpr (P > 1) binary_tiles<P / 2, VECTORS, FORM>(a, run, j, end, block);
}

void binary_conv(const BinaryConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    const int channels = a.out_channels - block * kBlock;
    if (block_lanes(a.out_channels, block) > 32)
        with_counts(run, a, channels >= 64, [&](auto form) { binary_tiles<4, 2, form()>(a, run, begin, end, block); });
    else
        with_counts(run, a, channels == 32, [&](auto form) { binary_tiles<4, 1, form()>(a, run, begin, end, block); });
}

// P pixels x 16 channels of float sums in registers.
template <int P>
void real_tile(const RealConvArgs& a, int j, const float* w, int lanes, int c, float (*sums)[kBlock]) {
    __m256 acc[P][2];
    for (int i = 0; i < P; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    for (int r = 0; r < a.runs; ++r) {
        const float* in[P];
        for (int i = 0; i < P; ++i) in[i] = a.input + a.job_offset[j + i] + a.run_offset[r];
        for (int k = 0; k < a.run_length; ++k, w += lanes) {
            const __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
            for (int i = 0; i < P; ++i) {
                const __m256 x = _mm256_broadcast_ss(in[i] + k);
                acc[i][0] = _mm256_fmadd_ps(x, w0, acc[i][0]);
                acc[i][1] = _mm256_fmadd_ps(x, w1, acc[i][1]);
            }
        }
    }
    for (int i = 0; i < P; ++i) {
        _mm256_store_ps(sums[i] + c, acc[i][0]);
        _mm256_store_ps(sums[i] + c + 8, acc[i][1]);
    }
}

template <int P>
void real_tiles(const RealConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    const int lanes = block_lanes(a.out_channels, block);
    const float* weights = a.weights + int64_t{block} * a.runs * a.run_length * kBlock;
    alignas(64) float sums[P][kBlock];
    int j = begin;
    for (; j + P <= end; j += P) {
        for (int c = 0; c < lanes; c += 16) real_tile<P>(a, j, weights + c, lanes, c, sums);
        for (int i = 0; i < P; ++i) finish_row(run, pixel_of(a.pixel, j + i), block * kBlock, a.out_channels - block * kBlock, sums[i]);
    }
    if constexpr (P > 1) real_tiles<P / 2>(a, run, j, end, block);
}

void real_conv(const RealConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    real_tiles<6>(a, run, begin, end, block);
}

// For int8_widening_inl.h.
struct W {
    using I = __m256i;
    static constexpr int kChannels = 4;
    static constexpr int kSums = 8;  // that a tile keeps in registers

    static I zero() { return _mm256_setzero_si256(); }
    static I widen(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static I load(const int16_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store(int16_t* p, I x) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
    static I spread(const int16_t* p) { return _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
    static I dot(I sum, I x, I w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)); }
    template <int N>
    static void reduce(const I* sums, int32_t* to, bool add) {
        for (int n = 0; n < N; n += 2) {
            const I pairs = _mm256_hadd_epi32(sums[n], sums[n + 1]);
            const I total = _mm256_permute4x64_epi64(pairs, 0xd8);
            __m256i* at = reinterpret_cast<__m256i*>(to + n * kChannels);
            _mm256_store_si256(at, add ? _mm256_add_epi32(total, _mm256_load_si256(at)) : total);
        }
    }
};

}  // namespace

#include "int8_widening_inl.h"

namespace {

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {"avx2",      supported, BinaryWeights::nibbles, binary_conv, real_conv, pool,
                          elementwise, int8_conv_widened, int8_conv_pooled_widened, depthwise};

}  // namespace leanconv::avx2
