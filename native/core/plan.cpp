#include "core/plan.h"

#include <algorithm>
#include <array>
#include <limits>

#include "core/error.h"
#include "core/memory.h"

namespace leanconv {

namespace {

// Rough costs of a one-thread AVX-512 run, only to decide what is worth sharing between threads.
constexpr double kBinaryMacsPerNs = 200, kRealMacsPerNs = 25, kElementsPerNs = 4;

// A convolution's map larger than this is pooled in bands of at most this size (bytes): the second cache holds it.
constexpr int64_t kBandBytes = 256 << 10;
constexpr size_t kBandSteps = 8;

double cost_of(double binary, double real, double elements) {
    return binary / kBinaryMacsPerNs + real / kRealMacsPerNs + elements / kElementsPerNs + 100;
}

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
    int pixel_stride = 0;      // floats (real) or words (bits)
    int row_pixels = 0;        // pixels between rows, frame included
    Frame frame;               // bits
    int framed_for = -1;       // an input that is converted straight into the frame of this (its only) reader
    bool joined = false;       // a part of a concatenation
    bool banded = false;       // only a few rows of it exist at a time (see BandArgs)
};

class Builder {
public:
    Builder(const Program& program, const std::vector<PackedOp>& packed, const std::vector<Size>& inputs, int threads,
            double grain_ns)
        : program_(program), packed_(packed), threads_(threads), grain_ns_(grain_ns), plan_(std::make_unique<Plan>()) {
        plan_->sizes = infer_sizes(program, inputs);
        const size_t ops = program.ops.size();
        plan_->macs_binary.resize(ops);
        plan_->macs_real.resize(ops);
        places_.resize(program.values.size());
    }

    std::unique_ptr<const Plan> build() {
        check_outputs();
        lifetimes();
        frames();
        join_concatenations();
        bands();
        allocate_real();
        allocate_bits();
        for (size_t i = 0; i < program_.ops.size(); ++i) emit(static_cast<int>(i));
        finish_memory();
        ports();
        for (Stage& stage : plan_->stages) {
            relocate(stage);
            split(stage);
            plan_->cost += stage.cost;
        }
        return std::move(plan_);
    }

private:
    Size size_of(int value) const { return plan_->sizes[static_cast<size_t>(value)]; }
    const Value& value(int v) const { return program_.values[static_cast<size_t>(v)]; }
    Place& place(int v) { return places_[static_cast<size_t>(v)]; }
    const Op& op_at(int i) const { return program_.ops[static_cast<size_t>(i)]; }
    const PackedOp& packed_at(int i) const { return packed_[static_cast<size_t>(i)]; }

    Size out_size(const Op& op) const {
        for (const StepSpec& s : op.steps)
            if (s.kind == StepKind::store || s.kind == StepKind::sign) return size_of(s.value);
        return size_of(op.output);
    }

    // An operator none of whose results is kept does nothing.
    static bool idle(const Op& op) {
        return op.output < 0 && std::none_of(op.steps.begin(), op.steps.end(), [](const StepSpec& s) {
                   return s.kind == StepKind::store || s.kind == StepKind::sign;
               });
    }

    static bool padded(const Op& op) {
        return op.kind == OpKind::conv && (op.padding[0] | op.padding[1] | op.padding[2] | op.padding[3]);
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
                s.kind == StepKind::store || s.kind == StepKind::sign ? write(s.value) : read(s.value);
            }
        }
        for (const Port& port : program_.outputs) {
            place(port.value).last = count;
            ++place(port.value).readers;
        }
        for (int i = 0; i < count; ++i) {
            const Op& op = op_at(i);
            if (!padded(op) || idle(op) || place(op.inputs[0]).readers != 1) continue;
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
        if (conv.kind != OpKind::conv || conv.groups != 1 || conv.steps.size() > kBandSteps || idle(pool)) return false;
        if (pool.kind != OpKind::max_pool && pool.kind != OpKind::avg_pool) return false;
        const auto stores = std::count_if(conv.steps.begin(), conv.steps.end(),
                                          [](const StepSpec& s) { return s.kind == StepKind::store; });
        const auto store = std::find_if(conv.steps.begin(), conv.steps.end(),
                                        [](const StepSpec& s) { return s.kind == StepKind::store; });
        return stores == 1 && store->value == pool.inputs[0] && places_[static_cast<size_t>(store->value)].readers == 1;
    }

