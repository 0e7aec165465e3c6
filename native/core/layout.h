// Where every value of a network lives during a run: lifetimes, frames, joined maps, bands, memory taken over in place.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "core/error.h"
#include "core/memory.h"
#include "core/plan.h"

namespace leanconv {

// A convolution's map larger than this is pooled in bands of at most this size (bytes): the second cache holds it.
constexpr int64_t kBandBytes = 256 << 10;
constexpr size_t kBandSteps = 8;

// A 1x1 convolution pools this much of its input at a time: the second cache holds it next to the weights, all of which are
// read for each piece. Weights that do not fit there are better read once than by every thread.
constexpr int64_t kPooledInputBytes = 64 << 10, kPooledInputWeights = 640 << 10;
constexpr int64_t kWholeTiles = 24;  // pixels that the tiles of every kernel divide

// One axis of a phase of a convolution: for every output along it, where its first tap lies and which taps are inside.
struct Axis {
    std::vector<int> output;                      // index along the output map
    std::vector<int64_t> first;                   // input coordinate of the first tap (offset 0)
    std::vector<int> pattern;                     // index into `inside`
    std::vector<std::pair<int, int>> inside;      // taps [begin, end) that lie in the picture
    int64_t before = 0, after = 0;                // how far taps reach outside

    Axis(const Op& op, const std::vector<Tap>& taps, int axis, int remainder, int in_size, int out_size) {
        const bool transposed = op.kind == OpKind::binary_conv_transpose;
        const int stride = op.stride[axis], pad = op.padding[axis];
        for (int o = 0; o < out_size; ++o) {
            if (transposed && (o + pad) % stride != remainder) continue;
            const int64_t at = transposed ? (int64_t{o} + pad) / stride : int64_t{o} * stride - pad;
            output.push_back(o);
            first.push_back(at);
            int begin = 0, end = static_cast<int>(taps.size());
            const auto outside = [&](int t) { return at + taps[t].offset < 0 || at + taps[t].offset >= in_size; };
            while (begin < end && outside(begin)) ++begin;
            while (end > begin && outside(end - 1)) --end;
            const auto found = std::find(inside.begin(), inside.end(), std::pair{begin, end});
            pattern.push_back(static_cast<int>(found - inside.begin()));
            if (found == inside.end()) inside.push_back({begin, end});
            for (const Tap& tap : taps) {
                before = std::max(before, -(at + tap.offset));
                after = std::max(after, at + tap.offset - (in_size - 1));
            }
        }
    }
};

struct Frame {
    int64_t top = 0, left = 0, bottom = 0, right = 0;

    auto operator<=>(const Frame&) const = default;
    bool none() const { return *this == Frame{}; }
    void include(const Frame& o) {
        top = std::max(top, o.top), left = std::max(left, o.left);
        bottom = std::max(bottom, o.bottom), right = std::max(right, o.right);
    }
};

// Where a value lives.
struct Place {
    int first = 0, last = 0;   // operators between which it is alive (-1: an input; count: an output)
    int readers = 0;
    int buffer = -1;           // of the memory planner
    int64_t offset = 0;        // bytes from the buffer's start
    int pixel_stride = 0;      // numbers (real) or words (bits)
    int row_pixels = 0;        // pixels between rows, frame included
    Frame frame;               // bits
    int framed_for = -1;       // an input that is converted straight into the frame of this (its only) reader
    bool joined = false;       // a part of a concatenation
    bool banded = false;       // only a part of it exists at a time (see BandArgs, PooledInputArgs)
};
// The first half of making a plan; the stages are built on top of it (plan.cpp).
class Layout {
protected:
    Layout(const Program& program, const std::vector<PackedOp>& packed, const std::vector<Size>& inputs, int threads)
        : program_(program), packed_(packed), threads_(threads), plan_(std::make_unique<Plan>()) {
        plan_->sizes = infer_sizes(program, inputs);
        const size_t ops = program.ops.size();
        plan_->macs_binary.resize(ops);
        plan_->macs_real.resize(ops);
        places_.resize(program.values.size());
    }

