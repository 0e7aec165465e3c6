// Every built and supported instruction set against loops that say what is meant, with guards around all that is written.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "kernels/kernels.h"

using namespace leanconv;

namespace {

constexpr float kGuard = 12345.0f;

std::mt19937 random_bits(1);

float random_float() { return static_cast<float>(static_cast<int>(random_bits() % 2001) - 1000) / 256.0f; }

template <class T, class Make>
std::vector<T> filled(size_t count, Make make) {
    std::vector<T> out(count);
    for (T& x : out) x = static_cast<T>(make());
    return out;
}

template <class Body>
void each_isa(Body body) {
    for (int i = 0; i < kBuiltKernelCount; ++i)
        if (kBuiltKernels[i]->supported()) body(*kBuiltKernels[i]);
}

int all_lanes(int channels) {
    const int last = block_count(channels) - 1;
    return last * kBlock + block_lanes(channels, last);
}

// BinaryWeights::nibbles from BinaryWeights::words.
std::vector<uint32_t> nibbles_of(const std::vector<uint32_t>& words, int count, int channels) {
    std::vector<uint32_t> out(static_cast<size_t>(block_count(channels) * count * 2 * kBlock) + 1);
    auto* bytes = reinterpret_cast<uint8_t*>(out.data());
    for (int c = 0; c < channels; ++c)
        for (int n = 0; n < count * 8; ++n) {
            const int block = c / kBlock, lanes = block_lanes(channels, block), rows = (lanes + 31) / 32 * 32;
            const uint32_t word = words[static_cast<size_t>((block * count * kBlock) + n / 8 * lanes + c % kBlock)];
            bytes[(block * count * 8 * kBlock) + n * rows + c % kBlock] = static_cast<uint8_t>(word >> (n % 8 * 4) & 15);
        }
    return out;
}

}  // namespace

TEST(binary_conv_kernels) {
    for (int channels : {1, 15, 16, 17, 33, 48, 64, 65, 130})
        for (int words : {0, 1, 2, 7, 8, 9, 18, 248, 249, 300, 2050})
            for (int jobs : {1, 2, 3, 7, 18}) {
                const auto input = filled<uint32_t>(static_cast<size_t>(words + jobs * 2), random_bits);
                std::vector<int32_t> job_offset, word_offset, border, pixel;
                for (int j = 0; j < jobs; ++j) {
                    job_offset.push_back(j * 2);
                    border.push_back(j % 3);
                    pixel.push_back(jobs - 1 - j);
                }
                for (int k = 0; k < words; ++k) word_offset.push_back(words - 1 - k);
                std::vector<uint32_t> weights(static_cast<size_t>(all_lanes(channels)) * static_cast<size_t>(words));
                const int padded = block_count(channels) * kBlock;
                std::vector<int32_t> start(static_cast<size_t>(3 * padded));
                const std::vector<float> odd = {0, 1, 0};
                const auto weight = [&](int c, int k) -> uint32_t& {
                    const int block = c / kBlock;
                    return weights[static_cast<size_t>(block * words * kBlock + k * block_lanes(channels, block) + c % kBlock)];
                };
                for (int c = 0; c < channels; ++c) {
                    for (int k = 0; k < words; ++k) weight(c, k) = random_bits();
                    for (int i = 0; i < 3; ++i) start[static_cast<size_t>(i * padded + c)] = static_cast<int32_t>(random_bits() % 1000) - 500;
                }
                each_isa([&](const Kernels& kernels) {
                    const int stride = channels + 3;
                    std::vector<float> out(static_cast<size_t>(jobs * stride), kGuard);
                    Step store;
                    store.kind = StepKind::store;
                    store.real = out.data();
                    store.pixel_stride = stride;
                    const Epilogue epilogue{&store, 1, channels};
                    BinaryConvArgs a{};
                    a.input = input.data();
                    a.job_offset = job_offset.data();
                    a.pixel = pixel.data();
                    a.word_offset = word_offset.data();
                    a.words = words;
                    const std::vector<uint32_t> nibbles = nibbles_of(weights, words, channels);
                    a.weights = kernels.binary_weights == BinaryWeights::nibbles ? nibbles.data() : weights.data();
                    a.start = start.data();
                    a.odd = jobs > 3 ? odd.data() : nullptr;
                    a.border_case = border.data();
                    a.out_channels = channels;
                    a.epilogue = &epilogue;
                    for (int b = 0; b < block_count(channels); ++b) {
                        kernels.binary_conv(a, 0, jobs / 2, b);
                        kernels.binary_conv(a, jobs / 2, jobs, b);
                    }
                    bool same = true;
                    for (int j = 0; j < jobs; ++j)
                        for (int c = 0; c < stride; ++c) {
                            float want = kGuard;
                            if (c < channels) {
                                int ones = 0;
                                for (int k = 0; k < words; ++k)
                                    ones += std::popcount(input[static_cast<size_t>(job_offset[static_cast<size_t>(j)] + word_offset[static_cast<size_t>(k)])] ^ weight(c, k));
                                const size_t at = static_cast<size_t>(border[static_cast<size_t>(j)]);
                                want = (a.odd ? odd[at] : 0.0f) - 2.0f * static_cast<float>(start[at * static_cast<size_t>(padded) + static_cast<size_t>(c)] + ones);
                            }
                            same = same && out[static_cast<size_t>(pixel[static_cast<size_t>(j)] * stride + c)] == want;
                        }
                    if (!same) std::cerr << kernels.name << " channels " << channels << " words " << words << " jobs " << jobs << "\n";
                    CHECK(same);
                });
            }
}

