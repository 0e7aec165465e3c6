// The kernels of aw_kernels.h over a vector type `V` and two arithmetics; included inside the namespace of each instruction
// set (see common_inl.h for why).
//
// V::F, kLanes, zero, set1, load, load_n, store, store_n, store_bf16_n(uint16_t*, F, n), add, mul, fma(a, b, c) = a * b + c,
// V::kPixels[v]: the most result pixels of a register tile with v vectors.

#if LEANCONV_SANITIZE  // checked code that is inlined everywhere takes minutes to build
#define AW_INLINE inline
#else
#define AW_INLINE inline __attribute__((always_inline))
#endif
#if defined(__clang__)
#define AW_UNROLL _Pragma("unroll")
#else
#define AW_UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

using Stored = uint32_t;  // a float or a pair of bfloat16

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline float wide(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    __builtin_memcpy(&f, &bits, sizeof f);
    return f;
}

// One float a word.
struct Floats {
    static constexpr int kHalves = 1;
    using Weight = V::F;
    static AW_INLINE Weight load(const Stored* p) { return V::load(reinterpret_cast<const float*>(p)); }
    static AW_INLINE V::F mac(V::F sum, const char* word, Weight w) {
        float x;
        __builtin_memcpy(&x, word, sizeof x);
        return V::fma(V::set1(x), w, sum);
    }
    static AW_INLINE void store_scaled(Stored* out, const float* w, const V::F* g) {
        V::store(reinterpret_cast<float*>(out), V::mul(V::load(w), g[0]));
    }
    static AW_INLINE void spread(const float* g, V::F* all) { all[0] = V::set1(g[0]); }
    static AW_INLINE void of_lanes(V::F g, V::F* all) { all[0] = g; }
    static AW_INLINE void transpose(V::F (&rows)[V::kLanes]) { V::transpose(rows); }
};

}  // namespace

#include "aw_pack_inl.h"
#include "aw_frame_inl.h"
#include "aw_scale_inl.h"
#include "aw_correlate_inl.h"
#include "aw_depthwise_inl.h"
#include "aw_gradient_inl.h"