    void place_values() {
        check_outputs();
        lifetimes();
        frames();
        join_concatenations();
        bands();
        pooled_inputs();
        allocate_bytes();
        allocate_real();
        allocate_bits();
    }

    Size size_of(int value) const { return plan_->sizes[static_cast<size_t>(value)]; }
    const Value& value(int v) const { return program_.values[static_cast<size_t>(v)]; }
    int64_t row_bytes(int v) const { return int64_t{size_of(v).width} * value(v).channels * value(v).real_bytes(); }
    Place& place(int v) { return places_[static_cast<size_t>(v)]; }
    const Op& op_at(int i) const { return program_.ops[static_cast<size_t>(i)]; }
    const PackedOp& packed_at(int i) const { return packed_[static_cast<size_t>(i)]; }

    Size out_size(const Op& op) const {
        for (const StepSpec& s : op.steps)
            if (writes(s.kind)) return size_of(s.value);
        return size_of(op.output);
    }

    // An operator none of whose results is kept does nothing.
    static bool idle(const Op& op) {
        return op.output < 0 && std::none_of(op.steps.begin(), op.steps.end(), [](const StepSpec& s) { return writes(s.kind); });
    }

    static bool padded(const Op& op) {
        return op.real_conv() && (op.padding[0] | op.padding[1] | op.padding[2] | op.padding[3]);
    }

    void check_outputs() const {
        for (const Port& port : program_.outputs) {
            const Size size = size_of(port.value);
            if ((port.dims == 2 && size.pixels() != 1) || (port.dims == 3 && size.height != 1))
                fail("output '", port.name, "' is a ", size.height, "x", size.width, " map for this input; use the picture size "
                     "that the network was compiled with");
        }
    }

    void lifetimes() {
        const int count = static_cast<int>(program_.ops.size());
        for (Place& p : places_) p.first = p.last = -1;
        for (int i = 0; i < count; ++i) {
            const Op& op = op_at(i);
            const auto write = [&](int v) { place(v).first = place(v).last = i; };
            const auto read = [&](int v) {
                place(v).last = i;
                ++place(v).readers;
            };
            for (int v : op.inputs) read(v);
            if (op.output >= 0) write(op.output);
            for (const StepSpec& s : op.steps) {
                if (s.value < 0) continue;
                writes(s.kind) ? write(s.value) : read(s.value);
            }
        }
        for (const Port& port : program_.outputs) {
            place(port.value).last = count;
            ++place(port.value).readers;
        }
        for (int i = 0; i < count; ++i) {
            if (!scaled_by_previous(i)) continue;
            Place& source = place(op_at(i - 1).inputs[0]);
            source.last = std::max(source.last, i);
        }
        for (int i = 0; i < count; ++i) {
            const Op& op = op_at(i);
            if (!padded(op) || op.wrapped_channels() || idle(op) || place(op.inputs[0]).readers != 1) continue;
            for (const Port& port : program_.inputs)
                if (port.value == op.inputs[0]) place(port.value).framed_for = i;
        }
    }

    // How far the taps of a binary convolution reach outside its input.
    Frame reach(int index) const {
        const Op& op = op_at(index);
        const Size in = size_of(op.inputs[0]), out = out_size(op);
        Frame frame;
        for (const Phase& phase : packed_at(index).phases) {
            const Axis rows(op, phase.rows, 0, phase.remainder[0], in.height, out.height);
            const Axis columns(op, phase.columns, 1, phase.remainder[1], in.width, out.width);
            frame.include({rows.before, columns.before, rows.after, columns.after});
        }
        return frame;
    }