    static int64_t band_rows(const Op& pool, int pool_rows) {
        return int64_t{pool_rows - 1} * pool.stride[0] + int64_t{pool.kernel[0] - 1} * pool.dilation[0] + 1;
    }

    int band_pool_rows(const Op& pool) const {
        const Size map = size_of(pool.inputs[0]);
        const int64_t row_bytes = int64_t{map.width} * pool.channels * 4;
        int rows = 1;
        while (rows < out_size(pool).height && band_rows(pool, rows + 1) * row_bytes <= kBandBytes) ++rows;
        return rows;
    }

    void bands() {
        for (int i = 0; i < static_cast<int>(program_.ops.size()); ++i) {
            if (!pooled_with_next(i)) continue;
            const Op& pool = op_at(i + 1);
            const int v = pool.inputs[0];
            const Size map = size_of(v);
            if (place(v).buffer >= 0 || map.pixels() * pool.channels * 4 <= kBandBytes) continue;
            Place& p = place(v);
            p.banded = true;
            p.pixel_stride = pool.channels;
            p.row_pixels = map.width;
            p.offset = 0;
            p.buffer = memory_.buffer(slot_bytes(pool) * std::max(1, threads_), i, i + 1);
            // what the convolution reads and writes lives until the pooling is done
            for (int in : op_at(i).inputs) outlive(in, i + 1);
            for (const StepSpec& s : op_at(i).steps)
                if (s.value >= 0) outlive(s.value, i + 1);
        }
    }

    int64_t slot_bytes(const Op& pool) const {
        const int64_t rows = std::min<int64_t>(band_rows(pool, band_pool_rows(pool)), size_of(pool.inputs[0]).height);
        return (rows * size_of(pool.inputs[0]).width * pool.channels * 4 + 63) / 64 * 64;
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
        p.buffer = memory_.buffer(size_of(v).pixels() * value(v).channels * 4, p.first, p.last);
    }