TEST(real_conv_kernels) {
    for (int channels : {1, 16, 17, 40, 64, 100})
        for (int runs : {1, 3})
            for (int length : {1, 5, 21})
                for (int jobs : {1, 4, 13, 35}) {
                    const auto input = filled<float>(static_cast<size_t>(runs * length * 2 + jobs * 3), random_float);
                    std::vector<int32_t> job_offset, run_offset;
                    for (int j = 0; j < jobs; ++j) job_offset.push_back(j * 3);
                    for (int r = 0; r < runs; ++r) run_offset.push_back(r * 2 * length);
                    const int terms = runs * length;
                    std::vector<float> weights(static_cast<size_t>(all_lanes(channels) * terms));
                    const auto weight = [&](int c, int k) -> float& {
                        const int block = c / kBlock;
                        return weights[static_cast<size_t>(block * terms * kBlock + k * block_lanes(channels, block) + c % kBlock)];
                    };
                    for (int c = 0; c < channels; ++c)
                        for (int k = 0; k < terms; ++k) weight(c, k) = random_float();
                    each_isa([&](const Kernels& kernels) {
                        std::vector<float> out(static_cast<size_t>(jobs * channels + 8), kGuard);
                        Step store;
                        store.kind = StepKind::store;
                        store.real = out.data();
                        store.pixel_stride = channels;
                        const Epilogue epilogue{&store, 1, channels};
                        const RealConvArgs a{input.data(), job_offset.data(), nullptr, run_offset.data(), runs, length,
                                             weights.data(), channels, &epilogue};
                        for (int b = 0; b < block_count(channels); ++b) kernels.real_conv(a, 0, jobs, b);
                        for (int j = 0; j < jobs; ++j)
                            for (int c = 0; c < channels; ++c) {
                                double want = 0, size = 1e-6;
                                for (int k = 0; k < terms; ++k) {
                                    const double x = input[static_cast<size_t>(job_offset[static_cast<size_t>(j)] + run_offset[static_cast<size_t>(k / length)] + k % length)];
                                    want += x * static_cast<double>(weight(c, k));
                                    size += std::fabs(x * static_cast<double>(weight(c, k)));
                                }
                                CHECK(std::fabs(out[static_cast<size_t>(j * channels + c)] - want) <= 1e-5 * size);
                            }
                        CHECK(std::all_of(out.end() - 8, out.end(), [](float x) { return x == kGuard; }));
                    });
                }
}