    void frames() {
        for (int i = 0; i < static_cast<int>(program_.ops.size()); ++i) {
            const Op& op = op_at(i);
            if (op.kind == OpKind::int8_conv)
                place(op.inputs[0]).frame.include({op.padding[0], op.padding[1], op.padding[2], op.padding[3]});
            if (packed_at(i).phases.empty() || idle(op) || packed_at(i).regroup) continue;
            place(op.inputs[0]).frame.include(reach(i));
        }
    }

    // A concatenation's inputs are written straight into the joined map where that is possible: later ones first, so
    // that a chain of them (a dense block) shares one map.
    void join_concatenations() {
        const auto network_input = [&](int v) { return place(v).first == -1; };
        for (int i = static_cast<int>(program_.ops.size()) - 1; i >= 0; --i) {
            const Op& op = op_at(i);
            if (op.kind != OpKind::concat) continue;
            Place& whole = place(op.output);
            if (whole.buffer < 0) own_buffer(op.output);
            int64_t channel = 0;
            for (int v : op.inputs) {
                Place& part = place(v);
                const int64_t at = channel;
                channel += value(v).channels;
                if (part.buffer >= 0 || network_input(v)) continue;  // copied
                part.buffer = whole.buffer;
                part.offset = whole.offset + at * 4;
                part.pixel_stride = whole.pixel_stride;
                part.row_pixels = whole.row_pixels;
                part.joined = whole.joined = true;
                memory_.extend(part.buffer, part.first, part.last);
            }
        }
    }

    // A convolution and the pooling right behind it, if nobody else reads the map between them.
    bool pooled_with_next(int index) const {
        if (index + 1 >= static_cast<int>(program_.ops.size())) return false;
        const Op& conv = op_at(index);
        const Op& pool = op_at(index + 1);
        if ((conv.kind != OpKind::conv && conv.kind != OpKind::int8_conv) || conv.groups != 1 || conv.steps.size() > kBandSteps || idle(pool)) return false;
        if (pool.kind != OpKind::max_pool && pool.kind != OpKind::avg_pool) return false;
        const auto stores = std::count_if(conv.steps.begin(), conv.steps.end(),
                                          [](const StepSpec& s) { return s.kind == StepKind::store; });
        const auto store = std::find_if(conv.steps.begin(), conv.steps.end(),
                                        [](const StepSpec& s) { return s.kind == StepKind::store; });
        return stores == 1 && store->value == pool.inputs[0] && places_[static_cast<size_t>(store->value)].readers == 1;
    }

    // A convolution of bytes and a pooling right behind it that can choose among its sums (Int8PoolArgs): the usual window, and
    // steps between them that never decrease, or never increase, with the sum, and no rounding.
    bool pools_sums(int index) const {
        if (!pooled_with_next(index)) return false;
        const Op& conv = op_at(index);
        const Op& pool = op_at(index + 1);
        const Size map = size_of(pool.inputs[0]), out = out_size(pool);
        if (conv.kind != OpKind::int8_conv || pool.kind != OpKind::max_pool || conv.steps.back().kind != StepKind::store) return false;
        if (value(pool.inputs[0]).bf16) return false;
        for (int i = 0; i < 2; ++i)
            if (pool.kernel[i] != 3 || pool.stride[i] != 2 || pool.padding[i] != 1 || pool.dilation[i] != 1) return false;
        if (out.height != (map.height + 1) / 2 || out.width != (map.width + 1) / 2) return false;  // without ceil_mode's
        const auto finite = [](const Aligned<float>& x) { return std::all_of(x.data(), x.data() + x.size(), [](float f) { return std::isfinite(f); }); };
        for (size_t i = 0; i + 1 < conv.steps.size(); ++i) {
            const StepKind kind = conv.steps[i].kind;
            const StepTensors& tensors = packed_at(index).steps[i];
            if (kind == StepKind::affine ? i > 0 || !finite(tensors.scale) || !finite(tensors.bias) : kind != StepKind::clip) return false;
        }
        return true;
    }