    // A value that dies in an operator may give its memory to what the operator stores, if each number is read before
    // its place is written.
    int donor(int index, const StepSpec& store) {
        const Op& op = op_at(index);
        const auto fits = [&](int v) {
            const Place& p = place(v);
            return p.last == index && p.buffer >= 0 && !p.joined && !p.banded && p.framed_for < 0 && size_of(v) == size_of(store.value) &&
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
        for (const StepSpec& s : op.steps) {
            if ((s.kind != StepKind::add && s.kind != StepKind::mul) || !fits(s.value) || read_later(s.value)) continue;
            if (is_input || s.value != op.inputs[0]) return s.value;
        }
        if (is_input && fits(op.inputs[0]) && !read_later(op.inputs[0])) return op.inputs[0];
        return -1;
    }

    void allocate_real() {
        for (const Port& port : program_.inputs)
            if (place(port.value).framed_for < 0 && place(port.value).buffer < 0) own_buffer(port.value);
        for (int i = 0; i < static_cast<int>(program_.ops.size()); ++i) {
            const Op& op = op_at(i);
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
                relocate(s.bits);
            }
        for (auto& a : stage.binary) relocate(a.input);
        for (auto& a : stage.real) relocate(a.input);
        relocate(stage.band.band);
        relocate(stage.pool.input);
        relocate(stage.elementwise.input);
        relocate(stage.depthwise.input);
        relocate(stage.depthwise.output);
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

    // --- Stages --------------------------------------------------------------------------------------------------------
    Stage& stage(StageKind kind, int op) {
        Stage& s = plan_->stages.emplace_back();
        s.kind = kind;
        s.op = op;
        return s;
    }

    static void add_epilogue(Stage& stage, std::vector<Step> steps, int channels) {
        stage.epilogues.push_back({nullptr, static_cast<int>(steps.size()), channels});
        stage.steps.push_back(std::move(steps));
    }

    static void add_part(Stage& stage, int64_t jobs, int blocks) {
        stage.part_jobs.push_back(static_cast<int>(jobs));
        stage.part_blocks.push_back(blocks);
    }

    std::vector<Step> bound_steps(int index) {
        const Op& op = op_at(index);
        const Size out = out_size(op);
        std::vector<Step> steps;
        for (size_t i = 0; i < op.steps.size(); ++i) {
            const StepSpec& spec = op.steps[i];
            const StepTensors& tensors = packed_at(index).steps[i];
            Step s;
            s.kind = spec.kind;
            s.scale = tensors.scale.data();
            s.bias = tensors.bias.data();
            s.min = spec.min;
            s.max = spec.max;
            if (spec.kind == StepKind::affine && !s.scale && !s.bias) continue;
            if (spec.kind == StepKind::sign) {
                s.bits = address<uint32_t>(spec.value);
                s.bit_offset = bit_offsets(spec.value);
            } else if (spec.value >= 0) {
                s.real = address<float>(spec.value);
                s.pixel_stride = size_of(spec.value) == out ? place(spec.value).pixel_stride : 0;
            }
            steps.push_back(s);
        }
        return steps;
    }

    double elements(const Op& op) const { return static_cast<double>(out_size(op).pixels()) * op.channels * (1.0 + op.steps.size() / 2.0); }

    void emit(int index) {
        const Op& op = op_at(index);
        if (idle(op)) return;
        switch (op.kind) {
            case OpKind::binary_conv:
            case OpKind::binary_conv_transpose: emit_binary(index); break;
            case OpKind::conv:
            case OpKind::linear: emit_real(index); break;
            case OpKind::max_pool:
            case OpKind::avg_pool:
            case OpKind::global_avg_pool: emit_pool(index); break;
            case OpKind::elementwise: {
                const MapRef in = map(op.inputs[0]);
                emit_elementwise(index, in.data, in.pixel_stride);
                break;
            }
            case OpKind::concat: emit_concat(index); break;
            case OpKind::flatten: {
                Stage& s = stage(StageKind::flatten, index);
                const Size in = size_of(op.inputs[0]);
                s.copy = {map(op.inputs[0]), map(op.output), in.height, in.width, op.in_channels};
                s.cost = cost_of(0, 0, op.channels * 4.0);
                add_part(s, 1, 1);
                break;
            }
        }
    }

    void emit_elementwise(int index, float* input, int pixel_stride) {
        const Op& op = op_at(index);
        Stage& s = stage(StageKind::elementwise, index);
        s.elementwise = {input, pixel_stride, op.channels, nullptr};
        add_epilogue(s, bound_steps(index), op.channels);
        add_part(s, out_size(op).pixels(), 1);
        s.cost = cost_of(0, 0, elements(op));
    }

    void emit_pool(int index) {
        const Op& op = op_at(index);
        const Size in = size_of(op.inputs[0]), out = out_size(op);
        const bool banded = place(op.inputs[0]).banded;  // then the stage of the convolution pools, too
        Stage& s = banded ? plan_->stages.back() : stage(StageKind::pool, index);
        PoolArgs& a = s.pool;
        a.kind = op.kind == OpKind::max_pool ? PoolKind::max : PoolKind::avg;
        a.input = address<float>(op.inputs[0]);
        a.pixel_stride = place(op.inputs[0]).pixel_stride;
        a.height = in.height;
        a.width = in.width;
        a.channels = op.channels;
        a.out_width = out.width;
        const bool global = op.kind == OpKind::global_avg_pool;
        for (int i = 0; i < 2; ++i) {
            a.kernel[i] = global ? (i ? in.width : in.height) : op.kernel[i];
            a.stride[i] = op.stride[i];
            a.padding[i] = op.padding[i];
            a.dilation[i] = op.dilation[i];
        }
        a.count_include_pad = op.count_include_pad;
        add_epilogue(s, bound_steps(index), op.channels);
        if (banded) {
            s.kind = StageKind::pooled;
            s.part_jobs = {out.height};
            s.part_blocks = {1};
            const auto is_store = [](const Step& step) { return step.kind == StepKind::store; };
            const int store = static_cast<int>(std::find_if(s.steps[0].begin(), s.steps[0].end(), is_store) - s.steps[0].begin());
            s.band = {address<float>(op.inputs[0]), slot_bytes(op) / 4, store, in.height, in.width * op.channels, in.width,
                      band_pool_rows(op)};
        } else {
            add_part(s, out.pixels(), 1);
        }
        s.cost += cost_of(0, 0, elements(op) + static_cast<double>(out.pixels()) * op.channels * a.kernel[0] * a.kernel[1]);
    }

    void emit_concat(int index) {
        const Op& op = op_at(index);
        const MapRef whole = map(op.output);
        const Size size = size_of(op.output);
        int64_t channel = 0;
        for (int v : op.inputs) {
            float* target = encode<float>(place(op.output).buffer, place(op.output).offset + channel * 4);
            channel += value(v).channels;
            if (address<float>(v) == target) continue;  // it was written there
            Stage& s = stage(StageKind::copy, index);
            s.copy = {map(v), {target, whole.pixel_stride, whole.row_pixels}, size.height, size.width, value(v).channels};
            s.cost = cost_of(0, 0, static_cast<double>(size.pixels()) * value(v).channels);
            add_part(s, size.height, 1);
        }
    }

    // Groups cannot run the steps themselves (each sees only its own channels): they store into a plain map, and an
    // elementwise pass does the rest.
    float* temporary(int index) {
        const Op& op = op_at(index);
        return encode<float>(memory_.buffer(out_size(op).pixels() * op.channels * 4, index, index), 0);
    }

    static std::vector<Step> store_steps(float* target, int group, int group_channels, int channels) {
        Step s;
        s.kind = StepKind::store;
        s.real = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(target) + static_cast<uintptr_t>(group) * group_channels * 4);
        s.pixel_stride = channels;
        return {s};
    }

    void emit_binary(int index) {
        const Op& op = op_at(index);
        const PackedOp& packed = packed_at(index);
        const Size in = size_of(op.inputs[0]), out = out_size(op);
        Place source = place(op.inputs[0]);
        if (packed.regroup) source = emit_regroup(index);
        float* target = op.groups > 1 ? temporary(index) : nullptr;

        const double taps = static_cast<double>(op.kernel[0]) * op.kernel[1] * op.channels * op.in_channels / op.groups;
        const bool transposed = op.kind == OpKind::binary_conv_transpose;
        const double macs = taps * static_cast<double>(transposed ? in.pixels() : out.pixels());
        plan_->macs_binary[static_cast<size_t>(index)] = macs;
        Stage& s = stage(StageKind::binary, index);
        s.cost = cost_of(macs, 0, elements(op));
        const int out_channels = op.channels / op.groups;
        for (int g = 0; g < op.groups; ++g)
            add_epilogue(s, target ? store_steps(target, g, out_channels, op.channels) : bound_steps(index), out_channels);
        for (const Phase& phase : packed.phases) {
            const Axis rows(op, phase.rows, 0, phase.remainder[0], in.height, out.height);
            const Axis columns(op, phase.columns, 1, phase.remainder[1], in.width, out.width);
            if (rows.output.empty() || columns.output.empty()) continue;
            BinaryConvArgs a{};
            tables_of(a, op, packed, phase, rows, columns, source, out);
            for (int g = 0; g < op.groups; ++g) {
                a.input = encode<uint32_t>(source.buffer, source.offset + int64_t{g} * packed.group_words * 4);
                a.weights = phase.weights[static_cast<size_t>(g)].data();
                a.base = base_vectors(op, phase, g, rows, columns);
                a.out_channels = out_channels;
                a.epilogue = nullptr;  // the context points it at epilogue `part % groups`
                s.binary.push_back(a);
                add_part(s, static_cast<int64_t>(rows.output.size()) * columns.output.size(), block_count(out_channels));
            }
        }
        if (target) emit_elementwise(index, target, op.channels);
    }

    void tables_of(BinaryConvArgs& a, const Op& op, const PackedOp& packed, const Phase& phase, const Axis& rows,
                   const Axis& columns, const Place& source, Size out) {
        std::vector<int32_t> offset, pixel, border, words;
        for (size_t y = 0; y < rows.output.size(); ++y)
            for (size_t x = 0; x < columns.output.size(); ++x) {
                offset.push_back(static_cast<int32_t>((rows.first[y] * source.row_pixels + columns.first[x]) * source.pixel_stride));
                pixel.push_back(rows.output[y] * out.width + columns.output[x]);
                border.push_back(phase.tap_sums[0].size() ? rows.pattern[y] * static_cast<int>(columns.inside.size()) + columns.pattern[x] : 0);
            }
        for (const Tap& row : phase.rows)
            for (const Tap& column : phase.columns)
                for (int w = 0; w < packed.group_words; ++w)
                    words.push_back((row.offset * source.row_pixels + column.offset) * source.pixel_stride + w);
        a.job_offset = table(std::move(offset));
        a.pixel = op.kind == OpKind::binary_conv_transpose ? table(std::move(pixel)) : nullptr;
        a.border_case = table(std::move(border));
        a.words = static_cast<int>(words.size());
        a.word_offset = table(std::move(words));
    }

    // A tap outside the picture reads frame zeros, which count as -1; what it should count as is pad_value (0 for a
    // transposed convolution). The difference is a constant for each channel and set of outside taps.
    const int32_t* base_vectors(const Op& op, const Phase& phase, int group, const Axis& rows, const Axis& columns) {
        const int padded = padded_channels(op.channels / op.groups);
        const Aligned<int32_t>& sums = phase.tap_sums[static_cast<size_t>(group)];
        const int all = static_cast<int>(phase.rows.size() * phase.columns.size()) * (op.in_channels / op.groups);
        const size_t cases = sums.size() ? rows.inside.size() * columns.inside.size() : 1;
        Aligned<int32_t> base(cases * static_cast<size_t>(padded));
        std::fill(base.data(), base.data() + base.size(), all);
        for (size_t r = 0; sums.size() && r < rows.inside.size(); ++r)
            for (size_t c = 0; c < columns.inside.size(); ++c) {
                int32_t* to = base.data() + (r * columns.inside.size() + c) * static_cast<size_t>(padded);
                size_t tap = 0;
                for (int y = 0; y < static_cast<int>(phase.rows.size()); ++y)
                    for (int x = 0; x < static_cast<int>(phase.columns.size()); ++x, ++tap) {
                        if (y >= rows.inside[r].first && y < rows.inside[r].second && x >= columns.inside[c].first &&
                            x < columns.inside[c].second)
                            continue;
                        const int32_t* sum = sums.data() + tap * static_cast<size_t>(padded);
                        for (int o = 0; o < padded; ++o) to[o] += (op.pad_value + 1) * sum[o];
                    }
            }
        plan_->bases.push_back(std::move(base));
        return plan_->bases.back().data();
    }

    // Moves the bits of each group to the start of a word.
    Place emit_regroup(int index) {
        const Op& op = op_at(index);
        const Size size = size_of(op.inputs[0]);
        const Place& from = place(op.inputs[0]);
        Place to;
        to.frame = reach(index);
        to.pixel_stride = op.groups * packed_at(index).group_words;
        to.row_pixels = static_cast<int>(size.width + to.frame.left + to.frame.right);
        to.buffer = framed_buffer(to.frame, size, to.pixel_stride, index, index);
        to.offset = (to.frame.top * to.row_pixels + to.frame.left) * to.pixel_stride * 4;
        Stage& s = stage(StageKind::regroup, index);
        s.regroup = {encode<uint32_t>(from.buffer, from.offset), encode<uint32_t>(to.buffer, to.offset), size.height, size.width,
                     from.row_pixels * from.pixel_stride, to.row_pixels * to.pixel_stride, from.pixel_stride, to.pixel_stride,
                     op.groups, op.in_channels / op.groups};
        s.cost = cost_of(0, 0, static_cast<double>(size.pixels()) * op.in_channels);
        add_part(s, size.height, 1);
        return to;
    }

    void emit_real(int index) {
        const Op& op = op_at(index);
        const PackedOp& packed = packed_at(index);
        const Size in = size_of(op.inputs[0]), out = out_size(op);
        MapRef source = framed_copy(index);
        const int in_channels = op.in_channels / op.groups, out_channels = op.channels / op.groups;
        const double macs = static_cast<double>(op.kernel[0]) * op.kernel[1] * in_channels * op.channels * static_cast<double>(out.pixels());
        plan_->macs_real[static_cast<size_t>(index)] = macs;
        (void)in;

        std::vector<int32_t> offset, runs;
        for (int y = 0; y < out.height; ++y)
            for (int x = 0; x < out.width; ++x)
                offset.push_back((y * op.stride[0] * source.row_pixels + x * op.stride[1]) * source.pixel_stride);
        // neighbouring taps whose channels follow one another in memory are one run
        const bool joined_row = op.groups == 1 && op.dilation[1] == 1 && source.pixel_stride == op.in_channels;
        const bool joined_all = joined_row && op.dilation[0] == 1 && source.row_pixels == op.kernel[1];
        for (int ky = 0; ky < (joined_all ? 1 : op.kernel[0]); ++ky)
            for (int kx = 0; kx < (joined_row ? 1 : op.kernel[1]); ++kx)
                runs.push_back((ky * op.dilation[0] * source.row_pixels + kx * op.dilation[1]) * source.pixel_stride);
        const int run_count = static_cast<int>(runs.size());
        const int terms = op.kernel[0] * op.kernel[1] * in_channels;
        float* target = op.groups > 1 ? temporary(index) : nullptr;
        if (packed.depthwise) {
            Stage& s = stage(StageKind::depthwise, index);
            s.depthwise = {source.data, table(std::move(offset)), table(std::move(runs)), run_count,
                           packed.real[0].data(), op.channels, target};
            s.cost = cost_of(0, macs * 4, elements(op));
            add_part(s, out.pixels(), 1);
        } else {
            Stage& s = stage(StageKind::real, index);
            s.cost = cost_of(0, macs, elements(op));
            RealConvArgs a{};
            a.job_offset = table(std::move(offset));
            a.run_offset = table(std::move(runs));
            a.runs = run_count;
            a.run_length = terms / run_count;
            a.out_channels = out_channels;
            for (int g = 0; g < op.groups; ++g) {
                add_epilogue(s, target ? store_steps(target, g, out_channels, op.channels) : bound_steps(index), out_channels);
                a.input = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(source.data) + static_cast<uintptr_t>(g) * in_channels * 4);
                a.weights = packed.real[static_cast<size_t>(g)].data();
                s.real.push_back(a);
                add_part(s, out.pixels(), block_count(out_channels));
            }
        }
        if (target) emit_elementwise(index, target, op.channels);
    }

