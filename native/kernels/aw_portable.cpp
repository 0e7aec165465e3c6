// AW-convolution in portable C++: the compiler's vectors of four floats, which every 64-bit processor has.
#include "aw_kernels.h"

namespace leanconv::aw::portable {
namespace {

struct V {
    static constexpr int kLanes = 4, kTerms = 8;
    static constexpr int kPixels[kVectors + 1] = {0, 8, 6};
    using F = float __attribute__((vector_size(16)));
    static F zero() { return F{0, 0, 0, 0}; }
    static F set1(float a) { return F{a, a, a, a}; }
    static F load(const float* p) {
        F a;
        __builtin_memcpy(&a, p, sizeof a);
        return a;
    }
    static F load_n(const float* p, int n) {
        F a = zero();
        for (int i = 0; i < n && i < kLanes; ++i) a[i] = p[i];
        return a;
    }
    static void store(float* p, F a) { __builtin_memcpy(p, &a, sizeof a); }
    static void store_n(float* p, F a, int n) {
        for (int i = 0; i < n && i < kLanes; ++i) p[i] = a[i];
    }
    static F add(F a, F b) { return a + b; }
    static F mul(F a, F b) { return a * b; }
    static F fma(F a, F b, F c) { return a * b + c; }
    static F div(F a, F b) { return a / b; }
    static F min(F a, F b) { return a < b ? a : b; }
    static F max(F a, F b) { return a > b ? a : b; }
    static F ldexp(F a, F n) {
        for (int i = 0; i < kLanes; ++i) a[i] = n[i] == n[i] ? __builtin_ldexpf(a[i], static_cast<int>(n[i])) : n[i];
        return a;
    }
    static void transpose(F (&r)[kLanes]) {
        F t[kLanes];
        for (int i = 0; i < kLanes; ++i) t[i] = F{r[0][i], r[1][i], r[2][i], r[3][i]};
        for (int i = 0; i < kLanes; ++i) r[i] = t[i];
    }
    static uint16_t to_bf16(float a) {
        uint32_t bits;
        __builtin_memcpy(&bits, &a, sizeof bits);
        if (a != a) return static_cast<uint16_t>((bits | 0x400000) >> 16);
        return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    static void store_bf16_n(uint16_t* p, F a, int n) {
        for (int i = 0; i < n && i < kLanes; ++i) p[i] = to_bf16(a[i]);
    }
};

}  // namespace

#include "aw_inl.h"

#include "aw_attention_inl.h"

#include "aw_table_inl.h"

namespace {

bool supported() { return true; }

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = table<Floats>("portable", supported, false);

}  // namespace leanconv::aw::portable