    // A pooling that reads what an `elementwise` right before it made by nothing but an affine, if nobody else reads it:
    // the pooling then reads that operator's input and does the affine on the way. Windows must not overlap, or the
    // affine would be done several times, and nothing may be rounded between.
    bool scaled_by_previous(int index) const {
        if (index < 1 || index >= static_cast<int>(program_.ops.size())) return false;
        const Op& pool = op_at(index);
        const Op& affine = op_at(index - 1);
        if ((pool.kind != OpKind::max_pool && pool.kind != OpKind::avg_pool) || idle(pool)) return false;
        if (pool.kernel[0] > pool.stride[0] || pool.kernel[1] > pool.stride[1]) return false;
        if (affine.kind != OpKind::elementwise || affine.steps.size() != 2) return false;
        const StepSpec &first = affine.steps[0], &store = affine.steps[1];
        return first.kind == StepKind::affine && first.scale && first.bias && store.kind == StepKind::store &&
               store.value == pool.inputs[0] && !value(store.value).bf16 && places_[static_cast<size_t>(store.value)].readers == 1;
    }

    static int64_t band_rows(const Op& pool, int pool_rows) {
        return int64_t{pool_rows - 1} * pool.stride[0] + int64_t{pool.kernel[0] - 1} * pool.dilation[0] + 1;
    }

    int band_pool_rows(const Op& pool) const {
        int rows = 1;
        while (rows < out_size(pool).height && band_rows(pool, rows + 1) * row_bytes(pool.inputs[0]) <= kBandBytes) ++rows;
        return rows;
    }

    void bands() {
        for (int i = 0; i < static_cast<int>(program_.ops.size()); ++i) {
            if (!pooled_with_next(i)) continue;
            const Op& pool = op_at(i + 1);
            const int v = pool.inputs[0];
            const Size map = size_of(v);
            if (place(v).buffer >= 0 || (!pools_sums(i) && map.height * row_bytes(v) <= kBandBytes)) continue;
            Place& p = place(v);
            p.banded = true;
            p.pixel_stride = pool.channels;
            p.row_pixels = map.width;
            p.offset = 0;
            p.buffer = memory_.buffer(slot_bytes(i + 1) * std::max(1, threads_), i, i + 1);
            // what the convolution reads and writes lives until the pooling is done
            for (int in : op_at(i).inputs) outlive(in, i + 1);
            for (const StepSpec& s : op_at(i).steps)
                if (s.value >= 0) outlive(s.value, i + 1);
        }
    }

    // A pooling and the 1x1 convolution right behind it, if nobody else reads the map between them.
    bool feeds_next(int index) const {
        if (index < 0 || index + 1 >= static_cast<int>(program_.ops.size())) return false;
        const Op& pool = op_at(index);
        const Op& conv = op_at(index + 1);
        if ((pool.kind != OpKind::max_pool && pool.kind != OpKind::avg_pool) || pool.steps.size() > kBandSteps) return false;
        if ((conv.kind != OpKind::conv && conv.kind != OpKind::int8_conv) || conv.groups != 1 || idle(conv)) return false;
        const bool plain = conv.kernel[0] == 1 && conv.kernel[1] == 1 && conv.stride[0] == 1 && conv.stride[1] == 1 &&
                           std::all_of(conv.padding, conv.padding + 4, [](int p) { return p == 0; });
        const bool from_pool = std::any_of(pool.steps.begin(), pool.steps.end(),
                                           [&](const StepSpec& s) { return writes(s.kind) && s.value == conv.inputs[0]; });
        return plain && from_pool && places_[static_cast<size_t>(conv.inputs[0])].readers == 1;
    }

    int64_t pixel_bytes(int v) const { return value(v).channels * (value(v).bytes ? 1 : value(v).real_bytes()); }

