// The int8 convolution without VNNI. Bytes and weights widen to 16 bits, which loses nothing; a product of two vectors then
// adds pairs. Included inside the namespace of each set that uses it, behind int8_conv_inl.h; the set has defined
//
// W::I            a vector of integers: four 16-bit weights of each of W::kChannels channels
// W::widen(p)     4 * kChannels weights      W::load(p)  widened ones      W::spread(p)  four 16-bit inputs for each channel
// W::dot(sum, x, w)                          W::reduce<N>(sums, to, add)   each channel's total of N vectors to memory

namespace {

constexpr int kPartGroups = 32;  // widened weights of a part: 16 KiB
constexpr int kPartJobs = 24;

// P jobs x N vectors of channels, one part of the reduction.
template <int P, int N>
KERNEL_INLINE void widened_tile(const int16_t (*inputs)[kPartGroups * 4], const int16_t* w, int row, int groups, bool add,
                                int32_t (*sums)[kBlock], int c) {
    typename W::I acc[P][N];
    for (int i = 0; i < P; ++i)
        for (int n = 0; n < N; ++n) acc[i][n] = W::zero();
    for (int g = 0; g < groups; ++g, w += row) {
        typename W::I x[P];
        for (int i = 0; i < P; ++i) x[i] = W::spread(inputs[i] + g * 4);
        for (int n = 0; n < N; ++n) {
            const typename W::I weight = W::load(w + n * W::kChannels * 4);
            for (int i = 0; i < P; ++i) acc[i][n] = W::dot(acc[i][n], x[i], weight);
        }
    }
    for (int i = 0; i < P; ++i) W::template reduce<N>(acc[i], sums[i] + c, add);
}

template <int P, int VECTORS>
KERNEL_NOINLINE void widened_jobs(const Int8ConvArgs& a, int j, int g0, int groups, const int16_t* weights, int32_t (*sums)[kBlock]) {
    constexpr int kVectors = 16 / W::kChannels;  // of 16 channels
    constexpr int kAtOnce = VECTORS * kVectors * P <= W::kSums ? VECTORS * kVectors : kVectors;
    alignas(64) int16_t inputs[P][kPartGroups * 4];
    for (int i = 0; i < P; ++i) {
        const uint8_t* in = a.input + a.job_offset[j + i];
        const int32_t* offset = a.group_offset + g0;
        for (int g = 0; g < groups;) {
            if (g + 4 <= groups && offset[g + 3] == offset[g] + 12) {  // of one run
                const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + offset[g]));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(inputs[i] + g * 4), _mm256_cvtepu8_epi16(bytes));
                g += 4;
            } else {
                const __m128i bytes = _mm_cvtsi32_si128(four_bytes(in + offset[g]));
                _mm_storel_epi64(reinterpret_cast<__m128i*>(inputs[i] + g * 4), _mm_cvtepu8_epi16(bytes));
                g += 1;
            }
        }
    }
    for (int c = 0; c < VECTORS * 16; c += kAtOnce * W::kChannels)
        widened_tile<P, kAtOnce>(inputs, weights + c * 4, VECTORS * 64, groups, g0 > 0, sums, c);
}

// Rows of sums in memory onwards, P at a time, then one.
template <int N, int P, class Sums>
KERNEL_INLINE void widened_rows(const int32_t (*rows)[kBlock], const int32_t* base, int j, int jobs, Sums& sums_to) {
    int i = 0;
    for (; i + P <= jobs; i += P) {
        V::I sums[P][N];
        unrolled<P>([&](auto p) KERNEL_LAMBDA {
            unrolled<N>([&](auto v) KERNEL_LAMBDA { sums[p][v] = V::add_int(V::load_int(rows[i + p] + v * V::kLanes), V::load_int(base + v * V::kLanes)); });
        });
        sums_to(j + i, sums);
    }
    if constexpr (P > 1) widened_rows<N, 1>(rows + i, base, j + i, jobs - i, sums_to);
}

template <int VECTORS, class Sums>
KERNEL_INLINE void widened_block(const Int8ConvArgs& a, int begin, int end, int block, Sums& sums_to) {
    constexpr int kRow = VECTORS * 64;
    const int8_t* from = a.weights + int64_t{block} * a.groups * kBlock * 4;
    alignas(64) int16_t weights[kPartGroups * kRow];
    alignas(64) int32_t sums[kPartJobs][kBlock];
    for (int j = begin; j < end; j += kPartJobs) {
        const int jobs = std::min(kPartJobs, end - j);
        for (int g0 = 0; g0 < a.groups; g0 += kPartGroups) {
            const int groups = std::min(kPartGroups, a.groups - g0);
            if (a.groups > kPartGroups || j == begin)
                for (int k = 0; k < groups * kRow; k += W::kChannels * 4) W::store(weights + k, W::widen(from + int64_t{g0} * kRow + k));
            int i = 0;
            for (; i + 2 <= jobs; i += 2) widened_jobs<2, VECTORS>(a, j + i, g0, groups, weights, sums + i);
            if (i < jobs) widened_jobs<1, VECTORS>(a, j + i, g0, groups, weights, sums + i);
        }
        widened_rows<kSumVectors<VECTORS>, Sums::kPixels>(sums, a.base + block * kBlock, j, jobs, sums_to);
    }
}

// One job alone (a dense layer) is bound by reading its weights once: they are widened on the way.
template <int P, int VECTORS>
struct WideningTile {
    static constexpr int kPixels = 1;

    template <int N>
    static void run(const Int8ConvArgs& a, int j, const int8_t* w, const int32_t* base, V::I (&sums)[P][N]) {
        constexpr int kVectors = 16 / W::kChannels;
        alignas(64) int32_t row[VECTORS * 16];
        const uint8_t* in = a.input + a.job_offset[j];
        for (int c = 0; c < VECTORS; ++c) {
            const int8_t* at = w + c * 64;
            typename W::I acc[kVectors];
            for (int n = 0; n < kVectors; ++n) acc[n] = W::zero();
            for (int g = 0; g < a.groups; ++g, at += VECTORS * 64) {
                alignas(8) int16_t wide[4];
                _mm_storel_epi64(reinterpret_cast<__m128i*>(wide),
                                 _mm_cvtepu8_epi16(_mm_cvtsi32_si128(four_bytes(in + a.group_offset[g]))));
                const typename W::I x = W::spread(wide);
                for (int n = 0; n < kVectors; ++n) acc[n] = W::dot(acc[n], x, W::widen(at + n * W::kChannels * 4));
            }
            W::template reduce<kVectors>(acc, row + c * 16, false);
        }
        unrolled<N>([&](auto v) KERNEL_LAMBDA { sums[0][v] = V::add_int(V::load_int(row + v * V::kLanes), V::load_int(base + v * V::kLanes)); });
    }
};

void int8_conv_widened(const Int8ConvArgs& a, int begin, int end, int block) {
    if (end - begin < 4) return int8_conv_blocks<WideningTile>(a, begin, end, block);
    const EpilogueRunner run(*a.epilogue);
    SumsToPixels<kUnknownForm> pixels{run, block};
    with_vectors(a, block, [&](auto vectors) { widened_block<vectors>(a, begin, end, block, pixels); });
}

void int8_conv_pooled_widened(const Int8PoolArgs& a, int begin, int end, int block) {
    with_vectors(a.conv, block, [&](auto vectors) {
        pooled_rows<vectors>(a, begin, end, block, [&](int j, int row_end, auto& windows) KERNEL_LAMBDA {
            widened_block<vectors>(a.conv, j, row_end, block, windows);
        });
    });
}

}  // namespace
