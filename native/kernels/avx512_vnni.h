// The inner tiles of the int8 convolution with VNNI, in assembly: P jobs x VECTORS * 16 channels, all groups.
//
// One instruction multiplies four bytes of a pixel with 16 channels' weights and adds all four products. The bytes are
// broadcast and used VECTORS times, a vector of weights P times. Spelled out because g++ 12 copies sums that stay in
// registers behind the loop; and avx512.cpp is also compiled for processors without the instruction.
// Included inside the namespace of each AVX-512 set, behind int8_conv_inl.h.
//
// Registers: zmm16-19 weights of a group, zmm20 and zmm21 the bytes of two jobs; sums where the compiler likes.

namespace {

#define LC_BYTES(I) "vpbroadcastd (%[job" #I "],%%r8), %%zmm"
#define LC_DOT(I, X, V, W) "vpdpbusd %%zmm" W ", %%zmm" X ", %[s" #I #V "]\n"
#define LC_JOB1(I, X) LC_BYTES(I) X "\n" LC_DOT(I, X, 0, "16")
#define LC_JOB2(I, X) LC_JOB1(I, X) LC_DOT(I, X, 1, "17")
#define LC_JOB3(I, X) LC_JOB2(I, X) LC_DOT(I, X, 2, "18")
#define LC_JOB4(I, X) LC_JOB3(I, X) LC_DOT(I, X, 3, "19")

#define LC_WEIGHTS1 "vmovdqu32 (%[w]), %%zmm16\n"
#define LC_WEIGHTS2 LC_WEIGHTS1 "vmovdqu32 64(%[w]), %%zmm17\n"
#define LC_WEIGHTS3 LC_WEIGHTS2 "vmovdqu32 128(%[w]), %%zmm18\n"
#define LC_WEIGHTS4 LC_WEIGHTS3 "vmovdqu32 192(%[w]), %%zmm19\n"

#define LC_BASE1(I) "vmovdqu32 (%[base]), %[s" #I "0]\n"
#define LC_BASE2(I) LC_BASE1(I) "vmovdqu32 64(%[base]), %[s" #I "1]\n"
#define LC_BASE3(I) LC_BASE2(I) "vmovdqu32 128(%[base]), %[s" #I "2]\n"
#define LC_BASE4(I) LC_BASE3(I) "vmovdqu32 192(%[base]), %[s" #I "3]\n"

#define LC_OUT(I, V) [s##I##V] "=&v"(s##I##V)
#define LC_OUTS1(I) LC_OUT(I, 0)
#define LC_OUTS2(I) LC_OUTS1(I), LC_OUT(I, 1)
#define LC_OUTS3(I) LC_OUTS2(I), LC_OUT(I, 2)
#define LC_OUTS4(I) LC_OUTS3(I), LC_OUT(I, 3)

#define LC_NAMES1(I) s##I##0
#define LC_NAMES2(I) LC_NAMES1(I), s##I##1
#define LC_NAMES3(I) LC_NAMES2(I), s##I##2
#define LC_NAMES4(I) LC_NAMES3(I), s##I##3

#define LC_KEEP1(I) sums[I][0] = s##I##0;
#define LC_KEEP2(I) LC_KEEP1(I) sums[I][1] = s##I##1;
#define LC_KEEP3(I) LC_KEEP2(I) sums[I][2] = s##I##2;
#define LC_KEEP4(I) LC_KEEP3(I) sums[I][3] = s##I##3;

#define LC_INPUT(I) [job##I] "r"(in[I])

// P jobs: each macro for all of them, with a comma or nothing between
#define LC_ALL2(M) M(0) M(1)
#define LC_ALL4(M) LC_ALL2(M) M(2) M(3)
#define LC_ALL8(M) LC_ALL4(M) M(4) M(5) M(6) M(7)
#define LC_LIST2(M) M(0), M(1)
#define LC_LIST4(M) LC_LIST2(M), M(2), M(3)
#define LC_LIST8(M) LC_LIST4(M), M(4), M(5), M(6), M(7)
#define LC_TURNS2(M) M(0, "20") M(1, "21")
#define LC_TURNS4(M) LC_TURNS2(M) M(2, "20") M(3, "21")
#define LC_TURNS8(M) LC_TURNS4(M) M(4, "20") M(5, "21") M(6, "20") M(7, "21")

#define LC_TILE(P, VECTORS)                                                                                                 \
    static KERNEL_INLINE void run(const Int8ConvArgs& a, int j, const int8_t* w, const int32_t* base,                       \
                                  __m512i (&sums)[P][VECTORS]) {                                                            \
        const int32_t *at = a.group_offset, *const end = at + a.groups;                                                     \
        const uint8_t* in[P];                                                                                               \
        unrolled<P>([&](auto i) KERNEL_LAMBDA { in[i] = a.input + a.job_offset[j + i]; });                                  \
        __m512i LC_LIST##P(LC_NAMES##VECTORS);                                                                              \
        asm volatile(LC_ALL##P(LC_BASE##VECTORS)                                                                            \
                     "cmp %[at], %[end]\n"                                                                                  \
                     "je 2f\n"                                                                                              \
                     ".p2align 5\n"                                                                                         \
                     "1:\n"                                                                                                 \
                     "movslq (%[at]), %%r8\n"                                                                               \
                     LC_WEIGHTS##VECTORS                                                                                    \
                     "add $4, %[at]\n"                                                                                      \
                     "add $(64 * " #VECTORS "), %[w]\n"                                                                     \
                     LC_TURNS##P(LC_JOB##VECTORS)                                                                           \
                     "cmp %[at], %[end]\n"                                                                                  \
                     "jne 1b\n"                                                                                             \
                     "2:\n"                                                                                                 \
                     : LC_LIST##P(LC_OUTS##VECTORS), [at] "+r"(at), [w] "+r"(w)                                             \
                     : LC_LIST##P(LC_INPUT), [base] "r"(base), [end] "r"(end)                                               \
                     : "r8", "cc", "memory", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21");                         \
        LC_ALL##P(LC_KEEP##VECTORS)                                                                                         \
    }

inline __m512i dot_bytes(__m512i sum, __m512i bytes, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(weights));
    return sum;
}

// Few sums: two of each cover the latency of the instruction. A dense layer is bound by reading its weights once.
template <int P, int VECTORS>
struct VnniTile {
    static constexpr int kPixels = VECTORS == 1 ? 8 : 4;
    static_assert(P * VECTORS <= 4);

    static KERNEL_INLINE void run(const Int8ConvArgs& a, int j, const int8_t* w, const int32_t* base, __m512i (&sums)[P][VECTORS]) {
        unrolled<P>([&](auto i) KERNEL_LAMBDA { chains(a, j + i, w, base, sums[i]); });
    }

private:
    static KERNEL_INLINE void chains(const Int8ConvArgs& a, int j, const int8_t* w, const int32_t* base, __m512i (&sums)[VECTORS]) {
        constexpr int kRow = VECTORS * 64;
        constexpr int kAhead = 16 * kRow;
        const uint8_t* in = a.input + a.job_offset[j];
        __m512i even[VECTORS], odd[VECTORS];
        for (int v = 0; v < VECTORS; ++v) even[v] = _mm512_loadu_si512(base + v * 16), odd[v] = _mm512_setzero_si512();
        int g = 0;
        for (; g + 2 <= a.groups; g += 2, w += 2 * kRow) {
            const __m512i x = _mm512_set1_epi32(four_bytes(in + a.group_offset[g]));
            const __m512i y = _mm512_set1_epi32(four_bytes(in + a.group_offset[g + 1]));
            for (int v = 0; v < VECTORS; ++v) {
                _mm_prefetch(reinterpret_cast<const char*>(w + v * 64 + kAhead), _MM_HINT_T0);
                _mm_prefetch(reinterpret_cast<const char*>(w + v * 64 + kAhead + kRow), _MM_HINT_T0);
                even[v] = dot_bytes(even[v], x, _mm512_loadu_si512(w + v * 64));
                odd[v] = dot_bytes(odd[v], y, _mm512_loadu_si512(w + kRow + v * 64));
            }
        }
        if (g < a.groups) {
            const __m512i x = _mm512_set1_epi32(four_bytes(in + a.group_offset[g]));
            for (int v = 0; v < VECTORS; ++v) even[v] = dot_bytes(even[v], x, _mm512_loadu_si512(w + v * 64));
        }
        for (int v = 0; v < VECTORS; ++v) sums[v] = _mm512_add_epi32(even[v], odd[v]);
    }
};

// clang-format off
template <> struct VnniTile<8, 1> { LC_TILE(8, 1) };
template <> struct VnniTile<4, 2> { LC_TILE(4, 2) };
template <> struct VnniTile<4, 3> { LC_TILE(4, 3) };
template <> struct VnniTile<2, 3> { LC_TILE(2, 3) };
template <> struct VnniTile<4, 4> { LC_TILE(4, 4) };
template <> struct VnniTile<2, 4> { LC_TILE(2, 4) };
// clang-format on

#undef LC_BYTES
#undef LC_DOT
#undef LC_JOB1
#undef LC_JOB2
#undef LC_JOB3
#undef LC_JOB4
#undef LC_WEIGHTS1
#undef LC_WEIGHTS2
#undef LC_WEIGHTS3
#undef LC_WEIGHTS4
#undef LC_BASE1
#undef LC_BASE2
#undef LC_BASE3
#undef LC_BASE4
#undef LC_OUT
#undef LC_OUTS1
#undef LC_OUTS2
#undef LC_OUTS3
#undef LC_OUTS4
#undef LC_NAMES1
#undef LC_NAMES2
#undef LC_NAMES3
#undef LC_NAMES4
#undef LC_KEEP1
#undef LC_KEEP2
#undef LC_KEEP3
#undef LC_KEEP4
#undef LC_INPUT
#undef LC_ALL2
#undef LC_ALL4
#undef LC_ALL8
#undef LC_LIST2
#undef LC_LIST4
#undef LC_LIST8
#undef LC_TURNS2
#undef LC_TURNS4
#undef LC_TURNS8
#undef LC_TILE

}  // namespace