TEST(int8_conv_kernels) {
    for (int channels : {1, 16, 17, 40, 64, 100})
        for (int groups : {1, 2, 5, 33, 70})
            for (int jobs : {1, 3, 4, 13, 50}) {
                const auto input = filled<uint8_t>(static_cast<size_t>(groups * 5 + jobs * 3 + 4), random_bits);
                std::vector<int32_t> job_offset, group_offset, base;
                for (int j = 0; j < jobs; ++j) job_offset.push_back(j * 3);
                for (int g = 0; g < groups; ++g) group_offset.push_back((groups - 1 - g) * 5);
                for (int c = 0; c < block_count(channels) * kBlock; ++c) base.push_back(c * 1000 - 7);
                std::vector<int8_t> weights(static_cast<size_t>(all_lanes(channels) * groups * 4));
                const auto weight = [&](int c, int k) -> int8_t& {
                    const int block = c / kBlock, lanes = block_lanes(channels, block);
                    return weights[static_cast<size_t>(block * groups * kBlock * 4 + (k / 4 * lanes + c % kBlock) * 4 + k % 4)];
                };
                for (int c = 0; c < channels; ++c)
                    for (int k = 0; k < groups * 4; ++k) weight(c, k) = static_cast<int8_t>(random_bits());
                each_isa([&](const Kernels& kernels) {
                    std::vector<float> out(static_cast<size_t>(jobs * channels + 8), kGuard);
                    Step store;
                    store.kind = StepKind::store;
                    store.real = out.data();
                    store.pixel_stride = channels;
                    const Epilogue epilogue{&store, 1, channels};
                    const Int8ConvArgs a{input.data(), job_offset.data(), group_offset.data(), groups, weights.data(), base.data(),
                                         channels, &epilogue};
                    for (int b = 0; b < block_count(channels); ++b) {
                        kernels.int8_conv(a, 0, jobs / 3, b);
                        kernels.int8_conv(a, jobs / 3, jobs, b);
                    }
                    bool same = true;
                    for (int j = 0; j < jobs; ++j)
                        for (int c = 0; c < channels; ++c) {
                            int want = base[static_cast<size_t>(c)];
                            for (int k = 0; k < groups * 4; ++k)
                                want += weight(c, k) * input[static_cast<size_t>(job_offset[static_cast<size_t>(j)] + group_offset[static_cast<size_t>(k / 4)] + k % 4)];
                            same = same && out[static_cast<size_t>(j * channels + c)] == static_cast<float>(want);
                        }
                    if (!same) std::cerr << kernels.name << " channels " << channels << " groups " << groups << " jobs " << jobs << "\n";
                    CHECK(same);
                    CHECK(std::all_of(out.end() - 8, out.end(), [](float x) { return x == kGuard; }));
                });
            }
}

