// The int8 convolution, alone and with a max-pooling behind it: loops that every instruction set shares. Included inside the
// namespace of each set, behind common_inl.h. Tile<P, VECTORS>::run(args, job, weights, base, sums) fills sums[P][...] for P
// jobs from `job` on and VECTORS * 16 channels, `base` included; Tile<1, VECTORS>::kPixels is the P to start with.

namespace {

// Vectors of the instruction set that hold VECTORS * 16 channels.
template <int VECTORS>
constexpr int kSumVectors = (VECTORS * 16 + V::kLanes - 1) / V::kLanes;

inline int32_t four_bytes(const uint8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return word;
}

// Sums to the epilogue of the convolution, in its FORM.
template <Form FORM>
struct SumsToPixels {
    static constexpr int kPixels = V::kLanes < 16 ? 1 : 2;  // at a time, where sums come from memory
    const EpilogueRunner& run;
    int block;

    template <int P, int N>
    KERNEL_INLINE void operator()(int job, V::I (&sums)[P][N]) {
        int32_t pixel[P];
        V::F x[P][N];
        unrolled<P>([&](auto i) KERNEL_LAMBDA {
            pixel[i] = job + i;
            unrolled<N>([&](auto v) KERNEL_LAMBDA { x[i][v] = V::to_float(sums[i][v]); });
        });
        run.tile<FORM>(pixel, block * kBlock, x);
    }
};

// One row of the map, from its left to its right, into the windows of a pooling (Int8PoolArgs). Rows 2y - 1, 2y and 2y + 1
// meet in row y: the first two leave the maxima so far in `above`, the last one finishes them and leaves its own for y + 1.
// All but the last tile of a row have an even number of pixels.
template <int N>
struct SumsToWindows {
    static constexpr int kPixels = 2;
    const EpilogueRunner& run;
    const Int8PoolArgs& a;
    int block;
    int first_job;       // of this row
    int32_t first_pixel;  // of the pooled row
    bool fresh;          // nothing above counts
    bool finishes;       // the pooled row is complete
    V::I left[N];        // the last pixel of the tile before

    KERNEL_INLINE SumsToWindows(const EpilogueRunner& run, const Int8PoolArgs& a, int block, int row, int begin)
        : run(run), a(a), block(block), first_job(row * a.width), first_pixel(row / 2 * ((a.width + 1) / 2)),
          fresh(row == std::max(0, 2 * begin - 1)), finishes(row >= 2 * begin && (row % 2 || row + 1 == a.height)) {
        unrolled<N>([&](auto v) KERNEL_LAMBDA { left[v] = V::set1_int(std::numeric_limits<int32_t>::min()); });
    }

