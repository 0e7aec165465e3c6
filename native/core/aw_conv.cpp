#include "core/aw_conv.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "core/error.h"
#include "core/parallel.h"
#include "kernels/aw_kernels.h"

namespace leanconv::aw {

namespace {

constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
constexpr size_t kKept = size_t{64} << 20;

void check(const Shape& s, const Gains& gain) {
    const bool positive = s.samples >= 0 && s.in_channels > 0 && s.height > 0 && s.width > 0 && s.out_channels > 0 && s.groups > 0;
    if (!positive || s.in_channels % s.groups || s.out_channels % s.groups)
        fail("AW-convolution: ", s.in_channels, " input and ", s.out_channels, " output channels do not fit ", s.groups, " groups");
    int64_t area = 1, framed = 1;
    for (int i = 0; i < 2; ++i) {
        const int64_t size = i ? s.width : s.height;
        for (int64_t x : {s.kernel[i], s.stride[i], s.dilation[i]})
            if (x < 1 || x > kLimit / 4) fail("AW-convolution: kernel, stride and dilation are numbers from 1");
        if (s.padding[i] < 0 || s.padding[i] > kLimit / 4 || size > kLimit / 4) fail("AW-convolution: impossible padding or size");
        if (s.dilation[i] * (s.kernel[i] - 1) >= size + 2 * s.padding[i]) fail("AW-convolution: the kernel is larger than the padded input");
        area *= s.kernel[i];
        framed *= size + 2 * s.padding[i] + s.dilation[i] * s.kernel[i] + s.stride[i];
        if (framed > kLimit / (2 * kPixel)) fail("AW-convolution: the input is too large");
    }
    const int64_t channels = std::max(s.in_channels, s.out_channels);
    if (channels > kLimit / 64 || s.samples > kLimit || area > kLimit / 64) fail("AW-convolution: too many channels or samples");
    const int64_t full[6] = {s.samples, s.groups, s.out_channels / s.groups, s.in_channels / s.groups, s.kernel[0], s.kernel[1]};
    for (int i = 0; i < 6; ++i)
        if (gain.sizes[i] != full[i] && (i == 0 || gain.sizes[i] != 1))
            fail("AW-convolution: axis ", i, " of the gain has ", gain.sizes[i], " entries, expected ", full[i], i ? " or 1" : "");
    if ((gain.sizes[4] == 1) != (gain.sizes[5] == 1) && s.kernel[0] > 1 && s.kernel[1] > 1)
        fail("AW-convolution: the gain is shared along one axis of the kernel only");
}

// Memory of a thread, kept between calls: fresh pages cost more than small convolutions.
class Buffer {
public:
    ~Buffer() { std::free(data_); }
    char* get(size_t bytes) {
        bytes = (bytes + 4096 + 63) / 64 * 64;  // what a tile reads beyond the end
        if (bytes > size_ || size_ > kKept) {
            std::free(data_);
            size_ = 0;
            data_ = static_cast<char*>(std::aligned_alloc(64, bytes));
            if (!data_) throw std::bad_alloc();
            size_ = bytes;
        }
        return data_;
    }

private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

thread_local Buffer packed_buffer, gain_buffer, work_buffer;

template <class Body>
void run(int threads, int units, const Body& body) {
    struct Call {
        const Body& body;
        std::atomic<bool> failed{false};
    } call{body};
    parallel(
        threads, units,
        [](void* p, int unit, int slot) {
            Call& c = *static_cast<Call*>(p);
            try {
                c.body(unit, slot);
            } catch (const std::bad_alloc&) {  // no exception may leave a worker
                c.failed.store(true, std::memory_order_relaxed);
            }
        },
        &call);
    if (call.failed.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

// Which framed pixel is where.
struct Frame {
    std::vector<int32_t> column, partner;
    std::vector<Tap> taps;
    std::vector<Phase> phases;
    Map map{};
};

void set_map(Frame& f, Pixels pixels, int64_t height, int64_t width, int64_t groups, int64_t channels, Words words) {
    const int step = words == Words::channel_pairs ? 2 * kWords : kWords;
    f.map.data = pixels.data, f.map.bf16 = pixels.bf16;
    f.map.height = static_cast<int>(height), f.map.width = static_cast<int>(width);
    f.map.groups = static_cast<int>(groups), f.map.per_group = static_cast<int>(channels / groups);
    f.map.words = words;
    f.map.blocks = (f.map.per_group + step - 1) / step;
}

// Sources of a convolution: result (u, v), tap (i, j) reads row u * stride + i * dilation, columns sorted by remainders.
Frame forward_frame(const Shape& s, Pixels x, Words words, int groups) {
    Frame f;
    set_map(f, x, s.height, s.width, groups, s.in_channels, words);
    const int64_t down = s.stride[0], right = s.stride[1];
    const int rows = static_cast<int>(s.out_size(0)), cols = static_cast<int>(s.out_size(1));
    std::vector<int64_t> remainders;
    int64_t reach = 0;
    for (int64_t j = 0; j < s.kernel[1]; ++j) {
        const int64_t at = j * s.dilation[1];
        reach = std::max(reach, at / right);
        if (std::find(remainders.begin(), remainders.end(), at % right) == remainders.end()) remainders.push_back(at % right);
    }
    const int64_t per = cols + reach;
    const auto column = [&](int64_t framed) {
        const int64_t c = framed - s.padding[1];
        return static_cast<int32_t>(c >= 0 && c < s.width ? c : -1);
    };
    for (int64_t r : remainders)
        for (int64_t i = 0; i < per; ++i) {
            f.column.push_back(column(i * right + r));
            f.partner.push_back(column((i + 1) * right + r));
        }
    f.map.top = static_cast<int>(s.padding[0]);
    f.map.rows = static_cast<int>((rows - 1) * down + (s.kernel[0] - 1) * s.dilation[0] + 1);
    f.map.slots = static_cast<int>(f.column.size());
    for (int64_t i = 0; i < s.kernel[0]; ++i)
        for (int64_t j = 0; j < s.kernel[1]; ++j) {
            const int64_t at = j * s.dilation[1];
            const int64_t set = std::find(remainders.begin(), remainders.end(), at % right) - remainders.begin();
            const int64_t offset = i * s.dilation[0] * f.map.row_bytes() + (set * per + at / right) * kPixel;
            f.taps.push_back({static_cast<int32_t>(f.taps.size()), static_cast<int32_t>(offset)});
        }
    f.phases.push_back({0, 0, 1, 1, rows, cols, static_cast<int>(down), f.taps.data(), static_cast<int>(f.taps.size())});
    f.map.column = f.column.data(), f.map.partner = f.partner.data();
    return f;
}

// One axis of the gradient of the input: place q = stride * u + phase gets result u + shift through tap, for each of `taps`.
struct AxisPhase {
    int first, count;
    std::vector<std::pair<int, int64_t>> taps;  // tap, shift
};

std::vector<AxisPhase> axis_phases(const Shape& s, int axis, int64_t& least, int64_t& end) {
    const int64_t size = axis ? s.width : s.height, stride = s.stride[axis];
    std::vector<AxisPhase> phases;
    least = 0, end = s.out_size(axis);
    for (int64_t a = 0; a < std::min(stride, size); ++a) {
        AxisPhase phase{static_cast<int>(a), static_cast<int>((size - a + stride - 1) / stride), {}};
        for (int64_t i = 0; i < s.kernel[axis]; ++i) {
            const int64_t distance = a + s.padding[axis] - i * s.dilation[axis];
            if (distance % stride) continue;
            phase.taps.emplace_back(static_cast<int>(i), distance / stride);
            least = std::min(least, distance / stride);
            end = std::max(end, phase.count + distance / stride);
        }
        phases.push_back(std::move(phase));
    }
    return phases;
}

Frame gradient_frame(const Shape& s, Pixels grad_y, Words words, int groups) {
    Frame f;
    set_map(f, grad_y, s.out_size(0), s.out_size(1), groups, s.out_channels, words);
    int64_t top, bottom, left, right;
    const std::vector<AxisPhase> rows = axis_phases(s, 0, top, bottom), cols = axis_phases(s, 1, left, right);
    for (int64_t c = left; c < right; ++c) f.column.push_back(static_cast<int32_t>(c >= 0 && c < f.map.width ? c : -1));
    f.map.top = static_cast<int>(-top);
    f.map.rows = static_cast<int>(bottom - top);
    f.map.slots = static_cast<int>(f.column.size());
    f.taps.reserve(static_cast<size_t>(s.kernel[0] * s.kernel[1]));  // each tap is in one phase
    for (const AxisPhase& r : rows)
        for (const AxisPhase& c : cols) {
            Phase phase = {r.first, c.first, static_cast<int>(s.stride[0]), static_cast<int>(s.stride[1]), r.count, c.count, 1,
                           f.taps.data() + f.taps.size(), static_cast<int>(r.taps.size() * c.taps.size())};
            for (const auto& [i, down] : r.taps)
                for (const auto& [j, across] : c.taps)
                    f.taps.push_back({static_cast<int32_t>(i * s.kernel[1] + j),
                                      static_cast<int32_t>((down - top) * f.map.row_bytes() + (across - left) * kPixel)});
            f.phases.push_back(phase);
        }
    f.map.column = f.column.data();
    return f;
}

// Element strides of the gain: 0 along the axes that it shares.
struct GainStrides {
    int64_t of[6];
    explicit GainStrides(const Gains& g) {
        int64_t step = 1;
        for (int i = 5; i >= 0; --i) {
            of[i] = g.sizes[i] == 1 && i > 0 ? 0 : step;
            step *= g.sizes[i];
        }
    }
    int64_t tap() const { return of[5] ? of[5] : of[4]; }  // taps are numbered row by row, so one stride does
};

// Gains that are shared by channels, sorted by taps, so that neighbours in a vector are neighbours in memory: [N, g, taps,
// channels]. The others stay as they are.
struct Sorted {
    GainStrides strides;
    int64_t outer, channels, taps;
    bool needed;

    explicit Sorted(const Gains& g)
        : strides(g), outer(g.sizes[0] * g.sizes[1]), channels(g.sizes[2] * g.sizes[3]), taps(g.sizes[4] * g.sizes[5]),
          needed(taps > 1 && channels > 1 && (g.sizes[2] == 1 || g.sizes[3] == 1)) {}
    int64_t count() const { return outer * channels * taps; }
    Gain gain(const float* data, bool transposed) const {
        int64_t tap = strides.tap(), out = strides.of[2], in = strides.of[3];
        if (needed) tap = channels, out = out ? 1 : 0, in = in ? 1 : 0;
        return {data, strides.of[0], strides.of[1], transposed ? in : out, transposed ? out : in, tap};
    }
    void sort(const float* from, float* to) const { swap(from, to, channels, taps); }
    void unsort(const float* from, float* to) const { swap(from, to, taps, channels); }

private:
    void swap(const float* from, float* to, int64_t rows, int64_t columns) const {
        for (int64_t n = 0; n < outer; ++n, from += rows * columns, to += rows * columns)
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
    }
};

int all_blocks(const Packing& k) { return k.depthwise ? (k.lanes + kWords - 1) / kWords : k.groups * k.blocks(); }

// Calls body(group, block, offset in the packed weights, planes of the block) for all blocks.
template <class Body>
void each_block(const Packing& k, int threads, const Body& body) {
    run(threads, all_blocks(k), [&](int unit, int) {
        if (k.depthwise)
            body(0, unit, int64_t{unit} * k.taps * kWords, 1);
        else
            body(unit / k.blocks(), unit % k.blocks(), k.at(unit / k.blocks(), unit % k.blocks()), k.planes());
    });
}

Filters filters_of(const Shape& s, const Weight& w, bool transposed) {
    return {w.data, {w.strides[0], w.strides[1], w.strides[2], w.strides[3]}, static_cast<int>(s.kernel[1]), transposed};
}

// Cuts the work: samples first, blocks of lanes where there are fewer samples than threads.
struct Split {
    int sample_parts, block_parts;
    int64_t samples, blocks;

    Split(int64_t n, int64_t b, int threads) : samples(n), blocks(b) {
        if (threads < 2)
            sample_parts = block_parts = 1;
        else if (n >= threads) {
            sample_parts = static_cast<int>(std::min<int64_t>(n, n % threads == 0 ? threads : 4 * threads));
            block_parts = 1;
        } else {
            sample_parts = static_cast<int>(n);
            block_parts = static_cast<int>(std::min<int64_t>(b, (threads + n - 1) / n));
        }
    }
    int units() const { return sample_parts * block_parts; }
    Part part(int unit) const {
        const int64_t i = unit / block_parts, j = unit % block_parts;
        return {static_cast<int>(samples * i / sample_parts), static_cast<int>(samples * (i + 1) / sample_parts),
                static_cast<int>(blocks * j / block_parts), static_cast<int>(blocks * (j + 1) / block_parts)};
    }
};

bool is_depthwise(const Shape& s) { return s.groups == s.in_channels && s.groups == s.out_channels && s.groups > 1; }

void correlate(const Shape& s, bool transposed, Pixels source, const Weight& weight, const Gains& gain, Pixels out, const Setting& setting) {
    check(s, gain);
    const Kernels& kernels = select(setting.isa.c_str());
    if (s.samples == 0) return;
    const bool depthwise = is_depthwise(s);
    const Words words = source.bf16 && kernels.dots && !depthwise ? Words::channel_pairs : Words::floats;
    const int groups = depthwise ? 1 : static_cast<int>(s.groups);
    const Frame frame = transposed ? gradient_frame(s, source, words, groups) : forward_frame(s, source, words, groups);
    Correlation a{};
    a.source = frame.map;
    a.out = out.data, a.out_bf16 = out.bf16;
    a.out_height = static_cast<int>(transposed ? s.height : s.out_size(0));
    a.out_width = static_cast<int>(transposed ? s.width : s.out_size(1));
    a.lanes = static_cast<int>((transposed ? s.in_channels : s.out_channels) / groups);
    a.phases = frame.phases.data(), a.phase_count = static_cast<int>(frame.phases.size());
    a.taps = static_cast<int>(s.kernel[0] * s.kernel[1]);
    const Sorted sorted(gain);
    float* gains = gain.data;
    if (sorted.needed) {
        gains = reinterpret_cast<float*>(gain_buffer.get(static_cast<size_t>(sorted.count()) * sizeof(float)));
        sorted.sort(gain.data, gains);
    }
    a.gain = sorted.gain(gains, transposed);
    a.depthwise = depthwise;
    const Packing k = {groups, a.lanes, a.source.per_group, a.taps, kernels.width, words == Words::channel_pairs ? 2 : 1, depthwise};
    a.filters = filters_of(s, weight, transposed);
    const Split split(s.samples, all_blocks(k), setting.threads);
    if (depthwise || s.samples > kernels.correlate_samples(a) || split.sample_parts > 1) {
        float* packed = reinterpret_cast<float*>(packed_buffer.get(static_cast<size_t>(k.floats()) * sizeof(float)));
        each_block(k, setting.threads, [&](int group, int block, int64_t at, int planes) {
            kernels.pack(k, a.filters, group, block, 0, planes, packed + at);
        });
        a.weights = packed;
    }
    const size_t scratch = kernels.correlate_scratch(a);
    run(setting.threads, split.units(), [&](int unit, int) { kernels.correlate(a, split.part(unit), work_buffer.get(scratch)); });
}

}  // namespace

void forward(const Shape& s, Pixels x, const Weight& weight, const Gains& gain, Pixels y, const Setting& setting) {
    correlate(s, false, x, weight, gain, y, setting);
}

void input_gradient(const Shape& s, Pixels grad_y, const Weight& weight, const Gains& gain, Pixels grad_x, const Setting& setting) {
    correlate(s, true, grad_y, weight, gain, grad_x, setting);
}

void weight_gradient(const Shape& s, Pixels x, Pixels grad_y, const Weight& weight, const Gains& gain, const Weight& grad_weight,
                     const Gains& grad_gain, const Setting& setting) {
    check(s, gain);
    check(s, grad_gain);
    const Kernels& kernels = select(setting.isa.c_str());
    const bool depthwise = is_depthwise(s);
    const Words words = x.bf16 && grad_y.bf16 && kernels.dots && !depthwise ? Words::column_pairs : Words::floats;
    const int groups = depthwise ? 1 : static_cast<int>(s.groups);
    const Frame frame = forward_frame(s, x, words, groups);
    WeightGradient a{};
    a.source = frame.map;
    a.result = grad_y.data, a.result_bf16 = grad_y.bf16;
    a.out_height = static_cast<int>(s.out_size(0)), a.out_width = static_cast<int>(s.out_size(1));
    a.lanes = static_cast<int>(s.out_channels / groups);
    a.phase = frame.phases[0];
    a.taps = static_cast<int>(s.kernel[0] * s.kernel[1]);
    a.depthwise = depthwise;
    const Packing k = {groups, a.lanes, a.source.per_group, a.taps, kernels.width, 1, depthwise};
    const Split split(s.samples, all_blocks(k), setting.threads);
    const int slots = split.sample_parts > 1 ? std::min(setting.threads, split.units()) : 1;  // sums of weights, one a thread
    const Sorted sorted(gain);
    const int64_t gain_count = sorted.count();
    const int gain_slots = split.block_parts;  // sums of gains, one for each part that may meet another's
    const bool gains_aside = sorted.needed || gain_slots > 1;
    float* gains = gain.data;
    float* gain_sums = grad_gain.data;
    if (gains_aside) {
        gains = reinterpret_cast<float*>(gain_buffer.get(static_cast<size_t>((1 + gain_slots) * gain_count) * sizeof(float)));
        gain_sums = gains + gain_count;
        if (sorted.needed)
            sorted.sort(gain.data, gains);
        else
            std::copy_n(gain.data, gain_count, gains);
    }
    a.gain = sorted.gain(gains, false);
    const int64_t size = k.floats();
    a.filters = filters_of(s, weight, false), a.grads = filters_of(s, grad_weight, false);
    const bool ahead = depthwise || split.sample_parts > 1 || s.samples > kernels.weight_gradient_samples(a) || s.samples == 0;
    const int64_t packed_size = ahead ? size * (1 + slots) : 0;
    float* packed = reinterpret_cast<float*>(packed_buffer.get(static_cast<size_t>(packed_size) * sizeof(float)));
    float* sums = packed + size;
    if (ahead) {
        each_block(k, setting.threads, [&](int group, int block, int64_t at, int planes) {
            kernels.pack(k, a.filters, group, block, 0, planes, packed + at);
        });
        std::fill_n(sums, slots * size, 0.0f);
        a.weights = packed;
    }
    std::fill_n(gain_sums, gain_slots * gain_count, 0.0f);
    const size_t scratch = kernels.weight_gradient_scratch(a);
    if (s.samples > 0)
        run(setting.threads, split.units(), [&](int unit, int slot) {
            float* own_gains = gain_sums + unit % split.block_parts * gain_count;
            float* own = ahead ? sums + (slots > 1 ? slot * size : 0) : nullptr;
            kernels.weight_gradient(a, split.part(unit), own, own_gains, work_buffer.get(scratch));
        });
    for (int j = 1; j < gain_slots; ++j)
        for (int64_t i = 0; i < gain_count; ++i) gain_sums[i] += gain_sums[j * gain_count + i];
    if (sorted.needed)
        sorted.unsort(gain_sums, grad_gain.data);
    else if (gains_aside)
        std::copy_n(gain_sums, gain_count, grad_gain.data);
    if (!ahead) return;
    each_block(k, setting.threads, [&](int group, int block, int64_t at, int planes) {
        const int64_t count = depthwise ? k.taps * kWords : k.block_floats(block);
        for (int j = 1; j < slots; ++j)
            for (int64_t i = 0; i < count; ++i) sums[at + i] += sums[j * size + at + i];
        kernels.unpack(k, a.grads, group, block, 0, planes, sums + at);
    });
}

void attention(int64_t samples, const Attention& a, const Setting& setting) {
    for (int size : {a.height, a.width, a.channels, a.pooled_rows, a.pooled_cols, a.hidden, a.maps})
        if (size < 1 || size > kLimit / 64) fail("attention: sizes are numbers from 1 to ", kLimit / 64, ", got ", size);
    if (int64_t{a.pooled_rows} * a.pooled_cols > kLimit / 64 || samples < 0 || samples > kLimit) fail("attention: too large");
    const Kernels& kernels = select(setting.isa.c_str());
    const size_t scratch = kernels.attention_scratch(a);
    run(setting.threads, static_cast<int>(samples), [&](int unit, int) { kernels.attention(a, unit, work_buffer.get(scratch)); });
}

}  // namespace leanconv::aw