TEST(int8_conv_with_pooling_kernels) {
    for (int channels : {1, 16, 17, 40, 64, 100})
        for (int height : {1, 2, 5, 8})
            for (int width : {1, 2, 3, 6, 11, 16, 31}) {
                const int groups = 3, jobs = height * width, out_height = (height + 1) / 2, out_width = (width + 1) / 2;
                const int padded = block_count(channels) * kBlock;
                const auto input = filled<uint8_t>(static_cast<size_t>(groups * 5 + jobs * 3 + 4), random_bits);
                const auto scale = filled<float>(static_cast<size_t>(padded), random_float);
                const auto bias = filled<float>(static_cast<size_t>(padded), random_float);
                std::vector<int32_t> job_offset, group_offset, base, flip;
                for (int j = 0; j < jobs; ++j) job_offset.push_back(j * 3);
                for (int g = 0; g < groups; ++g) group_offset.push_back(g * 5);
                for (int c = 0; c < padded; ++c) {
                    base.push_back(c * 1000 - 7);
                    flip.push_back(scale[static_cast<size_t>(c)] < 0 ? -1 : 0);
                }
                std::vector<int8_t> weights(static_cast<size_t>(all_lanes(channels) * groups * 4));
                const auto weight = [&](int c, int k) -> int8_t& {
                    const int block = c / kBlock, lanes = block_lanes(channels, block);
                    return weights[static_cast<size_t>(block * groups * kBlock * 4 + (k / 4 * lanes + c % kBlock) * 4 + k % 4)];
                };
                for (int c = 0; c < channels; ++c)
                    for (int k = 0; k < groups * 4; ++k) weight(c, k) = static_cast<int8_t>(random_bits());
                std::vector<float> want(static_cast<size_t>(out_height * out_width * channels), -std::numeric_limits<float>::infinity());
                for (int j = 0; j < jobs; ++j)
                    for (int c = 0; c < channels; ++c) {
                        int sum = base[static_cast<size_t>(c)];
                        for (int k = 0; k < groups * 4; ++k)
                            sum += weight(c, k) * input[static_cast<size_t>(job_offset[static_cast<size_t>(j)] + group_offset[static_cast<size_t>(k / 4)] + k % 4)];
                        const float x = std::fma(static_cast<float>(sum), scale[static_cast<size_t>(c)], bias[static_cast<size_t>(c)]);
                        const int y = j / width, column = j % width;
                        for (int py = y / 2; py <= std::min((y + 1) / 2, out_height - 1); ++py)
                            for (int px = column / 2; px <= std::min((column + 1) / 2, out_width - 1); ++px) {
                                float& best = want[static_cast<size_t>((py * out_width + px) * channels + c)];
                                best = std::max(best, x);
                            }
                    }
                each_isa([&](const Kernels& kernels) {
                    std::vector<float> out(want.size() + 8, kGuard);
                    std::vector<Step> steps(2);
                    steps[0].kind = StepKind::affine;
                    steps[0].scale = scale.data();
                    steps[0].bias = bias.data();
                    steps[1].kind = StepKind::store;
                    steps[1].real = out.data();
                    steps[1].pixel_stride = channels;
                    const Epilogue epilogue{steps.data(), 2, channels};
                    std::vector<int32_t> above(static_cast<size_t>(out_width * kBlock + 8), 99);
                    Int8PoolArgs a{};
                    a.conv = {input.data(), job_offset.data(), group_offset.data(), groups, weights.data(), base.data(), channels, &epilogue};
                    a.height = height;
                    a.width = width;
                    a.flip = flip.data();
                    a.above = above.data();
                    for (int b = 0; b < block_count(channels); ++b) {
                        kernels.int8_conv_pooled(a, out_height / 2, out_height, b);
                        kernels.int8_conv_pooled(a, 0, out_height / 2, b);
                    }
                    const bool same = std::equal(want.begin(), want.end(), out.begin());
                    if (!same) std::cerr << kernels.name << " channels " << channels << " map " << height << "x" << width << "\n";
                    CHECK(same);
                    CHECK(std::all_of(out.end() - 8, out.end(), [](float x) { return x == kGuard; }));
                    CHECK(std::all_of(above.end() - 8, above.end(), [](int32_t x) { return x == 99; }));
                });
            }
}

TEST(elementwise_signs_write_whole_words_and_no_more) {
    for (int channels : {1, 31, 32, 33, 64, 70, 96, 97, 130}) {
        const int words = (channels + 31) / 32, pixels = 5;
        const auto input = filled<float>(static_cast<size_t>(pixels * channels), random_float);
        each_isa([&](const Kernels& kernels) {
            std::vector<uint32_t> bits(static_cast<size_t>(pixels * (words + 1)), 0xdeadbeefu);
            std::vector<int32_t> offset;
            for (int p = 0; p < pixels; ++p) offset.push_back(p * (words + 1));
            Step sign;
            sign.kind = StepKind::sign;
            sign.bits = bits.data();
            sign.bit_offset = offset.data();
            const Epilogue epilogue{&sign, 1, channels};
            kernels.elementwise({input.data(), channels, channels, &epilogue}, 0, pixels);
            for (int p = 0; p < pixels; ++p) {
                for (int c = 0; c < words * 32; ++c) {
                    const bool want = c < channels && input[static_cast<size_t>(p * channels + c)] >= 0;
                    CHECK((bits[static_cast<size_t>(p * (words + 1) + c / 32)] >> (c % 32) & 1) == want);
                }
                CHECK(bits[static_cast<size_t>(p * (words + 1) + words)] == 0xdeadbeefu);
            }
        });
    }
}