    // How many pixels a 1x1 convolution pools at a time, and the bytes of them that a thread needs.
    int pooled_pixels(int v) const {
        const int64_t most = std::max<int64_t>(1, kPooledInputBytes / pixel_bytes(v) / kWholeTiles) * kWholeTiles;
        return static_cast<int>(std::min(most, size_of(v).pixels()));
    }
    int64_t pooled_input_bytes(int v) const {
        constexpr int64_t kBehind = 3;  // bytes that a kernel may read behind the last pixel
        return (pooled_pixels(v) * pixel_bytes(v) + kBehind + 63) / 64 * 64;
    }

    // Whether the operator at `index` is a convolution that pools its input itself.
    bool pools_input(int index) const { return feeds_next(index - 1) && places_[static_cast<size_t>(op_at(index).inputs[0])].banded; }

    void pooled_inputs() {
        for (int i = 0; i < static_cast<int>(program_.ops.size()); ++i) {
            if (!feeds_next(i)) continue;
            const Op& pool = op_at(i);
            const Op& conv = op_at(i + 1);
            const int v = conv.inputs[0];
            const int64_t weights = int64_t{conv.channels} * pixel_bytes(v);
            const auto banded = [&](const StepSpec& s) { return s.value >= 0 && place(s.value).banded; };
            // one that takes part in bands, or has one pixel: a dense layer, bound by its weights
            if (place(pool.inputs[0]).banded || std::any_of(conv.steps.begin(), conv.steps.end(), banded)) continue;
            if (place(v).buffer >= 0 || size_of(v).pixels() == 1 || weights > kPooledInputWeights) continue;
            Place& p = place(v);
            p.banded = true;
            p.pixel_stride = conv.in_channels;
            p.row_pixels = size_of(v).width;
            p.offset = 0;
            p.buffer = memory_.buffer(pooled_input_bytes(v) * std::max(1, threads_), i, i + 1);
            // what the pooling reads and writes lives until the convolution is done
            outlive(scaled_by_previous(i) ? op_at(i - 1).inputs[0] : pool.inputs[0], i + 1);
            for (const StepSpec& s : pool.steps)
                if (s.value >= 0) outlive(s.value, i + 1);
        }
    }

    // What a thread needs to pool in bands: a few rows, or the maxima of one pooled row.
    int64_t slot_bytes(int index) const {
        const Op& pool = op_at(index);
        if (pools_sums(index - 1)) return int64_t{out_size(pool).width} * kBlock * 4;
        const int64_t rows = std::min<int64_t>(band_rows(pool, band_pool_rows(pool)), size_of(pool.inputs[0]).height);
        return (rows * row_bytes(pool.inputs[0]) + 63) / 64 * 64;
    }

    void outlive(int v, int op) {
        Place& p = place(v);
        p.last = std::max(p.last, op);
        if (p.buffer >= 0) memory_.extend(p.buffer, p.first, p.last);
    }

    void own_buffer(int v) {
        Place& p = place(v);
        p.pixel_stride = value(v).channels;
        p.row_pixels = size_of(v).width;
        p.offset = 0;
        p.buffer = memory_.buffer(size_of(v).height * row_bytes(v), p.first, p.last);
    }

    // A value that dies in an operator may give its memory to what the operator stores, if each number is read before
    // its place is written.
    int donor(int index, const StepSpec& store) {
        const Op& op = op_at(index);
        const auto fits = [&](int v) {
            const Place& p = place(v);
            return p.last == index && p.buffer >= 0 && !p.joined && !p.banded && p.framed_for < 0 && size_of(v) == size_of(store.value) && value(v).bf16 == value(store.value).bf16 &&
                   std::find(donated_.begin(), donated_.end(), v) == donated_.end();
        };
        const auto read_later = [&](int v) {
            bool later = false;
            for (const StepSpec& s : op.steps) {
                later = later || &s == &store;
                if (later && s.value == v && &s != &store) return true;
            }
            return false;
        };
        const bool is_input = op.kind == OpKind::elementwise;
        const auto pooled_here = [&](int v) {  // while other pixels are written
            return pools_input(index) && (v == op_at(index - 1).inputs[0] || (scaled_by_previous(index - 1) && v == op_at(index - 2).inputs[0]));
        };
        for (const StepSpec& s : op.steps) {
            if ((s.kind != StepKind::add && s.kind != StepKind::mul) || !fits(s.value) || read_later(s.value) || pooled_here(s.value)) continue;
            if (is_input || s.value != op.inputs[0]) return s.value;
        }
        if (is_input && fits(op.inputs[0]) && !read_later(op.inputs[0])) return op.inputs[0];
        return -1;
    }