    // A convolution with padding reads a copy of its input with zeros around it.
    MapRef framed_copy(int index) {
        const Op& op = op_at(index);
        const int v = op.inputs[0];
        if (!padded(op)) return map(v);
        const Size size = size_of(v);
        const Frame f = {op.padding[0], op.padding[1], op.padding[2], op.padding[3]};
        const bool direct = place(v).framed_for == index;
        const int buffer = framed_buffer(f, size, op.in_channels, direct ? -1 : index, place(v).last > index ? place(v).last : index);
        const int row_pixels = static_cast<int>(size.width + f.left + f.right);
        const int64_t inside = (f.top * row_pixels + f.left) * op.in_channels * 4;
        const MapRef inner = {encode<float>(buffer, inside), op.in_channels, row_pixels};
        if (direct) {
            place(v).buffer = buffer;
            place(v).offset = inside;
            place(v).pixel_stride = op.in_channels;
            place(v).row_pixels = row_pixels;
        } else {
            Stage& s = stage(StageKind::copy, index);
            s.copy = {map(v), inner, size.height, size.width, op.in_channels};
            s.cost = cost_of(0, 0, static_cast<double>(size.pixels()) * op.in_channels);
            add_part(s, size.height, 1);
        }
        return {encode<float>(buffer, 0), op.in_channels, row_pixels};
    }