TEST(elementwise_signs_with_scales_of_one_map) {
    for (int channels : {5, 32, 41, 70})
        for (int pixels : {1, 3, 4, 9}) {
            const int words = (channels + 31) / 32, padded = block_count(channels) * kBlock, stride = channels + 7;
            const auto input = filled<float>(static_cast<size_t>(pixels * stride), random_float);
            const auto scale = filled<float>(static_cast<size_t>(padded), random_float);
            const auto bias = filled<float>(static_cast<size_t>(padded), random_float);
            each_isa([&](const Kernels& kernels) {
                std::vector<int32_t> offset;
                for (int p = 0; p < pixels; ++p) offset.push_back(p * words);
                std::vector<std::vector<uint32_t>> bits(4, std::vector<uint32_t>(static_cast<size_t>(pixels * words), 0xdeadbeefu));
                std::vector<Step> signs(4);
                for (size_t i = 0; i < signs.size(); ++i) {
                    signs[i].kind = StepKind::sign;
                    signs[i].scale = i & 1 ? scale.data() : nullptr;
                    signs[i].bias = i & 2 ? bias.data() : nullptr;
                    signs[i].bits = bits[i].data();
                    signs[i].bit_offset = offset.data();
                }
                const Epilogue epilogue{signs.data(), 4, channels};
                kernels.elementwise({input.data(), stride, channels, &epilogue}, 0, pixels);
                for (size_t i = 0; i < signs.size(); ++i)
                    for (int p = 0; p < pixels; ++p)
                        for (int c = 0; c < words * 32; ++c) {
                            bool want = false;
                            if (c < channels) {
                                float x = input[static_cast<size_t>(p * stride + c)];
                                if (i & 1) x *= scale[static_cast<size_t>(c)];
                                if (i & 2) x += bias[static_cast<size_t>(c)];
                                want = x >= 0;
                            }
                            CHECK((bits[i][static_cast<size_t>(p * words + c / 32)] >> (c % 32) & 1) == want);
                        }
            });
        }
}

TEST(pooling_scales_what_it_reads) {
    constexpr int kHeight = 5, kWidth = 6;
    for (int channels : {3, 16, 41, 64, 70})
        for (PoolKind kind : {PoolKind::max, PoolKind::avg}) {
            const int padded = block_count(channels) * kBlock, stride = channels + 5;
            const auto input = filled<float>(static_cast<size_t>(kHeight * kWidth * stride), random_float);
            const auto scale = filled<float>(static_cast<size_t>(padded), random_float);
            const auto bias = filled<float>(static_cast<size_t>(padded), random_float);
            each_isa([&](const Kernels& kernels) {
                std::vector<float> out(static_cast<size_t>(4 * channels), kGuard);
                Step store;
                store.kind = StepKind::store;
                store.real = out.data();
                store.pixel_stride = channels;
                const Epilogue epilogue{&store, 1, channels};
                PoolArgs a{};
                a.kind = kind;
                a.input = input.data();
                a.pixel_stride = stride;
                a.height = kHeight;
                a.width = kWidth;
                a.channels = channels;
                a.out_width = 2;
                for (int i = 0; i < 2; ++i) a.kernel[i] = a.stride[i] = i + 2, a.dilation[i] = 1;
                a.scale = scale.data();
                a.bias = bias.data();
                a.epilogue = &epilogue;
                kernels.pool(a, 0, 4);
                for (int p = 0; p < 4; ++p)
                    for (int c = 0; c < channels; ++c) {
                        float best = -std::numeric_limits<float>::infinity(), sum = 0;
                        for (int y = p / 2 * 2; y < p / 2 * 2 + 2; ++y)
                            for (int x = p % 2 * 3; x < p % 2 * 3 + 3; ++x) {
                                const float v = std::fma(input[static_cast<size_t>((y * kWidth + x) * stride + c)], scale[static_cast<size_t>(c)],
                                                         bias[static_cast<size_t>(c)]);
                                best = std::max(best, v);
                                sum += v;
                            }
                        CHECK(out[static_cast<size_t>(p * channels + c)] == (kind == PoolKind::max ? best : sum / 6));
                    }
            });
        }
}

