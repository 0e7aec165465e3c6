// The inner tiles of avx512vpopcntdq.cpp in assembly: P jobs x VECTORS * 16 channels, all words of the reduction.
//
// Three instructions for 512 bits: xor, count, add. Spelled out because g++ 12 adds a copy for every sum (a quarter of the
// instructions) as soon as the sums stay in registers behind the loop. Carry-save adders with the xors inside their
// ternary logic need fewer instructions, but the forms that were tried were slower on Zen 5.
// Included inside namespace leanconv::avx512vpopcntdq.
//
// Registers: zmm16-19 weights of a word, zmm20 and zmm21 the words of two jobs, zmm22-29 scratch; sums where the compiler
// likes.

namespace {

#define LC_ONES(W, X, T, SUM)                      \
    "vpxord %%zmm" W ", %%zmm" X ", %%zmm" T "\n"  \
    "vpopcntd %%zmm" T ", %%zmm" T "\n"            \
    "vpaddd %%zmm" T ", %[" SUM "], %[" SUM "]\n"
#define LC_WORD(JOB, X) "vpbroadcastd (%[" JOB "],%%r8,4), %%zmm" X "\n"

#define LC_JOB1(JOB, X, A) LC_WORD(JOB, X) LC_ONES("16", X, "22", A)
#define LC_JOB2(JOB, X, A, B) LC_JOB1(JOB, X, A) LC_ONES("17", X, "23", B)
#define LC_JOB3(JOB, X, A, B, C) LC_JOB2(JOB, X, A, B) LC_ONES("18", X, "24", C)
#define LC_JOB4(JOB, X, A, B, C, D) LC_JOB3(JOB, X, A, B, C) LC_ONES("19", X, "25", D)

#define LC_WEIGHTS1 "vmovdqu32 (%[w]), %%zmm16\n"
#define LC_WEIGHTS2 LC_WEIGHTS1 "vmovdqu32 64(%[w]), %%zmm17\n"
#define LC_WEIGHTS3 LC_WEIGHTS2 "vmovdqu32 128(%[w]), %%zmm18\n"
#define LC_WEIGHTS4 LC_WEIGHTS3 "vmovdqu32 192(%[w]), %%zmm19\n"

#define LC_START1(JOB, A) "mov 8 * " JOB "(%[starts]), %%r8\n" "vmovdqu32 (%%r8), %[" A "]\n"
#define LC_START2(JOB, A, B) LC_START1(JOB, A) "vmovdqu32 64(%%r8), %[" B "]\n"
#define LC_START3(JOB, A, B, C) LC_START2(JOB, A, B) "vmovdqu32 128(%%r8), %[" C "]\n"
#define LC_START4(JOB, A, B, C, D) LC_START3(JOB, A, B, C) "vmovdqu32 192(%%r8), %[" D "]\n"

#define LC_LOOP(VECTORS, STARTS, FETCH, JOBS) \
    STARTS                                    \
    "cmp %[at], %[end]\n"                     \
    "je 2f\n"                                 \
    ".p2align 5\n"                            \
    "1:\n"                                    \
    "movslq (%[at]), %%r8\n"                  \
    LC_WEIGHTS##VECTORS                       \
    "add $4, %[at]\n"                         \
    "add $(64 * " #VECTORS "), %[w]\n"        \
    FETCH                                     \
    JOBS                                      \
    "cmp %[at], %[end]\n"                     \
    "jne 1b\n"                                \
    "2:\n"

#define LC_FETCH "prefetcht1 (%[ahead])\n" "add %[step], %[ahead]\n"
#define LC_CLOBBERS \
    "r8", "cc", "memory", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25"
#define LC_SUM(S) [S] "=&v"(S)
#define LC_INPUT(I) [job##I] "r"(in.job[I])
#define LC_STARTS [starts] "r"(in.start)

// run(): ones[job][vector] = start plus ones of input xor weight, in each lane.
template <int P, int VECTORS>
struct PopcountTile;

template <>
struct PopcountTile<4, 4> {
    static KERNEL_INLINE void run(const TileInput<4>& in, const uint32_t* w, __m512i (&ones)[4][4]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23, s30, s31, s32, s33;
        asm volatile(LC_LOOP(4,
            LC_START4("0", "s00", "s01", "s02", "s03")
            LC_START4("1", "s10", "s11", "s12", "s13")
            LC_START4("2", "s20", "s21", "s22", "s23")
            LC_START4("3", "s30", "s31", "s32", "s33"),
            LC_FETCH,
            LC_JOB4("job0", "20", "s00", "s01", "s02", "s03")
            LC_JOB4("job1", "21", "s10", "s11", "s12", "s13")
            LC_JOB4("job2", "20", "s20", "s21", "s22", "s23")
            LC_JOB4("job3", "21", "s30", "s31", "s32", "s33"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s02), LC_SUM(s03), LC_SUM(s10), LC_SUM(s11), LC_SUM(s12),
               LC_SUM(s13), LC_SUM(s20), LC_SUM(s21), LC_SUM(s22), LC_SUM(s23), LC_SUM(s30), LC_SUM(s31),
               LC_SUM(s32), LC_SUM(s33), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), LC_INPUT(2), LC_INPUT(3), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[0][2] = s02; ones[0][3] = s03; ones[1][0] = s10; ones[1][1] = s11;
        ones[1][2] = s12; ones[1][3] = s13; ones[2][0] = s20; ones[2][1] = s21; ones[2][2] = s22; ones[2][3] = s23;
        ones[3][0] = s30; ones[3][1] = s31; ones[3][2] = s32; ones[3][3] = s33;
    }
};

template <>
struct PopcountTile<2, 4> {
    static KERNEL_INLINE void run(const TileInput<2>& in, const uint32_t* w, __m512i (&ones)[2][4]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01, s02, s03, s10, s11, s12, s13;
        asm volatile(LC_LOOP(4,
            LC_START4("0", "s00", "s01", "s02", "s03")
            LC_START4("1", "s10", "s11", "s12", "s13"),
            LC_FETCH,
            LC_JOB4("job0", "20", "s00", "s01", "s02", "s03")
            LC_JOB4("job1", "21", "s10", "s11", "s12", "s13"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s02), LC_SUM(s03), LC_SUM(s10), LC_SUM(s11), LC_SUM(s12),
               LC_SUM(s13), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[0][2] = s02; ones[0][3] = s03; ones[1][0] = s10; ones[1][1] = s11;
        ones[1][2] = s12; ones[1][3] = s13;
    }
};

template <>
struct PopcountTile<1, 4> {
    static KERNEL_INLINE void run(const TileInput<1>& in, const uint32_t* w, __m512i (&ones)[1][4]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01, s02, s03;
        asm volatile(LC_LOOP(4,
            LC_START4("0", "s00", "s01", "s02", "s03"),
            LC_FETCH,
            LC_JOB4("job0", "20", "s00", "s01", "s02", "s03"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s02), LC_SUM(s03), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[0][2] = s02; ones[0][3] = s03;
    }
};

template <>
struct PopcountTile<4, 3> {
    static KERNEL_INLINE void run(const TileInput<4>& in, const uint32_t* w, __m512i (&ones)[4][3]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01, s02, s10, s11, s12, s20, s21, s22, s30, s31, s32;
        asm volatile(LC_LOOP(3,
            LC_START3("0", "s00", "s01", "s02")
            LC_START3("1", "s10", "s11", "s12")
            LC_START3("2", "s20", "s21", "s22")
            LC_START3("3", "s30", "s31", "s32"),
            LC_FETCH,
            LC_JOB3("job0", "20", "s00", "s01", "s02")
            LC_JOB3("job1", "21", "s10", "s11", "s12")
            LC_JOB3("job2", "20", "s20", "s21", "s22")
            LC_JOB3("job3", "21", "s30", "s31", "s32"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s02), LC_SUM(s10), LC_SUM(s11), LC_SUM(s12), LC_SUM(s20),
               LC_SUM(s21), LC_SUM(s22), LC_SUM(s30), LC_SUM(s31), LC_SUM(s32), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), LC_INPUT(2), LC_INPUT(3), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[0][2] = s02; ones[1][0] = s10; ones[1][1] = s11; ones[1][2] = s12;
        ones[2][0] = s20; ones[2][1] = s21; ones[2][2] = s22; ones[3][0] = s30; ones[3][1] = s31; ones[3][2] = s32;
    }
};

template <>
struct PopcountTile<2, 3> {
    static KERNEL_INLINE void run(const TileInput<2>& in, const uint32_t* w, __m512i (&ones)[2][3]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01, s02, s10, s11, s12;
        asm volatile(LC_LOOP(3,
            LC_START3("0", "s00", "s01", "s02")
            LC_START3("1", "s10", "s11", "s12"),
            LC_FETCH,
            LC_JOB3("job0", "20", "s00", "s01", "s02")
            LC_JOB3("job1", "21", "s10", "s11", "s12"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s02), LC_SUM(s10), LC_SUM(s11), LC_SUM(s12), [at] "+r"(at),
               [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[0][2] = s02; ones[1][0] = s10; ones[1][1] = s11; ones[1][2] = s12;
    }
};

template <>
struct PopcountTile<1, 3> {
    static KERNEL_INLINE void run(const TileInput<1>& in, const uint32_t* w, __m512i (&ones)[1][3]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01, s02;
        asm volatile(LC_LOOP(3,
            LC_START3("0", "s00", "s01", "s02"),
            LC_FETCH,
            LC_JOB3("job0", "20", "s00", "s01", "s02"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s02), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[0][2] = s02;
    }
};

template <>
struct PopcountTile<8, 2> {
    static KERNEL_INLINE void run(const TileInput<8>& in, const uint32_t* w, __m512i (&ones)[8][2]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        in.fetch();  // operands are at most 30
        __m512i s00, s01, s10, s11, s20, s21, s30, s31, s40, s41, s50, s51, s60, s61, s70, s71;
        asm volatile(LC_LOOP(2,
            LC_START2("0", "s00", "s01")
            LC_START2("1", "s10", "s11")
            LC_START2("2", "s20", "s21")
            LC_START2("3", "s30", "s31")
            LC_START2("4", "s40", "s41")
            LC_START2("5", "s50", "s51")
            LC_START2("6", "s60", "s61")
            LC_START2("7", "s70", "s71"),
            "",
            LC_JOB2("job0", "20", "s00", "s01")
            LC_JOB2("job1", "21", "s10", "s11")
            LC_JOB2("job2", "20", "s20", "s21")
            LC_JOB2("job3", "21", "s30", "s31")
            LC_JOB2("job4", "20", "s40", "s41")
            LC_JOB2("job5", "21", "s50", "s51")
            LC_JOB2("job6", "20", "s60", "s61")
            LC_JOB2("job7", "21", "s70", "s71"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s10), LC_SUM(s11), LC_SUM(s20), LC_SUM(s21), LC_SUM(s30),
               LC_SUM(s31), LC_SUM(s40), LC_SUM(s41), LC_SUM(s50), LC_SUM(s51), LC_SUM(s60), LC_SUM(s61),
               LC_SUM(s70), LC_SUM(s71), [at] "+r"(at), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), LC_INPUT(2), LC_INPUT(3), LC_INPUT(4), LC_INPUT(5), LC_INPUT(6),
               LC_INPUT(7), [end] "r"(end), LC_STARTS
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[1][0] = s10; ones[1][1] = s11; ones[2][0] = s20; ones[2][1] = s21;
        ones[3][0] = s30; ones[3][1] = s31; ones[4][0] = s40; ones[4][1] = s41; ones[5][0] = s50; ones[5][1] = s51;
        ones[6][0] = s60; ones[6][1] = s61; ones[7][0] = s70; ones[7][1] = s71;
    }
};

template <>
struct PopcountTile<4, 2> {
    static KERNEL_INLINE void run(const TileInput<4>& in, const uint32_t* w, __m512i (&ones)[4][2]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01, s10, s11, s20, s21, s30, s31;
        asm volatile(LC_LOOP(2,
            LC_START2("0", "s00", "s01")
            LC_START2("1", "s10", "s11")
            LC_START2("2", "s20", "s21")
            LC_START2("3", "s30", "s31"),
            LC_FETCH,
            LC_JOB2("job0", "20", "s00", "s01")
            LC_JOB2("job1", "21", "s10", "s11")
            LC_JOB2("job2", "20", "s20", "s21")
            LC_JOB2("job3", "21", "s30", "s31"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s10), LC_SUM(s11), LC_SUM(s20), LC_SUM(s21), LC_SUM(s30),
               LC_SUM(s31), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), LC_INPUT(2), LC_INPUT(3), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[1][0] = s10; ones[1][1] = s11; ones[2][0] = s20; ones[2][1] = s21;
        ones[3][0] = s30; ones[3][1] = s31;
    }
};

template <>
struct PopcountTile<2, 2> {
    static KERNEL_INLINE void run(const TileInput<2>& in, const uint32_t* w, __m512i (&ones)[2][2]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01, s10, s11;
        asm volatile(LC_LOOP(2,
            LC_START2("0", "s00", "s01")
            LC_START2("1", "s10", "s11"),
            LC_FETCH,
            LC_JOB2("job0", "20", "s00", "s01")
            LC_JOB2("job1", "21", "s10", "s11"))
             : LC_SUM(s00), LC_SUM(s01), LC_SUM(s10), LC_SUM(s11), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01; ones[1][0] = s10; ones[1][1] = s11;
    }
};

template <>
struct PopcountTile<1, 2> {
    static KERNEL_INLINE void run(const TileInput<1>& in, const uint32_t* w, __m512i (&ones)[1][2]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s01;
        asm volatile(LC_LOOP(2,
            LC_START2("0", "s00", "s01"),
            LC_FETCH,
            LC_JOB2("job0", "20", "s00", "s01"))
             : LC_SUM(s00), LC_SUM(s01), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[0][1] = s01;
    }
};

template <>
struct PopcountTile<8, 1> {
    static KERNEL_INLINE void run(const TileInput<8>& in, const uint32_t* w, __m512i (&ones)[8][1]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        in.fetch();  // operands are at most 30
        __m512i s00, s10, s20, s30, s40, s50, s60, s70;
        asm volatile(LC_LOOP(1,
            LC_START1("0", "s00")
            LC_START1("1", "s10")
            LC_START1("2", "s20")
            LC_START1("3", "s30")
            LC_START1("4", "s40")
            LC_START1("5", "s50")
            LC_START1("6", "s60")
            LC_START1("7", "s70"),
            "",
            LC_JOB1("job0", "20", "s00")
            LC_JOB1("job1", "21", "s10")
            LC_JOB1("job2", "20", "s20")
            LC_JOB1("job3", "21", "s30")
            LC_JOB1("job4", "20", "s40")
            LC_JOB1("job5", "21", "s50")
            LC_JOB1("job6", "20", "s60")
            LC_JOB1("job7", "21", "s70"))
             : LC_SUM(s00), LC_SUM(s10), LC_SUM(s20), LC_SUM(s30), LC_SUM(s40), LC_SUM(s50), LC_SUM(s60),
               LC_SUM(s70), [at] "+r"(at), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), LC_INPUT(2), LC_INPUT(3), LC_INPUT(4), LC_INPUT(5), LC_INPUT(6),
               LC_INPUT(7), [end] "r"(end), LC_STARTS
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[1][0] = s10; ones[2][0] = s20; ones[3][0] = s30; ones[4][0] = s40; ones[5][0] = s50;
        ones[6][0] = s60; ones[7][0] = s70;
    }
};

template <>
struct PopcountTile<4, 1> {
    static KERNEL_INLINE void run(const TileInput<4>& in, const uint32_t* w, __m512i (&ones)[4][1]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s10, s20, s30;
        asm volatile(LC_LOOP(1,
            LC_START1("0", "s00")
            LC_START1("1", "s10")
            LC_START1("2", "s20")
            LC_START1("3", "s30"),
            LC_FETCH,
            LC_JOB1("job0", "20", "s00")
            LC_JOB1("job1", "21", "s10")
            LC_JOB1("job2", "20", "s20")
            LC_JOB1("job3", "21", "s30"))
             : LC_SUM(s00), LC_SUM(s10), LC_SUM(s20), LC_SUM(s30), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), LC_INPUT(2), LC_INPUT(3), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[1][0] = s10; ones[2][0] = s20; ones[3][0] = s30;
    }
};

template <>
struct PopcountTile<2, 1> {
    static KERNEL_INLINE void run(const TileInput<2>& in, const uint32_t* w, __m512i (&ones)[2][1]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00, s10;
        asm volatile(LC_LOOP(1,
            LC_START1("0", "s00")
            LC_START1("1", "s10"),
            LC_FETCH,
            LC_JOB1("job0", "20", "s00")
            LC_JOB1("job1", "21", "s10"))
             : LC_SUM(s00), LC_SUM(s10), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), LC_INPUT(1), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00; ones[1][0] = s10;
    }
};

template <>
struct PopcountTile<1, 1> {
    static KERNEL_INLINE void run(const TileInput<1>& in, const uint32_t* w, __m512i (&ones)[1][1]) {
        const int32_t *at = in.word_offset, *const end = at + in.words;
        const char* ahead = in.ahead;
        __m512i s00;
        asm volatile(LC_LOOP(1,
            LC_START1("0", "s00"),
            LC_FETCH,
            LC_JOB1("job0", "20", "s00"))
             : LC_SUM(s00), [at] "+r"(at), [ahead] "+r"(ahead), [w] "+r"(w)
             : LC_INPUT(0), [end] "r"(end), LC_STARTS, [step] "r"(in.ahead_step)
             : LC_CLOBBERS);
        ones[0][0] = s00;
    }
};

#undef LC_ONES
#undef LC_WORD
#undef LC_JOB1
#undef LC_JOB2
#undef LC_JOB3
#undef LC_JOB4
#undef LC_WEIGHTS1
#undef LC_WEIGHTS2
#undef LC_WEIGHTS3
#undef LC_WEIGHTS4
#undef LC_LOOP
#undef LC_CLOBBERS
#undef LC_STARTS
#undef LC_START1
#undef LC_START2
#undef LC_START3
#undef LC_START4
#undef LC_FETCH
#undef LC_SUM
#undef LC_INPUT

}  // namespace