    template <int P>
    KERNEL_INLINE void operator()(int job, V::I (&sums)[P][N]) {
        constexpr int kWindows = (P + 1) / 2;
        const int column = (job - first_job) / 2;
        int32_t* above = a.above + int64_t{column} * kBlock;
        V::I best[kWindows][N];
        unrolled<N>([&](auto v) KERNEL_LAMBDA {
            const V::I flip = V::load_int(a.flip + block * kBlock + v * V::kLanes);
            unrolled<P>([&](auto i) KERNEL_LAMBDA { sums[i][v] = V::xor_int(sums[i][v], flip); });
            unrolled<kWindows>([&](auto w) KERNEL_LAMBDA {
                best[w][v] = V::max_int(w ? sums[w ? 2 * w - 1 : 0][v] : left[v], sums[2 * w][v]);
                if constexpr (2 * w + 1 < P) best[w][v] = V::max_int(best[w][v], sums[2 * w + 1][v]);
            });
            left[v] = sums[P - 1][v];
        });
        const auto each = [&](auto f) KERNEL_LAMBDA {
            unrolled<kWindows>([&](auto w) KERNEL_LAMBDA { unrolled<N>([&](auto v) KERNEL_LAMBDA { f(w, v, above + w * kBlock + v * V::kLanes); }); });
        };
        if (!finishes) {
            if (!fresh) each([&](auto w, auto v, int32_t* at) KERNEL_LAMBDA { best[w][v] = V::max_int(best[w][v], V::load_int(at)); });
            each([&](auto w, auto v, int32_t* at) KERNEL_LAMBDA { V::store_int(at, best[w][v]); });
            return;
        }
        V::F x[kWindows][N];
        each([&](auto w, auto v, int32_t* at) KERNEL_LAMBDA {
            const V::I all = fresh ? best[w][v] : V::max_int(best[w][v], V::load_int(at));
            V::store_int(at, best[w][v]);
            x[w][v] = V::to_float(V::xor_int(all, V::load_int(a.flip + block * kBlock + v * V::kLanes)));
        });
        int32_t pixel[kWindows];
        unrolled<kWindows>([&](auto w) KERNEL_LAMBDA { pixel[w] = first_pixel + column + w; });
        run.tile(pixel, block * kBlock, x);
    }
};

// Walks [j, end) in tiles of P, then of P/2 ... 1 jobs.
template <template <int, int> class Tile, int VECTORS, int P, class Sums>
KERNEL_INLINE void int8_tiles(const Int8ConvArgs& a, int j, int end, int block, Sums& sums_to) {
    const int8_t* weights = a.weights + int64_t{block} * a.groups * kBlock * 4;
    const int32_t* base = a.base + block * kBlock;
    for (; j + P <= end; j += P) {
        V::I sums[P][kSumVectors<VECTORS>];
        Tile<P, VECTORS>::run(a, j, weights, base, sums);
        sums_to(j, sums);
    }
    if constexpr (P > 1) int8_tiles<Tile, VECTORS, P / 2>(a, j, end, block, sums_to);
}

// f(number of 16-channel vectors in the block, as a constant)
template <class F>
void with_vectors(const Int8ConvArgs& a, int block, F f) {
    switch (block_lanes(a.out_channels, block) / 16) {
        case 1: f(std::integral_constant<int, 1>{}); break;
        case 2: f(std::integral_constant<int, 2>{}); break;
        case 3: f(std::integral_constant<int, 3>{}); break;
        default: f(std::integral_constant<int, 4>{}); break;
    }
}

// convolve(first job, end, where the sums go), row by row as the pooled rows [begin, end) need them
template <int VECTORS, class Convolve>
KERNEL_INLINE void pooled_rows(const Int8PoolArgs& a, int begin, int end, int block, Convolve convolve) {
    const EpilogueRunner run(*a.conv.epilogue);
    for (int row = std::max(0, 2 * begin - 1); row < std::min(a.height, 2 * end); ++row) {
        SumsToWindows<kSumVectors<VECTORS>> windows(run, a, block, row, begin);
        convolve(row * a.width, (row + 1) * a.width, windows);
    }
}

template <template <int, int> class Tile>
void int8_conv_blocks(const Int8ConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    with_vectors(a, block, [&](auto vectors) {
        const auto convolve = [&](auto form) {
            SumsToPixels<form> pixels{run, block};
            int8_tiles<Tile, vectors, Tile<1, vectors>::kPixels>(a, begin, end, block, pixels);
        };
        constexpr auto kShortcut = static_cast<Form>(kAffine | kAdd | kStore | kSign);  // of a residual network
        if constexpr (vectors == 4)
            if (a.out_channels >= (block + 1) * kBlock && run.fused.form() == kShortcut) return convolve(std::integral_constant<Form, kShortcut>{});
        convolve(std::integral_constant<Form, kUnknownForm>{});
    });
}

template <template <int, int> class Tile>
void int8_conv_pooled_blocks(const Int8PoolArgs& a, int begin, int end, int block) {
    static_assert(Tile<1, 1>::kPixels % 2 == 0 && Tile<1, 4>::kPixels % 2 == 0);
    with_vectors(a.conv, block, [&](auto vectors) {
        pooled_rows<vectors>(a, begin, end, block, [&](int j, int row_end, auto& windows) KERNEL_LAMBDA {
            int8_tiles<Tile, vectors, Tile<1, vectors>::kPixels>(a.conv, j, row_end, block, windows);
        });
    });
}

}  // namespace
