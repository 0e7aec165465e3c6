// AW-convolution with AVX-512.
#include <immintrin.h>

#include "aw_kernels.h"

namespace leanconv::aw::avx512 {

#include "aw_vectors_avx512.h"

#include "aw_inl.h"

#include "aw_attention_inl.h"

#include "aw_table_inl.h"

namespace {

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = table<Floats>("avx512", supported, false);

}  // namespace leanconv::aw::avx512
