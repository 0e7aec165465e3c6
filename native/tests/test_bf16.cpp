// Maps of bf16 in every built and supported instruction set: what is written, how it is read, what stays untouched.
#include <bit>
#include <cmath>
#include <random>

#include "check.h"
#include "kernels/kernels.h"

using namespace leanconv;

namespace {

constexpr uint16_t kGuard = 0xabcd;

float widened(uint32_t half) { return std::bit_cast<float>(half << 16); }

// The nearer of the two neighbours, the even one of two equally near; beyond the largest number, infinity counts as 2^128.
// A denormal number becomes zero.
uint16_t nearest(float x) {
    const uint32_t down = std::bit_cast<uint32_t>(x) >> 16;
    if (std::isnan(x)) return static_cast<uint16_t>(down | 0x40);
    if (!std::isnormal(x) && !std::isinf(x)) return std::signbit(x) ? 0x8000 : 0;
    if (std::isinf(x)) return static_cast<uint16_t>(down);
    const auto at = [](uint32_t half) { return std::isinf(widened(half)) ? std::copysign(std::ldexp(1.0, 128), widened(half)) : double{widened(half)}; };
    const double below = std::fabs(double{x} - at(down)), above = std::fabs(at(down + 1) - double{x});
    return static_cast<uint16_t>(below < above || (below == above && down % 2 == 0) ? down : down + 1);
}

// All patterns of the upper half but for some lower ones, and the lower ones that matter.
std::vector<float> numbers() {
    std::vector<float> all;
    for (uint32_t high = 0; high < 0x10000; high += 37)
        for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) all.push_back(std::bit_cast<float>(high << 16 | low));
    for (uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xffffffffu, 0x7f7fffffu, 0xff7f8000u, 0x00000001u, 0x80008000u, 0x7f800000u})
        all.push_back(std::bit_cast<float>(bits));
    return all;
}

template <class Body>
void each_isa(Body body) {
    for (int i = 0; i < kBuiltKernelCount; ++i)
        if (kBuiltKernels[i]->supported()) body(*kBuiltKernels[i]);
}

}  // namespace

TEST(bf16_is_the_nearest_half) {
    const std::vector<float> all = numbers();
    for (int channels : {1, 7, 16, 31, 64, 100}) {
        const int pixels = static_cast<int>(all.size()) / channels, stride = channels + 3;
        each_isa([&](const Kernels& kernels) {
            std::vector<Bf16> out(static_cast<size_t>(pixels * stride), Bf16{kGuard});
            Step store;
            store.kind = StepKind::store;
            store.bf16 = out.data();
            store.pixel_stride = stride;
            Step twice[2] = {store, store};  // two stores go step by step
            for (int count : {1, 2}) {
                const Epilogue epilogue{twice, count, channels};
                kernels.elementwise({all.data(), channels, channels, &epilogue}, 0, pixels);
                for (int p = 0; p < pixels; ++p)
                    for (int c = 0; c < stride; ++c)
                        CHECK(out[static_cast<size_t>(p * stride + c)].bits == (c < channels ? nearest(all[static_cast<size_t>(p * channels + c)]) : kGuard));
            }
        });
    }
}

TEST(bf16_is_read_as_the_upper_half) {
    std::mt19937 random(3);
    for (int channels : {1, 5, 16, 33, 64, 90}) {
        const int pixels = 7, stride = channels + 1;
        std::vector<Bf16> map(static_cast<size_t>(pixels * stride));  // ends with the last number that may be read
        for (Bf16& half : map) half.bits = static_cast<uint16_t>(0x3f00 + random() % 0x200 + (random() % 2 << 15));
        map.resize(static_cast<size_t>((pixels - 1) * stride + channels));
        each_isa([&](const Kernels& kernels) {
            std::vector<float> out(static_cast<size_t>(pixels * channels));
            Step steps[3];
            steps[0].kind = StepKind::add;
            steps[1].kind = StepKind::mul;
            steps[2].kind = StepKind::store;
            for (int i = 0; i < 2; ++i) steps[i].bf16 = map.data(), steps[i].pixel_stride = stride;
            steps[2].real = out.data();
            steps[2].pixel_stride = channels;
            for (bool product : {false, true}) {
                const Step used[3] = {steps[0], product ? steps[1] : steps[2], steps[2]};
                const Epilogue epilogue{used, product ? 3 : 2, channels};
                kernels.elementwise({nullptr, stride, channels, &epilogue, map.data()}, 0, pixels);
                for (int p = 0; p < pixels; ++p)
                    for (int c = 0; c < channels; ++c) {
                        const float x = widened(map[static_cast<size_t>(p * stride + c)].bits);
                        CHECK(out[static_cast<size_t>(p * channels + c)] == (product ? (x + x) * x : x + x));
                    }
            }
        });
    }
}