    void finish_memory() {
        memory_.lay_out();
        plan_->bytes = static_cast<size_t>(memory_.bytes());
        plan_->zeroed = static_cast<size_t>(memory_.zeroed_from());
    }

    void ports() {
        const auto add = [&](const Port& port, std::vector<CopyArgs>& list, bool input) {
            const Size size = size_of(port.value);
            CopyArgs a{};
            MapRef at = map(port.value);
            relocate(at.data);
            (input ? a.to : a.from) = at;
            a.height = size.height;
            a.width = size.width;
            a.channels = port.channels;
            list.push_back(a);
            plan_->cost += cost_of(0, 0, static_cast<double>(size.pixels()) * port.channels * 2);
        };
        for (const Port& port : program_.inputs) add(port, plan_->inputs, true);
        for (const Port& port : program_.outputs) add(port, plan_->outputs, false);
    }

    // Pieces of a stage for several threads: enough of them to share evenly, none too small.
    void split(Stage& s) const {
        if (threads_ < 2 || s.cost < grain_ns_) return;
        int64_t total = 0;
        for (size_t p = 0; p < s.part_jobs.size(); ++p) total += int64_t{s.part_jobs[p]} * s.part_blocks[p];
        const double wanted = std::min(s.cost / std::max(grain_ns_ / 4, 1.0), threads_ * 6.0);
        const int64_t chunk = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(total) / wanted));
        for (int p = 0; p < static_cast<int>(s.part_jobs.size()); ++p) {
            const int jobs = s.part_jobs[static_cast<size_t>(p)];
            int64_t pieces = std::max<int64_t>(1, (jobs + chunk / 2) / chunk);
            int64_t step = (jobs + pieces - 1) / pieces;
            if (step >= 8) step = (step + 7) / 8 * 8;  // whole tiles
            for (int b = 0; b < s.part_blocks[static_cast<size_t>(p)]; ++b)
                for (int64_t begin = 0; begin < jobs; begin += step)
                    s.units.push_back({p, b, static_cast<int>(begin), static_cast<int>(std::min<int64_t>(jobs, begin + step))});
        }
        if (s.units.size() < 2) s.units.clear();
    }

    const Program& program_;
    const std::vector<PackedOp>& packed_;
    const int threads_;
    const double grain_ns_;
    std::unique_ptr<Plan> plan_;
    std::vector<Place> places_;
    std::vector<int> donated_;
    MemoryPlanner memory_;
};

}  // namespace

std::unique_ptr<const Plan> make_plan(const Program& program, const std::vector<PackedOp>& packed,
                                      const std::vector<Size>& inputs, int threads, double grain_ns) {
    return Builder(program, packed, inputs, threads, grain_ns).build();
}

}  // namespace leanconv