    void allocate_real() {
        for (const Port& port : program_.inputs)
            if (place(port.value).framed_for < 0 && place(port.value).buffer < 0) own_buffer(port.value);  // bytes have one
        for (int i = 0; i < static_cast<int>(program_.ops.size()); ++i) {
            const Op& op = op_at(i);
            if (scaled_by_previous(i + 1)) continue;
            if (op.output >= 0 && place(op.output).buffer < 0) own_buffer(op.output);
            for (const StepSpec& s : op.steps) {
                if (s.kind != StepKind::store || place(s.value).buffer >= 0) continue;
                const int from = donor(i, s);
                if (from < 0) {
                    own_buffer(s.value);
                    continue;
                }
                donated_.push_back(from);
                Place& p = place(s.value);
                p.buffer = place(from).buffer;
                p.pixel_stride = place(from).pixel_stride;
                p.row_pixels = place(from).row_pixels;
                memory_.extend(p.buffer, p.first, p.last);
            }
        }
    }

    int64_t framed_elements(const Frame& f, Size size, int64_t per_pixel) const {
        const int64_t height = size.height + f.top + f.bottom, width = size.width + f.left + f.right;
        if (height * width > std::numeric_limits<int32_t>::max() / per_pixel)
            fail("the picture is too large: a padded map of ", height, "x", width, " inside the network has more than 2^31 numbers; "
                 "use a smaller one");
        return height * width * per_pixel;
    }

    // A zeroed map with a frame that nobody writes. Maps of one shape take turns on the same memory.
    int framed_buffer(const Frame& f, Size size, int64_t per_pixel, int first, int last) {
        const int64_t bytes = framed_elements(f, size, per_pixel) * 4;
        return memory_.framed({f.top, f.left, f.bottom, f.right, size.height, size.width, per_pixel}, bytes, first, last);
    }

    // A frame of bytes holds the zero points: it is filled once, so its memory is nobody else's.
    void allocate_bytes() {
        constexpr int64_t kBehind = 3;  // bytes that a kernel may read behind the last pixel
        for (int v = 0; v < static_cast<int>(places_.size()); ++v) {
            if (!value(v).bytes || place(v).banded) continue;
            Place& p = place(v);
            const Frame& f = p.frame;
            const int64_t bytes = framed_elements(f, size_of(v), value(v).channels);
            p.pixel_stride = value(v).channels;
            p.row_pixels = static_cast<int>(size_of(v).width + f.left + f.right);
            p.offset = (f.top * p.row_pixels + f.left) * p.pixel_stride;
            if (f.none()) {
                p.buffer = memory_.buffer(bytes + kBehind, p.first, p.last);
                continue;
            }
            p.buffer = memory_.framed({f.top, f.left, f.bottom, f.right, size_of(v).height, size_of(v).width, -1 - v}, bytes + kBehind,
                                      p.first, p.last);
            plan_->fills.push_back({encode<uint8_t>(p.buffer, 0), bytes / p.pixel_stride, &value(v)});
        }
    }