TEST(pooling_inside_and_at_the_edges) {
    struct Shape {
        int kernel[2], stride[2], padding[2], dilation[2];
    };
    constexpr int kHeight = 11, kWidth = 13;
    for (int channels : {20, 64, 70, 128})
        for (const Shape& s : {Shape{{2, 2}, {2, 2}, {0, 0}, {1, 1}}, Shape{{3, 3}, {2, 2}, {1, 1}, {1, 1}}, Shape{{3, 2}, {1, 3}, {1, 0}, {2, 4}},
                               Shape{{9, 9}, {2, 2}, {4, 3}, {1, 1}}})
            for (PoolKind kind : {PoolKind::max, PoolKind::avg}) {
                const int stride = channels + 5;
                const auto input = filled<float>(static_cast<size_t>(kHeight * kWidth * stride), random_float);
                const auto size = [&](int axis, int in) { return (in + 2 * s.padding[axis] - (s.kernel[axis] - 1) * s.dilation[axis] - 1) / s.stride[axis] + 1; };
                const int out_height = size(0, kHeight), out_width = size(1, kWidth);
                each_isa([&](const Kernels& kernels) {
                    std::vector<float> out(static_cast<size_t>(out_height * out_width * channels + 8), kGuard);
                    Step store;
                    store.kind = StepKind::store;
                    store.real = out.data();
                    store.pixel_stride = channels;
                    const Epilogue epilogue{&store, 1, channels};
                    PoolArgs a{kind, input.data(), stride, kHeight, kWidth, channels, out_width, {}, {}, {}, {}, false, nullptr, nullptr, &epilogue};
                    for (int i = 0; i < 2; ++i) {
                        a.kernel[i] = s.kernel[i];
                        a.stride[i] = s.stride[i];
                        a.padding[i] = s.padding[i];
                        a.dilation[i] = s.dilation[i];
                    }
                    const int pixels = out_height * out_width;
                    kernels.pool(a, 0, pixels / 3);
                    kernels.pool(a, pixels / 3, pixels);
                    bool same = true;
                    for (int p = 0; p < pixels; ++p)
                        for (int c = 0; c < channels; ++c) {
                            float best = -std::numeric_limits<float>::infinity(), sum = 0;
                            int taps = 0;
                            for (int ky = 0; ky < s.kernel[0]; ++ky)
                                for (int kx = 0; kx < s.kernel[1]; ++kx) {
                                    const int y = p / out_width * s.stride[0] - s.padding[0] + ky * s.dilation[0];
                                    const int x = p % out_width * s.stride[1] - s.padding[1] + kx * s.dilation[1];
                                    if (y < 0 || y >= kHeight || x < 0 || x >= kWidth) continue;
                                    const float v = input[static_cast<size_t>((y * kWidth + x) * stride + c)];
                                    best = std::max(best, v);
                                    sum += v;
                                    ++taps;
                                }
                            const float want = kind == PoolKind::max ? best : sum / static_cast<float>(taps);
                            same = same && out[static_cast<size_t>(p * channels + c)] == want;
                        }
                    if (!same) std::cerr << kernels.name << " channels " << channels << " kernel " << s.kernel[0] << "\n";
                    CHECK(same);
                    CHECK(std::all_of(out.end() - 8, out.end(), [](float x) { return x == kGuard; }));
                });
            }
}
