// Tiles of the int8 convolution for both AVX-512 sets. Included inside the namespace of each.

#include "int8_conv_inl.h"

namespace {

// sum[i] + the four products of bytes and weights in lane i. Written out: GCC 12 keeps the sums of its own intrinsic in
// memory, and this file is also compiled for processors without the instruction.
inline __m512i dot_bytes(__m512i sum, __m512i bytes, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(weights));
    return sum;
}

// With VNNI: one instruction multiplies four bytes of a pixel with 16 channels' weights and adds all four products. The
// bytes are broadcast and used VECTORS times, a vector of weights P times.
template <int P, int VECTORS>
struct VnniTile {
    static constexpr int kPixels = VECTORS == 4 ? 6 : 8;

    static void run(const Int8ConvArgs& a, int j, const int8_t* w, int32_t (*sums)[kBlock]) {
        if constexpr (P * VECTORS <= 4) return run_chains(a, j, w, sums);
        const uint8_t* in[P];
        __m512i acc[P][VECTORS];
        __m512i zero = _mm512_setzero_si512();
        asm("" : "+v"(zero));  // or GCC 12 clears the sums in memory first
        for (int i = 0; i < P; ++i) {
            in[i] = a.input + a.job_offset[j + i];
            for (int v = 0; v < VECTORS; ++v) acc[i][v] = zero;
        }
        for (int g = 0; g < a.groups; ++g, w += VECTORS * 64) {
            const int32_t offset = a.group_offset[g];
            __m512i weight[VECTORS];
            for (int v = 0; v < VECTORS; ++v) weight[v] = _mm512_loadu_si512(w + v * 64);
            for (int i = 0; i < P; ++i) {
                __m512i x = _mm512_set1_epi32(four_bytes(in[i] + offset));
                asm("" : "+v"(x));  // keeps the broadcast in one register instead of one memory operand a use
                for (int v = 0; v < VECTORS; ++v) acc[i][v] = dot_bytes(acc[i][v], x, weight[v]);
            }
        }
        for (int i = 0; i < P; ++i)
            for (int v = 0; v < VECTORS; ++v) _mm512_store_si512(sums[i] + v * 16, acc[i][v]);
    }

private:
    // Few sums: two of each cover the latency of the instruction. A dense layer is bound by reading its weights once.
    static void run_chains(const Int8ConvArgs& a, int j, const int8_t* w, int32_t (*sums)[kBlock]) {
        constexpr int kRow = VECTORS * 64;
        constexpr int kAhead = 16 * kRow;
        for (int i = 0; i < P; ++i) {
            const uint8_t* in = a.input + a.job_offset[j + i];
            __m512i even[VECTORS], odd[VECTORS];
            for (int v = 0; v < VECTORS; ++v) even[v] = odd[v] = _mm512_setzero_si512();
            const int8_t* at = w;
            int g = 0;
            for (; g + 2 <= a.groups; g += 2, at += 2 * kRow) {
                const __m512i x = _mm512_set1_epi32(four_bytes(in + a.group_offset[g]));
                const __m512i y = _mm512_set1_epi32(four_bytes(in + a.group_offset[g + 1]));
                for (int v = 0; v < VECTORS; ++v) {
                    _mm_prefetch(reinterpret_cast<const char*>(at + v * 64 + kAhead), _MM_HINT_T0);
                    _mm_prefetch(reinterpret_cast<const char*>(at + v * 64 + kAhead + kRow), _MM_HINT_T0);
                    even[v] = dot_bytes(even[v], x, _mm512_loadu_si512(at + v * 64));
                    odd[v] = dot_bytes(odd[v], y, _mm512_loadu_si512(at + kRow + v * 64));
                }
            }
            if (g < a.groups) {
                const __m512i x = _mm512_set1_epi32(four_bytes(in + a.group_offset[g]));
                for (int v = 0; v < VECTORS; ++v) even[v] = dot_bytes(even[v], x, _mm512_loadu_si512(at + v * 64));
            }
            for (int v = 0; v < VECTORS; ++v) _mm512_store_si512(sums[i] + v * 16, _mm512_add_epi32(even[v], odd[v]));
        }
    }
};

// Without (int8_widening_inl.h).
struct W {
    using I = __m512i;
    static constexpr int kChannels = 8;
    static constexpr int kSums = 16;  // that a tile keeps in registers

    static I zero() { return _mm512_setzero_si512(); }
    static I widen(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static I load(const int16_t* p) { return _mm512_load_si512(p); }
    static void store(int16_t* p, I x) { _mm512_store_si512(p, x); }
    static I spread(const int16_t* p) { return _mm512_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
    static I dot(I sum, I x, I w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w)); }
    template <int N>
    static void reduce(const I* sums, int32_t* to, bool add) {
        for (int n = 0; n < N; ++n) {
            const I pairs = _mm512_add_epi32(sums[n], _mm512_srli_epi64(sums[n], 32));
            __m256i* at = reinterpret_cast<__m256i*>(to + n * kChannels);
            const __m256i total = _mm512_cvtepi64_epi32(pairs);
            _mm256_store_si256(at, add ? _mm256_add_epi32(total, _mm256_load_si256(at)) : total);
        }
    }
};

}  // namespace

#include "int8_widening_inl.h"
