// The int8 convolution: loops that every instruction set shares. Included inside the namespace of each set, behind
// common_inl.h. Tile<P, VECTORS>::run(args, job, weights, sums) fills sums[P][64] for P jobs from `job` on and
// VECTORS * 16 channels.

namespace {

inline int32_t four_bytes(const uint8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return word;
}

// Sums of one job's block to the epilogue.
template <int VECTORS>
KERNEL_INLINE void finish_int8(const EpilogueRunner& run, int32_t job, int block, const int32_t* base, const int32_t* sums) {
    V::F x[1][(VECTORS * 16 + V::kLanes - 1) / V::kLanes];
    unrolled<(VECTORS * 16 + V::kLanes - 1) / V::kLanes>([&](auto v) KERNEL_LAMBDA {
        x[0][v] = V::sum_of(base + v * V::kLanes, sums + v * V::kLanes);
    });
    run.tile(&job, block * kBlock, x);
}

// Walks [begin, end) in tiles of P, then of P/2 ... 1 jobs.
template <template <int, int> class Tile, int VECTORS, int P>
void int8_tiles(const Int8ConvArgs& a, const EpilogueRunner& run, int begin, int end, int block) {
    const int8_t* weights = a.weights + int64_t{block} * a.groups * kBlock * 4;
    const int32_t* base = a.base + block * kBlock;
    alignas(64) int32_t sums[P][kBlock];
    int j = begin;
    for (; j + P <= end; j += P) {
        Tile<P, VECTORS>::run(a, j, weights, sums);
        for (int i = 0; i < P; ++i) finish_int8<VECTORS>(run, j + i, block, base, sums[i]);
    }
    if constexpr (P > 1) int8_tiles<Tile, VECTORS, P / 2>(a, run, j, end, block);
}

template <template <int, int> class Tile>
void int8_conv_blocks(const Int8ConvArgs& a, int begin, int end, int block) {
    const EpilogueRunner run(*a.epilogue);
    switch (block_lanes(a.out_channels, block) / 16) {
        case 1: int8_tiles<Tile, 1, Tile<1, 1>::kPixels>(a, run, begin, end, block); break;
        case 2: int8_tiles<Tile, 2, Tile<1, 2>::kPixels>(a, run, begin, end, block); break;
        case 3: int8_tiles<Tile, 3, Tile<1, 3>::kPixels>(a, run, begin, end, block); break;
        default: int8_tiles<Tile, 4, Tile<1, 4>::kPixels>(a, run, begin, end, block); break;
    }
}

}  // namespace