    void allocate_bits() {
        std::vector<int> order;
        for (int v = 0; v < static_cast<int>(places_.size()); ++v)
            if (value(v).bits) order.push_back(v);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return place(a).first < place(b).first; });
        for (int v : order) {
            Place& p = place(v);
            p.pixel_stride = (value(v).channels + 31) / 32;
            p.row_pixels = static_cast<int>(size_of(v).width + p.frame.left + p.frame.right);
            p.buffer = framed_buffer(p.frame, size_of(v), p.pixel_stride, p.first, p.last);
            p.offset = (p.frame.top * p.row_pixels + p.frame.left) * p.pixel_stride * 4;  // the first pixel inside
        }
    }

    // --- Addresses: until the memory is laid out, an address is (buffer + 1) << 40 | byte offset -----------------------
    template <class T>
    static T* encode(int buffer, int64_t offset) {
        return reinterpret_cast<T*>(static_cast<uintptr_t>(buffer + 1) << 40 | static_cast<uintptr_t>(offset));
    }
    template <class T>
    T* address(int v) {
        return encode<T>(place(v).buffer, place(v).offset);
    }
    template <class T>
    void relocate(T*& p) const {
        const uintptr_t code = reinterpret_cast<uintptr_t>(p);
        if (!code) return;
        p = reinterpret_cast<T*>(static_cast<uintptr_t>(memory_.offset(static_cast<int>(code >> 40) - 1)) +
                                 (code & ((uintptr_t{1} << 40) - 1)));
    }

    void relocate(Stage& stage) const {
        for (auto& steps : stage.steps)
            for (Step& s : steps) {
                relocate(s.real);
                relocate(s.bf16);
                relocate(s.bits);
                relocate(s.bytes);
            }
        for (auto& a : stage.int8) relocate(a.input);
        for (auto& a : stage.binary) relocate(a.input);
        for (auto& a : stage.real) {
            relocate(a.input);
            if (stage.gated) relocate(a.weights);
        }
        relocate(stage.band.band);
        relocate(stage.pooled_input.scratch);
        relocate(stage.pool.input);
        relocate(stage.pool.bf16);
        relocate(stage.elementwise.input);
        relocate(stage.elementwise.bf16);
        relocate(stage.depthwise.input);
        relocate(stage.adaptive.from.data);
        relocate(stage.adaptive.output);
        if (stage.gated) relocate(stage.depthwise.weights);
        for (auto& a : stage.gains) {
            relocate(a.gains);
            relocate(a.scaled);
        }
        relocate(stage.copy.from.data);
        relocate(stage.copy.to.data);
        relocate(stage.regroup.from);
        relocate(stage.regroup.to);
    }

    MapRef map(int v) { return {address<float>(v), place(v).pixel_stride, place(v).row_pixels}; }

    // Equal tables are kept once: repeated layers then read the same cache lines.
    const int32_t* table(std::vector<int32_t> numbers) {
        uint64_t hash = 1469598103934665603u;
        for (int32_t n : numbers) hash = (hash ^ static_cast<uint32_t>(n)) * 1099511628211u;
        auto& bucket = plan_->tables[hash];
        for (const auto& known : bucket)
            if (*known == numbers) return known->data();
        bucket.push_back(std::make_unique<std::vector<int32_t>>(std::move(numbers)));
        return bucket.back()->data();
    }

    const int32_t* bit_offsets(int v) {
        const Place& p = place(v);
        const Size size = size_of(v);
        std::vector<int32_t> offsets;
        offsets.reserve(static_cast<size_t>(size.pixels()));
        for (int y = 0; y < size.height; ++y)
            for (int x = 0; x < size.width; ++x) offsets.push_back((y * p.row_pixels + x) * p.pixel_stride);
        return table(std::move(offsets));
    }

    const Program& program_;
    const std::vector<PackedOp>& packed_;
    const int threads_;
    std::unique_ptr<Plan> plan_;
    std::vector<Place> places_;
    std::vector<int> donated_;
    MemoryPlanner memory_;
};

}  // namespace leanconv
