// The inner tile of avx512.cpp in assembly: 2 jobs x 32 channels, all words of the reduction.
//
// Compilers keep neither the counters in registers nor the adders free of copies here (g++ 12 spills four counters a
// round, which costs a fifth of the speed), so this one loop is spelled out. Included inside namespace leanconv::avx512.
//
// Registers, index q = job * 2 + vector:
//   zmm0-3 ones   zmm4-7 twos   zmm8-11 fours   zmm12-15 byte counts of eights
//   zmm16-19, zmm20-23 carries (at the end: constants)   zmm24-27 weights of two words x two vectors (at the end: sums)
//   zmm28, 29 scratch   zmm30 0x0f   zmm31 nibble table

namespace {

// w0, w1 = weights of the next two words; their offsets go to r8, r9.
#define LC_FETCH2                                   \
    "movslq (%[offset]), %%r8\n"                    \
    "movslq 4(%[offset]), %%r9\n"                   \
    "vmovdqu32 (%[w]), %%zmm24\n"                   \
    "vmovdqu32 64(%[w]), %%zmm25\n"                 \
    "vmovdqu32 (%[w],%[row]), %%zmm26\n"            \
    "vmovdqu32 64(%[w],%[row]), %%zmm27\n"          \
    "lea (%[w],%[row],2), %[w]\n"                   \
    "add $8, %[offset]\n"

// ones += two words; the carry (weight 2) goes to register CARRY. The carry is taken from the new sum: see add_pair.
#define LC_PAIR(JOB, W0, W1, ONES, CARRY)                                \
    "vpxord (%[" JOB "],%%r8,4)%{1to16%}, %%zmm" W0 ", %%zmm" CARRY "\n" \
    "vpxord (%[" JOB "],%%r9,4)%{1to16%}, %%zmm" W1 ", %%zmm28\n"        \
    "vpternlogd $0x96, %%zmm28, %%zmm" CARRY ", %%zmm" ONES "\n"         \
    "vpternlogd $0xd4, %%zmm" ONES ", %%zmm28, %%zmm" CARRY "\n"

// SUM += A + B, the carry stays in A.
#define LC_ADD(SUM, A, B)                                     \
    "vpternlogd $0x96, %%zmm" B ", %%zmm" A ", %%zmm" SUM "\n" \
    "vpternlogd $0xd4, %%zmm" SUM ", %%zmm" B ", %%zmm" A "\n"

// The first of the pairs modulo 8: nothing can leave the fours.
#define LC_HEAD(JOB, W0, W1, ONES, TWOS, FOURS)      \
    LC_PAIR(JOB, W0, W1, ONES, "29")                 \
    "vpandd %%zmm29, %%zmm" TWOS ", %%zmm28\n"       \
    "vpxord %%zmm29, %%zmm" TWOS ", %%zmm" TWOS "\n" \
    "vpord %%zmm28, %%zmm" FOURS ", %%zmm" FOURS "\n"

// zmm28 + zmm29 (bytes) = ones of E through the nibble table TABLE.
#define LC_NIBBLES(E, TABLE)                            \
    "vpandd %%zmm30, %%zmm" E ", %%zmm28\n"             \
    "vpsrld $4, %%zmm" E ", %%zmm29\n"                  \
    "vpandd %%zmm30, %%zmm29, %%zmm29\n"                \
    "vpshufb %%zmm28, %%zmm" TABLE ", %%zmm28\n"        \
    "vpshufb %%zmm29, %%zmm" TABLE ", %%zmm29\n"

// COUNT (bytes) += TABLE's weight * ones of E.
#define LC_COUNT(E, TABLE, COUNT)                      \
    LC_NIBBLES(E, TABLE)                               \
    "vpaddb %%zmm28, %%zmm" COUNT ", %%zmm" COUNT "\n" \
    "vpaddb %%zmm29, %%zmm" COUNT ", %%zmm" COUNT "\n"

// ONES + 2 TWOS + 4 FOURS (planes) + 8 EIGHTS (byte counts), summed in each lane and stored at POP + AT.
#define LC_TOTAL(ONES, TWOS, FOURS, EIGHTS, T, POP, AT)      \
    LC_NIBBLES(ONES, "31")                                   \
    "vpmaddubsw %%zmm18, %%zmm" EIGHTS ", %%zmm" EIGHTS "\n" \
    "vpaddb %%zmm28, %%zmm29, %%zmm" T "\n"                  \
    LC_COUNT(TWOS, "16", T) LC_COUNT(FOURS, "17", T)         \
    "vpmaddubsw %%zmm19, %%zmm" T ", %%zmm" T "\n"           \
    "vpaddw %%zmm" EIGHTS ", %%zmm" T ", %%zmm" T "\n"       \
    "vpmaddwd %%zmm20, %%zmm" T ", %%zmm" T "\n"             \
    "vmovdqa32 %%zmm" T ", " AT "(%[" POP "])\n"

#define LC_EACH_ZERO(Z) "vpxord %%zmm" #Z ", %%zmm" #Z ", %%zmm" #Z "\n"

struct CarrySaveConstants {
    uint8_t table1[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
    uint8_t table2[16] = {0, 2, 2, 4, 2, 4, 4, 6, 2, 4, 4, 6, 4, 6, 6, 8};
    uint8_t table4[16] = {0, 4, 4, 8, 4, 8, 8, 12, 4, 8, 8, 12, 8, 12, 12, 16};
    uint32_t low = 0x0f0f0f0f, eight8 = 0x08080808, one8 = 0x01010101, one16 = 0x00010001;
};

// pop[job][vector][lane]: ones of input xor weight. `row_bytes`: from one word's weights to the next one's.
KERNEL_INLINE void carry_save_2x2(const uint32_t* job0, const uint32_t* job1, const int32_t* offset, int words,
                           const uint32_t* w, int64_t row_bytes, int32_t* pop0, int32_t* pop1) {
    alignas(64) static constexpr CarrySaveConstants constants;
    int64_t pairs = words % 8 / 2, blocks = words / 8;
    const int64_t single = words & 1;
    asm volatile(
        LC_EACH_ZERO(0) LC_EACH_ZERO(1) LC_EACH_ZERO(2) LC_EACH_ZERO(3)
        LC_EACH_ZERO(4) LC_EACH_ZERO(5) LC_EACH_ZERO(6) LC_EACH_ZERO(7)
        LC_EACH_ZERO(8) LC_EACH_ZERO(9) LC_EACH_ZERO(10) LC_EACH_ZERO(11)
        LC_EACH_ZERO(12) LC_EACH_ZERO(13) LC_EACH_ZERO(14) LC_EACH_ZERO(15)
        "vpbroadcastd 48(%[constants]), %%zmm30\n"
        "vbroadcasti32x4 (%[constants]), %%zmm31\n"
        "test %[single], %[single]\n"
        "jz 1f\n"
        "movslq (%[offset]), %%r8\n"
        "vmovdqu32 (%[w]), %%zmm24\n"
        "vmovdqu32 64(%[w]), %%zmm25\n"
        "vpxord (%[job0],%%r8,4)%{1to16%}, %%zmm24, %%zmm0\n"
        "vpxord (%[job0],%%r8,4)%{1to16%}, %%zmm25, %%zmm1\n"
        "vpxord (%[job1],%%r8,4)%{1to16%}, %%zmm24, %%zmm2\n"
        "vpxord (%[job1],%%r8,4)%{1to16%}, %%zmm25, %%zmm3\n"
        "add %[row], %[w]\n"
        "add $4, %[offset]\n"
        "1:\n"
        "test %[pairs], %[pairs]\n"
        "jz 3f\n"
        LC_FETCH2  // the first pair: twos are still empty
        LC_PAIR("job0", "24", "26", "0", "4")
        LC_PAIR("job0", "25", "27", "1", "5")
        LC_PAIR("job1", "24", "26", "2", "6")
        LC_PAIR("job1", "25", "27", "3", "7")
        "dec %[pairs]\n"
        "jz 3f\n"
        "2:\n"
        LC_FETCH2
        LC_HEAD("job0", "24", "26", "0", "4", "8")
        LC_HEAD("job0", "25", "27", "1", "5", "9")
        LC_HEAD("job1", "24", "26", "2", "6", "10")
        LC_HEAD("job1", "25", "27", "3", "7", "11")
        "dec %[pairs]\n"
        "jnz 2b\n"
        "3:\n"
        "test %[blocks], %[blocks]\n"
        "jz 5f\n"
        ".p2align 5\n"
        "4:\n"
        LC_FETCH2
        LC_PAIR("job0", "24", "26", "0", "20")
        LC_PAIR("job0", "25", "27", "1", "21")
        LC_PAIR("job1", "24", "26", "2", "22")
        LC_PAIR("job1", "25", "27", "3", "23")
        LC_FETCH2
        LC_PAIR("job0", "24", "26", "0", "29") LC_ADD("4", "20", "29")
        LC_PAIR("job0", "25", "27", "1", "29") LC_ADD("5", "21", "29")
        LC_PAIR("job1", "24", "26", "2", "29") LC_ADD("6", "22", "29")
        LC_PAIR("job1", "25", "27", "3", "29") LC_ADD("7", "23", "29")
        LC_FETCH2
        LC_PAIR("job0", "24", "26", "0", "16")
        LC_PAIR("job0", "25", "27", "1", "17")
        LC_PAIR("job1", "24", "26", "2", "18")
        LC_PAIR("job1", "25", "27", "3", "19")
        LC_FETCH2
        LC_PAIR("job0", "24", "26", "0", "29") LC_ADD("4", "16", "29") LC_ADD("8", "20", "16")
        LC_PAIR("job0", "25", "27", "1", "29") LC_ADD("5", "17", "29") LC_ADD("9", "21", "17")
        LC_PAIR("job1", "24", "26", "2", "29") LC_ADD("6", "18", "29") LC_ADD("10", "22", "18")
        LC_PAIR("job1", "25", "27", "3", "29") LC_ADD("7", "19", "29") LC_ADD("11", "23", "19")
        LC_COUNT("20", "31", "12") LC_COUNT("21", "31", "13") LC_COUNT("22", "31", "14") LC_COUNT("23", "31", "15")
        "dec %[blocks]\n"
        "jnz 4b\n"
        "5:\n"
        "vbroadcasti32x4 16(%[constants]), %%zmm16\n"
        "vbroadcasti32x4 32(%[constants]), %%zmm17\n"
        "vpbroadcastd 52(%[constants]), %%zmm18\n"
        "vpbroadcastd 56(%[constants]), %%zmm19\n"
        "vpbroadcastd 60(%[constants]), %%zmm20\n"
        LC_TOTAL("0", "4", "8", "12", "24", "pop0", "0")
        LC_TOTAL("1", "5", "9", "13", "25", "pop0", "64")
        LC_TOTAL("2", "6", "10", "14", "26", "pop1", "0")
        LC_TOTAL("3", "7", "11", "15", "27", "pop1", "64")
        : [offset] "+r"(offset), [w] "+r"(w), [pairs] "+r"(pairs), [blocks] "+r"(blocks)
        : [job0] "r"(job0), [job1] "r"(job1), [row] "r"(row_bytes), [single] "r"(single), [pop0] "r"(pop0),
          [pop1] "r"(pop1), [constants] "r"(&constants)
        : "r8", "r9", "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
          "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21",
          "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
}

#undef LC_FETCH2
#undef LC_PAIR
#undef LC_ADD
#undef LC_HEAD
#undef LC_NIBBLES
#undef LC_COUNT
#undef LC_TOTAL
#undef LC_EACH_ZERO

}  // namespace
