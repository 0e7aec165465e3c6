#include "core/context.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "core/error.h"

namespace leanconv {

namespace {

size_t checked(size_t bytes) {
    const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
    if (memory > 0 && static_cast<double>(bytes) > memory)
        fail("the picture is too large: this run needs ", bytes >> 20, " MiB, the machine has ", static_cast<size_t>(memory) >> 20,
             "; use a smaller one");
    return bytes;
}

void copy_map(const CopyArgs& a, int begin, int end) {
    for (int y = begin; y < end; ++y) {
        const float* from = a.from.data + int64_t{y} * a.from.row_pixels * a.from.pixel_stride;
        float* to = a.to.data + int64_t{y} * a.to.row_pixels * a.to.pixel_stride;
        if (a.from.pixel_stride == a.channels && a.to.pixel_stride == a.channels) {
            std::memcpy(to, from, sizeof(float) * static_cast<size_t>(a.width) * static_cast<size_t>(a.channels));
            continue;
        }
        for (int x = 0; x < a.width; ++x, from += a.from.pixel_stride, to += a.to.pixel_stride)
            std::memcpy(to, from, sizeof(float) * static_cast<size_t>(a.channels));
    }
}

void flatten(const CopyArgs& a) {
    for (int c = 0; c < a.channels; ++c) {
        float* to = a.to.data + int64_t{c} * a.height * a.width;
        for (int p = 0; p < a.height * a.width; ++p) to[p] = a.from.data[int64_t{p} * a.from.pixel_stride + c];
    }
}

// Up to 32 bits from bit `at` on.
inline uint32_t bits_at(const uint32_t* words, int at, int count) {
    const int word = at / 32, shift = at % 32;
    uint64_t bits = words[word] >> shift;
    if (shift + count > 32) bits |= uint64_t{words[word + 1]} << (32 - shift);
    return static_cast<uint32_t>(count < 32 ? bits & ((uint64_t{1} << count) - 1) : bits);
}

void regroup(const RegroupArgs& a, int begin, int end) {
    const int words = a.to_words / a.groups;
    for (int y = begin; y < end; ++y)
        for (int x = 0; x < a.width; ++x) {
            const uint32_t* from = a.from + int64_t{y} * a.from_row + int64_t{x} * a.from_words;
            uint32_t* to = a.to + int64_t{y} * a.to_row + int64_t{x} * a.to_words;
            for (int g = 0; g < a.groups; ++g)
                for (int w = 0; w < words; ++w)
                    *to++ = bits_at(from, g * a.group_channels + w * 32, std::min(32, a.group_channels - w * 32));
        }
}

// One block of output channels at one tap: `to[i][o] = from[i][o] * gain(i, o)`, rows of `lanes`, `count` of them in use.
template <class Gain>
void scale_tap(const float* from, float* to, int in, int lanes, int count, Gain gain) {
    for (int i = 0; i < in; ++i, from += lanes, to += lanes) {
        for (int o = 0; o < count; ++o) to[o] = from[o] * gain(i, o);
        std::fill(to + count, to + lanes, 0.0f);
    }
}

void scale_weights(const GainArgs& a, int block, int begin, int end) {
    const int first = a.depthwise ? 0 : block * kBlock, lanes = a.depthwise ? a.out : block_lanes(a.out, block);
    const int count = std::min(lanes, a.out - first), in = a.depthwise ? 1 : a.in;
    const int64_t start = int64_t{first} * a.taps * in;
    for (int t = begin; t < end; ++t) {
        const float* g = a.gains + (int64_t{t / a.kernel_width} * a.row_pixels + t % a.kernel_width) * a.pixel_stride;
        const float* from = a.weights + start + int64_t{t} * in * lanes;
        float* to = a.scaled + (from - a.weights);
        if (a.kind == GainKind::tap)
            scale_tap(from, to, in, lanes, count, [=](int, int) { return *g; });
        else if (a.kind == GainKind::output || a.depthwise)  // a depthwise output has one input: all kinds count alike
            scale_tap(from, to, in, lanes, count, [=](int, int o) { return g[first + o]; });
        else if (a.kind == GainKind::input)
            scale_tap(from, to, in, lanes, count, [=](int i, int) { return g[i]; });
        else
            scale_tap(from, to, in, lanes, count, [=](int i, int o) { return g[int64_t{first + o} * in + i]; });
    }
}

// Output pixel (y, x) averages the rows [y * height / out_height, ceil((y + 1) * height / out_height)), columns alike.
void adaptive_pool(const AdaptivePoolArgs& a, int begin, int end) {
    const auto from = [](int64_t i, int64_t size, int64_t out) { return static_cast<int>(i * size / out); };
    const auto to = [](int64_t i, int64_t size, int64_t out) { return static_cast<int>(((i + 1) * size + out - 1) / out); };
    constexpr int kChunk = 64;
    for (int p = begin; p < end; ++p) {
        const int y0 = from(p / a.out_width, a.height, a.out_height), y1 = to(p / a.out_width, a.height, a.out_height);
        const int x0 = from(p % a.out_width, a.width, a.out_width), x1 = to(p % a.out_width, a.width, a.out_width);
        const float share = 1.0f / static_cast<float>(int64_t{y1 - y0} * (x1 - x0));
        for (int c0 = 0; c0 < a.channels; c0 += kChunk) {
            const int count = std::min(kChunk, a.channels - c0);
            float total[kChunk] = {};
            for (int y = y0; y < y1; ++y) {
                float row[kChunk] = {};
                const float* pixel = a.from.data + (int64_t{y} * a.from.row_pixels + x0) * a.from.pixel_stride + c0;
                for (int x = x0; x < x1; ++x, pixel += a.from.pixel_stride)
                    for (int c = 0; c < count; ++c) row[c] += pixel[c];
                for (int c = 0; c < count; ++c) total[c] += row[c];
            }
            for (int c = 0; c < count; ++c) a.output[int64_t{p} * a.channels + c0 + c] = total[c] * share;
        }
    }
}

}  // namespace

Context::Context(std::shared_ptr<const Plan> plan, const Kernels& kernels)
    : plan_(std::move(plan)), kernels_(kernels), arena_(checked(plan_->bytes)), stages_(plan_->stages), inputs_(plan_->inputs),
      outputs_(plan_->outputs) {
    for (Stage& s : stages_) {
        for (size_t i = 0; i < s.steps.size(); ++i) {
            for (Step& step : s.steps[i]) {
                bind(step.real);
                bind(step.bf16);
                bind(step.bits);
                bind(step.bytes);
            }
            s.epilogues[i].steps = s.steps[i].data();
        }
        for (size_t i = 0; i < s.binary.size(); ++i) {
            bind(s.binary[i].input);
            s.binary[i].epilogue = &s.epilogues[i % s.epilogues.size()];
        }
        for (Int8ConvArgs& a : s.int8) {
            bind(a.input);
            a.epilogue = &s.epilogues[0];
        }
        for (size_t i = 0; i < s.real.size(); ++i) {
            bind(s.real[i].input);
            if (s.gated) bind(s.real[i].weights);
            s.real[i].epilogue = &s.epilogues[i % s.epilogues.size()];
        }
        for (GainArgs& a : s.gains) {
            bind(a.scaled);
            bind(a.gains);
        }
        if (s.gated) bind(s.depthwise.weights);
        bind(s.adaptive.from.data);
        bind(s.adaptive.output);
        if (!s.epilogues.empty()) s.pool.epilogue = s.elementwise.epilogue = s.depthwise.epilogue = &s.epilogues.back();
        bind(s.band.band);
        bind(s.pooled_input.scratch);
        bind(s.pool.input);
        bind(s.pool.bf16);
        bind(s.elementwise.input);
        bind(s.elementwise.bf16);
        bind(s.depthwise.input);
        bind(s.copy.from.data);
        bind(s.copy.to.data);
        bind(s.regroup.from);
        bind(s.regroup.to);
    }
    for (FillArgs a : plan_->fills) {
        bind(a.data);
        for (int64_t p = 0; p < a.pixels; ++p)
            for (int c = 0; c < a.value->channels; ++c) *a.data++ = a.value->zero_of(c);
    }
    for (CopyArgs& a : inputs_) {
        bind(a.to.data);
        bind(a.bytes);
    }
    for (CopyArgs& a : outputs_) bind(a.from.data);
}

template <class T>
void Context::bind(T*& p) const {
    if (p) p = reinterpret_cast<T*>(arena_.data() + reinterpret_cast<uintptr_t>(p));
}

namespace {

// One row of a picture of `count` pixels to floats, `stride` of them a pixel. CHANNELS 0: any number.
template <int CHANNELS>
void load_bytes(const uint8_t* from, const float* table, float* to, int count, int stride, int channels) {
    const int n = CHANNELS ? CHANNELS : channels;
    for (int x = 0; x < count; ++x, from += n, to += stride)
        for (int c = 0; c < n; ++c) to[c] = table[c * 256 + from[c]];
}

template <int CHANNELS>
void load_planes(const float* from, int64_t plane, float* to, int count, int stride, int channels) {
    const int n = CHANNELS ? CHANNELS : channels;
    for (int x = 0; x < count; ++x, to += stride)
        for (int c = 0; c < n; ++c) to[c] = from[c * plane + x];
}

}  // namespace

void Context::load(int input, const Picture& picture) const {
    const CopyArgs& a = inputs_[static_cast<size_t>(input)];
    const int channels = a.channels, stride = a.to.pixel_stride;
    const int64_t plane = int64_t{a.height} * a.width;
    const auto bytes = channels == 3 ? load_bytes<3> : channels == 1 ? load_bytes<1> : load_bytes<0>;
    const auto planes = channels == 3 ? load_planes<3> : channels == 1 ? load_planes<1> : load_planes<0>;
    for (int y = 0; y < a.height && a.bytes; ++y)
        std::memcpy(a.bytes + int64_t{y} * a.to.row_pixels * stride,
                    static_cast<const uint8_t*>(picture.data) + int64_t{y} * a.width * channels, static_cast<size_t>(a.width) * static_cast<size_t>(channels));
    for (int y = 0; y < a.height && !a.bytes; ++y) {
        float* to = a.to.data + int64_t{y} * a.to.row_pixels * stride;
        const int64_t pixel = int64_t{y} * a.width;
        if (picture.table)
            bytes(static_cast<const uint8_t*>(picture.data) + pixel * channels, picture.table, to, a.width, stride, channels);
        else
            planes(static_cast<const float*>(picture.data) + pixel, plane, to, a.width, stride, channels);
    }
}

void Context::store(int output, float* to) const {
    const CopyArgs& a = outputs_[static_cast<size_t>(output)];
    const int64_t plane = int64_t{a.height} * a.width;
    for (int64_t p = 0; p < plane; ++p) {
        const float* from = a.from.data + p * a.from.pixel_stride;
        for (int c = 0; c < a.channels; ++c) to[c * plane + p] = from[c];
    }
}

// Rows [begin, end) of the pooling: a band of the convolution's rows, then what can be pooled from it; rows that the next
// band needs again move to its front.
void Context::pooled(const Stage& s, int begin, int end, int slot) const {
    const BandArgs& b = s.band;
    char* const band = b.band + slot * b.slot_bytes;
    PoolArgs pool = s.pool;
    std::array<Step, 8> steps;
    std::copy(s.steps[0].begin(), s.steps[0].end(), steps.begin());
    const Epilogue epilogue = {steps.data(), s.epilogues[0].count, s.epilogues[0].channels};
    const auto convolve = [&](auto kernel, auto conv, int first_row, int end_row) {
        conv.epilogue = &epilogue;
        for (int block = 0; block < block_count(conv.out_channels); ++block) kernel(conv, first_row * b.width, end_row * b.width, block);
    };
    int front = 0, kept = 0;  // the band holds rows [front, kept)
    for (int row = begin; row < end; row += b.pool_rows) {
        const int stop = std::min(end, row + b.pool_rows);
        const int first = std::max(0, row * pool.stride[0] - pool.padding[0]);
        const int last = std::min(b.height, (stop - 1) * pool.stride[0] - pool.padding[0] + (pool.kernel[0] - 1) * pool.dilation[0] + 1);
        const int fresh = row == begin ? first : std::max(first, kept);
        if (fresh > first)
            std::memmove(band, band + (first - front) * b.row_bytes, static_cast<size_t>((fresh - first) * b.row_bytes));
        // the band stands for the whole map: row `first` lies at its start
        const uintptr_t map = reinterpret_cast<uintptr_t>(band) - static_cast<uintptr_t>(first * b.row_bytes);
        Step& store = steps[static_cast<size_t>(b.store)];
        if (pool.bf16)
            pool.bf16 = store.bf16 = reinterpret_cast<Bf16*>(map);
        else
            pool.input = store.real = reinterpret_cast<float*>(map);
        s.int8.empty() ? convolve(kernels_.real_conv, s.real[0], fresh, last) : convolve(kernels_.int8_conv, s.int8[0], fresh, last);
        kernels_.pool(pool, row * pool.out_width, stop * pool.out_width);
        kept = last;
        front = first;
    }
}

void Context::pooled_sums(const Stage& s, const Unit& u, int slot) const {
    Int8PoolArgs a = s.int8_pool;
    a.conv = s.int8[0];
    a.above = reinterpret_cast<int32_t*>(s.band.band + slot * s.band.slot_bytes);
    kernels_.int8_conv_pooled(a, u.begin, u.end, u.block);
}

// Pixels [begin, end) of the convolution: a few pixels of the pooled map, then all channels of these.
void Context::pooled_input(const Stage& s, int begin, int end, int slot) const {
    const PooledInputArgs& p = s.pooled_input;
    char* const scratch = p.scratch + slot * p.slot_bytes;
    PoolArgs pool = s.pool;
    std::array<Step, 8> steps;
    std::copy(s.steps[1].begin(), s.steps[1].end(), steps.begin());
    const Epilogue epilogue = {steps.data(), s.epilogues[1].count, s.epilogues[1].channels};
    pool.epilogue = &epilogue;
    Step& output = steps[static_cast<size_t>(p.output)];
    const auto convolve = [&](auto kernel, auto conv, auto& pooled) {
        using Number = std::remove_reference_t<decltype(*pooled)>;
        for (int first = begin; first < end; first += p.pixels) {
            const int last = std::min(end, first + p.pixels);
            // the scratch stands for the whole map: pixel `first` lies at its start
            pooled = reinterpret_cast<Number*>(reinterpret_cast<uintptr_t>(scratch) - static_cast<uintptr_t>(first * p.pixel_bytes));
            conv.input = pooled;
            kernels_.pool(pool, first, last);
            for (int block = 0; block < block_count(conv.out_channels); ++block) kernel(conv, first, last, block);
        }
    };
    s.int8.empty() ? convolve(kernels_.real_conv, s.real[0], output.real) : convolve(kernels_.int8_conv, s.int8[0], output.bytes);
}

void Context::unit(const Stage& s, const Unit& u, int slot) const {
    switch (s.kind) {
        case StageKind::binary: kernels_.binary_conv(s.binary[static_cast<size_t>(u.part)], u.begin, u.end, u.block); break;
        case StageKind::real: kernels_.real_conv(s.real[static_cast<size_t>(u.part)], u.begin, u.end, u.block); break;
        case StageKind::int8: kernels_.int8_conv(s.int8[0], u.begin, u.end, u.block); break;
        case StageKind::pooled: pooled(s, u.begin, u.end, slot); break;
        case StageKind::pooled_sums: pooled_sums(s, u, slot); break;
        case StageKind::pooled_input: pooled_input(s, u.begin, u.end, slot); break;
        case StageKind::depthwise: kernels_.depthwise(s.depthwise, u.begin, u.end); break;
        case StageKind::pool: kernels_.pool(s.pool, u.begin, u.end); break;
        case StageKind::elementwise: kernels_.elementwise(s.elementwise, u.begin, u.end); break;
        case StageKind::copy: copy_map(s.copy, u.begin, u.end); break;
        case StageKind::regroup: regroup(s.regroup, u.begin, u.end); break;
        case StageKind::flatten: flatten(s.copy); break;
        case StageKind::gains: scale_weights(s.gains[static_cast<size_t>(u.part)], u.block, u.begin, u.end); break;
        case StageKind::adaptive_pool: adaptive_pool(s.adaptive, u.begin, u.end); break;
    }
}

void Context::run(size_t index, const Team* team) const {
    const Stage& s = stages_[index];
    if (team && !s.units.empty()) {
        struct Work {
            const Context* context;
            const Stage* stage;
        } work{this, &s};
        team->run(static_cast<int>(s.units.size()),
                  [](void* argument, int unit, int slot) {
                      const Work& w = *static_cast<const Work*>(argument);
                      w.context->unit(*w.stage, w.stage->units[static_cast<size_t>(unit)], slot);
                  },
                  &work);
        return;
    }
    const int parts = static_cast<int>(s.part_jobs.size());
    for (int p = 0; p < parts; ++p)
        for (int b = 0; b < s.part_blocks[static_cast<size_t>(p)]; ++b) unit(s, {p, b, 0, s.part_jobs[static_cast<size_t>(p)]}, 0);
}

}  // namespace leanconv
