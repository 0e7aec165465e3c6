#include "core/plan.h"

#include <algorithm>

#include "core/error.h"
#include "core/layout.h"

namespace leanconv {

namespace {

// Rough costs of a one-thread AVX-512 run, only to decide what is worth sharing between threads.
constexpr double kBinaryMacsPerNs = 200, kRealMacsPerNs = 25, kInt8MacsPerNs = 100, kElementsPerNs = 4, kWeightBytesPerNs = 40;

double cost_of(double binary, double real, double elements) {
    return binary / kBinaryMacsPerNs + real / kRealMacsPerNs + elements / kElementsPerNs + 100;
}

// The second half of making a plan: each operator as stages of kernel calls on the places that the layout gave.
class Builder : Layout {
public:
    Builder(const Program& program, const std::vector<PackedOp>& packed, const std::vector<Size>& inputs, int threads,
            double grain_ns)
        : Layout(program, packed, inputs, threads), grain_ns_(grain_ns) {}

    std::unique_ptr<const Plan> build() {
        place_values();
        for (size_t i = 0; i < program_.ops.size(); ++i) emit(static_cast<int>(i));
        finish_memory();
        ports();
        for (FillArgs& a : plan_->fills) relocate(a.data);
        announce_weights();
        for (Stage& stage : plan_->stages) {
            relocate(stage);
            split(stage);
            plan_->cost += stage.cost;
        }
        return std::move(plan_);
    }

private:
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
            } else if (spec.kind == StepKind::quantize) {
                s.bytes = address<uint8_t>(spec.value);
                s.bit_offset = bit_offsets(spec.value);
                s.factor = spec.factor;
                s.min = -static_cast<float>(value(spec.value).zero[0]);
                s.max = s.min + 255;
            } else if (spec.value >= 0) {
                real_address(spec.value, s.real, s.bf16);
                s.pixel_stride = size_of(spec.value) == out ? place(spec.value).pixel_stride : 0;
            }
            steps.push_back(s);
        }
        return steps;
    }

    double elements(const Op& op) const { return static_cast<double>(out_size(op).pixels()) * op.channels * (1.0 + op.steps.size() / 2.0); }

    void emit(int index) {
        const Op& op = op_at(index);
        if (idle(op) || scaled_by_previous(index + 1)) return;
        switch (op.kind) {
            case OpKind::binary_conv:
            case OpKind::binary_conv_transpose: emit_binary(index); break;
            case OpKind::conv:
            case OpKind::gated_conv:
            case OpKind::windowed_conv:
            case OpKind::linear:
                emit_real(index);
                if (pools_input(index)) join_pooling(index);
                break;
            case OpKind::int8_conv:
                emit_int8(index);
                if (pools_input(index)) join_pooling(index);
                break;
            case OpKind::adaptive_avg_pool: emit_adaptive(index); break;
            case OpKind::max_pool:
            case OpKind::avg_pool:
            case OpKind::global_avg_pool: emit_pool(index); break;
            case OpKind::elementwise: {
                const int v = op.inputs[0];
                ElementwiseArgs a{nullptr, place(v).pixel_stride, op.channels, nullptr};
                real_address(v, a.input, a.bf16);
                emit_elementwise(index, a);
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

    // The address of a real map, in the one of two pointers that its type asks for.
    template <class Float, class Half>
    void real_address(int v, Float*& real, Half*& bf16) {
        if (value(v).bf16)
            bf16 = address<Bf16>(v);
        else
            real = address<float>(v);
    }

    void emit_elementwise(int index, const ElementwiseArgs& args) {
        const Op& op = op_at(index);
        Stage& s = stage(StageKind::elementwise, index);
        s.elementwise = args;
        add_epilogue(s, bound_steps(index), op.channels);
        add_part(s, out_size(op).pixels(), 1);
        s.cost = cost_of(0, 0, elements(op));
    }

    void emit_pool(int index) {
        const Op& op = op_at(index);
        const Size in = size_of(op.inputs[0]), out = out_size(op);
        if (place(op.inputs[0]).banded && pools_sums(index - 1)) return emit_pooled_sums(index);
        const bool scaled = scaled_by_previous(index);
        const int source = scaled ? op_at(index - 1).inputs[0] : op.inputs[0];
        const bool banded = place(source).banded;  // then the stage of the convolution pools, too
        Stage& s = banded ? plan_->stages.back() : stage(StageKind::pool, index);
        PoolArgs& a = s.pool;
        a.kind = op.kind == OpKind::max_pool ? PoolKind::max : PoolKind::avg;
        real_address(source, a.input, a.bf16);
        a.pixel_stride = place(source).pixel_stride;
        if (scaled) {
            a.scale = packed_at(index - 1).steps[0].scale.data();
            a.bias = packed_at(index - 1).steps[0].bias.data();
        }
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
            s.band = {address<char>(op.inputs[0]), slot_bytes(index), store, in.height, row_bytes(op.inputs[0]), in.width,
                      band_pool_rows(op)};
        } else {
            add_part(s, out.pixels(), 1);
        }
        s.cost += cost_of(0, 0, elements(op) + static_cast<double>(out.pixels()) * op.channels * a.kernel[0] * a.kernel[1]);
    }

    // The stage of the convolution chooses its sums and then does what both operators do with them.
    void emit_pooled_sums(int index) {
        const Op& op = op_at(index);
        const Size in = size_of(op.inputs[0]), out = out_size(op);
        Stage& s = plan_->stages.back();
        s.kind = StageKind::pooled_sums;
        std::vector<Step>& steps = s.steps[0];
        std::vector<int32_t> flip(static_cast<size_t>(padded_channels(op.channels)), 0);
        if (steps[0].kind == StepKind::affine && steps[0].scale)
            for (size_t c = 0; c < flip.size(); ++c) flip[c] = steps[0].scale[c] < 0 ? -1 : 0;
        steps.pop_back();  // the store
        for (const Step& step : bound_steps(index)) steps.push_back(step);
        s.epilogues[0].count = static_cast<int>(steps.size());
        s.int8_pool.height = in.height;
        s.int8_pool.width = in.width;
        s.int8_pool.flip = table(std::move(flip));
        s.band.band = address<char>(op.inputs[0]);
        s.band.slot_bytes = slot_bytes(index);
        s.part_jobs = {out.height};
        s.cost += cost_of(0, 0, elements(op));
    }

    // The stage of a convolution and the one before it, which pools its input, become one.
    void join_pooling(int index) {
        const int v = op_at(index).inputs[0];
        Stage conv = std::move(plan_->stages.back());
        plan_->stages.pop_back();
        Stage& s = plan_->stages.back();
        conv.kind = StageKind::pooled_input;
        conv.pool = s.pool;
        conv.epilogues.push_back(s.epilogues[0]);
        conv.steps.push_back(std::move(s.steps[0]));
        const auto writes_it = [&](const Step& step) { return value(v).bytes ? step.bytes == address<uint8_t>(v) : step.real == address<float>(v); };
        const auto output = std::find_if(conv.steps[1].begin(), conv.steps[1].end(), writes_it);
        conv.pooled_input = {address<char>(v), pooled_input_bytes(v), static_cast<int>(output - conv.steps[1].begin()), pixel_bytes(v), pooled_pixels(v)};
        conv.part_blocks = {1};
        conv.cost += s.cost;
        s = std::move(conv);
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
                starts_of(a, op, phase, g, rows, columns);
                a.out_channels = out_channels;
                a.epilogue = nullptr;  // the context points it at epilogue `part % groups`
                s.binary.push_back(a);
                add_part(s, static_cast<int64_t>(rows.output.size()) * columns.output.size(), block_count(out_channels));
            }
        }
        if (target) emit_elementwise(index, {target, op.channels, op.channels, nullptr});
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
    // transposed convolution). The difference is a constant for each channel and set of outside taps. A sum is base - 2 * ones:
    // counts that start at -base / 2 (an odd base: one more) need no base behind them.
    void starts_of(BinaryConvArgs& a, const Op& op, const Phase& phase, int group, const Axis& rows, const Axis& columns) {
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
        std::vector<float> odd(cases);
        for (size_t c = 0; c < cases; ++c) odd[c] = static_cast<float>(base.data()[c * static_cast<size_t>(padded)] & 1);
        std::for_each(base.data(), base.data() + base.size(), [](int32_t& b) { b = -(b - (b & 1)) / 2; });
        plan_->starts.push_back(std::move(base));
        a.start = plan_->starts.back().data();
        const bool even = std::all_of(odd.begin(), odd.end(), [](float f) { return f == 0; });
        plan_->odd.push_back(std::move(odd));
        a.odd = even ? nullptr : plan_->odd.back().data();
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
        const Size out = out_size(op);
        MapRef source = framed_copy(index);
        const int in_channels = op.group_in, out_channels = op.channels / op.groups;
        const double macs = static_cast<double>(op.kernel[0]) * op.kernel[1] * in_channels * op.channels * static_cast<double>(out.pixels());
        plan_->macs_real[static_cast<size_t>(index)] = macs;
        const std::vector<const float*> weights = weights_of(index);

        std::vector<int32_t> offset, runs;
        for (int y = 0; y < out.height; ++y)
            for (int x = 0; x < out.width; ++x)
                offset.push_back((y * op.stride[0] * source.row_pixels + x * op.stride[1]) * source.pixel_stride);
        // neighbouring taps whose channels follow one another in memory are one run
        const bool joined_row = op.dilation[1] == 1 && source.pixel_stride == in_channels;
        const bool joined_all = joined_row && op.dilation[0] == 1 && source.row_pixels == op.kernel[1];
        for (int ky = 0; ky < (joined_all ? 1 : op.kernel[0]); ++ky)
            for (int kx = 0; kx < (joined_row ? 1 : op.kernel[1]); ++kx)
                runs.push_back((ky * op.dilation[0] * source.row_pixels + kx * op.dilation[1]) * source.pixel_stride);
        const int run_count = static_cast<int>(runs.size());
        const int terms = op.kernel[0] * op.kernel[1] * in_channels;
        float* target = op.groups > 1 && !packed.depthwise ? temporary(index) : nullptr;
        if (packed.depthwise) {
            Stage& s = stage(StageKind::depthwise, index);
            s.depthwise = {source.data, table(std::move(offset)), table(std::move(runs)), run_count,
                           weights[0], op.channels, nullptr};
            add_epilogue(s, bound_steps(index), op.channels);
            s.gated = op.kind == OpKind::gated_conv;
            s.cost = cost_of(0, macs, elements(op));
            add_part(s, out.pixels(), 1);
        } else {
            Stage& s = stage(StageKind::real, index);
            s.cost = std::max(cost_of(0, macs, elements(op)), static_cast<double>(packed.real[0].size()) * op.groups * 4 / kWeightBytesPerNs);
            s.gated = op.kind == OpKind::gated_conv;
            RealConvArgs a{};
            a.job_offset = table(std::move(offset));
            a.run_offset = table(std::move(runs));
            a.runs = run_count;
            a.run_length = terms / run_count;
            a.out_channels = out_channels;
            for (int g = 0; g < op.groups; ++g) {
                add_epilogue(s, target ? store_steps(target, g, out_channels, op.channels) : bound_steps(index), out_channels);
                const int64_t first = int64_t{g} * op.group_shift % op.in_channels;
                a.input = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(source.data) + static_cast<uintptr_t>(first) * 4);
                a.weights = weights[static_cast<size_t>(g)];
                s.real.push_back(a);
                add_part(s, out.pixels(), block_count(out_channels));
            }
        }
        if (target) emit_elementwise(index, {target, op.channels, op.channels, nullptr});
    }

    void emit_int8(int index) {
        const Op& op = op_at(index);
        const PackedOp& packed = packed_at(index);
        const Size out = out_size(op);
        const Place& source = place(op.inputs[0]);
        const double macs = static_cast<double>(op.kernel[0]) * op.kernel[1] * op.in_channels * op.channels * static_cast<double>(out.pixels());
        plan_->macs_real[static_cast<size_t>(index)] = macs;
        std::vector<int32_t> offset, groups;
        const int64_t top = source.frame.top - op.padding[0], left = source.frame.left - op.padding[1];
        for (int y = 0; y < out.height; ++y)
            for (int x = 0; x < out.width; ++x)
                offset.push_back(static_cast<int32_t>(((y * op.stride[0] + top) * source.row_pixels + x * op.stride[1] + left) * source.pixel_stride));
        for (int ky = 0; ky < op.kernel[0]; ++ky)
            for (int run = 0; run < int8_row_runs(op); ++run)
                for (int g = 0; g < int8_run_groups(op); ++g)
                    groups.push_back((ky * op.dilation[0] * source.row_pixels + run * op.dilation[1]) * source.pixel_stride + 4 * g);
        Stage& s = stage(StageKind::int8, index);
        s.cost = std::max(cost_of(0, macs * (kRealMacsPerNs / kInt8MacsPerNs), elements(op)), static_cast<double>(packed.int8.size()) / kWeightBytesPerNs);
        add_epilogue(s, bound_steps(index), op.channels);
        Int8ConvArgs a{};
        a.input = encode<uint8_t>(source.buffer, 0);
        a.job_offset = table(std::move(offset));
        a.groups = static_cast<int>(groups.size());
        a.group_offset = table(std::move(groups));
        a.weights = packed.int8.data();
        a.base = packed.int8_base.data();
        a.out_channels = op.channels;
        s.int8.push_back(a);
        add_part(s, out.pixels(), block_count(op.channels));
    }

    // The packed weights of each group; of a gated convolution, a copy that a stage of its own fills in every run.
    std::vector<const float*> weights_of(int index) {
        const Op& op = op_at(index);
        const PackedOp& packed = packed_at(index);
        std::vector<const float*> weights;
        for (const Aligned<float>& group : packed.real) weights.push_back(group.data());
        if (op.kind != OpKind::gated_conv) return weights;
        const MapRef gains = map(op.inputs[1]);
        const bool one = size_of(op.inputs[1]) == Size{1, 1};
        const int out = packed.depthwise ? op.channels : op.channels / op.groups;
        Stage& s = stage(StageKind::gains, index);
        for (size_t g = 0; g < weights.size(); ++g) {
            const int64_t first = op.gain == GainKind::output ? int64_t(g) * out
                                  : op.gain == GainKind::input ? int64_t(g) * op.group_in
                                  : op.gain == GainKind::weight ? int64_t(g) * out * op.group_in : 0;
            float* scaled = encode<float>(memory_.buffer(static_cast<int64_t>(packed.real[g].size()) * 4, index, index), 0);
            const float* from = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(gains.data) + static_cast<uintptr_t>(first) * 4);
            s.gains.push_back({weights[g], scaled, from, op.gain, one ? 0 : gains.pixel_stride, one ? 0 : gains.row_pixels,
                               op.kernel[0] * op.kernel[1], op.kernel[1], op.group_in, out, packed.depthwise});
            add_part(s, int64_t{op.kernel[0]} * op.kernel[1], packed.depthwise ? 1 : block_count(out));
            s.cost += cost_of(0, 0, static_cast<double>(packed.real[g].size()));
            weights[g] = scaled;
        }
        return weights;
    }

    void emit_adaptive(int index) {
        const Op& op = op_at(index);
        const Size in = size_of(op.inputs[0]), out = out_size(op);
        float* target = temporary(index);
        Stage& s = stage(StageKind::adaptive_pool, index);
        s.adaptive = {map(op.inputs[0]), in.height, in.width, op.channels, out.height, out.width, target};
        s.cost = cost_of(0, 0, static_cast<double>(in.pixels()) * op.channels);
        add_part(s, out.pixels(), 1);
        emit_elementwise(index, {target, op.channels, op.channels, nullptr});
    }

    // A convolution with padding reads a copy of its input with zeros around it; one whose windows wrap around reads a
    // copy in which each pixel's first channels follow its last one.
    MapRef framed_copy(int index) {
        const Op& op = op_at(index);
        const int v = op.inputs[0];
        const int wrapped = op.wrapped_channels(), pixel = op.in_channels + wrapped;
        if (!padded(op) && !wrapped) return map(v);
        const Size size = size_of(v);
        const Frame f = {op.padding[0], op.padding[1], op.padding[2], op.padding[3]};
        const bool direct = place(v).framed_for == index;
        const int buffer = framed_buffer(f, size, pixel, direct ? -1 : index, place(v).last > index ? place(v).last : index);
        const int row_pixels = static_cast<int>(size.width + f.left + f.right);
        const int64_t inside = (f.top * row_pixels + f.left) * pixel * 4;
        const MapRef inner = {encode<float>(buffer, inside), pixel, row_pixels};
        if (direct) {
            place(v).buffer = buffer;
            place(v).offset = inside;
            place(v).pixel_stride = pixel;
            place(v).row_pixels = row_pixels;
        } else {
            const MapRef tail = {encode<float>(buffer, inside + int64_t{op.in_channels} * 4), pixel, row_pixels};
            copy_channels(index, inner, op.in_channels);
            if (wrapped) copy_channels(index, tail, wrapped);
        }
        return {encode<float>(buffer, 0), pixel, row_pixels};
    }

    // The first `channels` of an operator's input.
    void copy_channels(int index, const MapRef& to, int channels) {
        const int v = op_at(index).inputs[0];
        const Size size = size_of(v);
        Stage& s = stage(StageKind::copy, index);
        s.copy = {map(v), to, size.height, size.width, channels};
        s.cost = cost_of(0, 0, static_cast<double>(size.pixels()) * channels);
        add_part(s, size.height, 1);
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
            if (value(port.value).bytes) {
                a.bytes = reinterpret_cast<uint8_t*>(at.data);
                at.data = nullptr;
                relocate(a.bytes);
            }
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

    // Tells each binary layer the weights of the layer behind it.
    void announce_weights() {
        constexpr int64_t kMost = 320 * 1024;  // more would crowd out what the layer itself reads
        const char* weights = nullptr;
        int64_t bytes = 0;
        for (auto s = plan_->stages.rbegin(); s != plan_->stages.rend(); ++s) {
            const PackedOp& packed = packed_at(s->op);
            if (s->kind == StageKind::binary) {
                s->binary.back().upcoming = weights;
                s->binary.back().upcoming_bytes = std::min(bytes, kMost);
                const Aligned<uint32_t>& first = packed.phases.front().weights.front();
                weights = reinterpret_cast<const char*>(first.data()), bytes = static_cast<int64_t>(first.size()) * 4;
            } else if (!s->int8.empty() && (s->kind == StageKind::int8 || s->kind == StageKind::pooled_input)) {
                weights = reinterpret_cast<const char*>(packed.int8.data()), bytes = static_cast<int64_t>(packed.int8.size());
            } else if ((s->kind == StageKind::real && !s->gated) || s->kind == StageKind::pooled_input) {
                weights = reinterpret_cast<const char*>(packed.real.front().data());
                bytes = static_cast<int64_t>(packed.real.front().size()) * 4;
            }
        }
    }

    // Pieces of a stage for several threads: enough of them to share evenly, none too small. The pool gives each thread a
    // range of them, in this order. Where a map is large, that is a range of pixels with all of their channels: the same
    // pixels in each stage, so that a thread finds in its own cache what it wrote there. Where it is small, it is a range of
    // channel blocks, each with its own weights.
    void split(Stage& s) const {
        constexpr int64_t kManyJobs = 64, kTile = 4;
        if (threads_ < 2 || s.cost < grain_ns_) return;
        if (s.kind == StageKind::pooled_input) return split_pixels(s);
        int64_t total = 0;
        for (size_t p = 0; p < s.part_jobs.size(); ++p) total += int64_t{s.part_jobs[p]} * s.part_blocks[p];
        // the rows that two bands share are computed twice, so bands get fewer, larger units
        const bool pooled = s.kind == StageKind::pooled || s.kind == StageKind::pooled_sums;
        const double wanted = std::min(s.cost / std::max(grain_ns_ / 4, 1.0), threads_ * (pooled ? 2.0 : 6.0));
        const int64_t chunk = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(total) / wanted));
        for (int p = 0; p < static_cast<int>(s.part_jobs.size()); ++p) {
            const int64_t jobs = s.part_jobs[static_cast<size_t>(p)];
            const int blocks = s.part_blocks[static_cast<size_t>(p)];
            const bool by_pixels = jobs >= kManyJobs * threads_ && wanted >= static_cast<double>(threads_) * blocks;
            const int64_t ranges = by_pixels ? threads_ : 1;
            const auto border = [&](int64_t range) { return range == ranges ? jobs : jobs * range / ranges / kTile * kTile; };
            for (int64_t range = 0; range < ranges; ++range) {
                const int64_t first = border(range), last = border(range + 1);
                const int64_t pieces = std::max<int64_t>(1, (last - first + chunk / 2) / chunk);
                int64_t step = (last - first + pieces - 1) / pieces;
                if (step >= 8 && !pooled) step = (step + 7) / 8 * 8;  // whole tiles
                for (int b = 0; b < blocks; ++b)
                    for (int64_t begin = first; begin < last; begin += step)
                        s.units.push_back({p, b, static_cast<int>(begin), static_cast<int>(std::min(last, begin + step))});
            }
        }
        if (s.units.size() < 2) s.units.clear();
    }

    // Ranges of pixels with all of their channels, each of which reads all weights: whole tiles, several of them where there
    // are enough for all threads.
    void split_pixels(Stage& s) const {
        constexpr int64_t kTile = 4;
        const int64_t pixels = s.part_jobs[0];
        const int64_t most = std::min<int64_t>(std::max<int64_t>(1, pixels / kTile), static_cast<int64_t>(s.cost / std::max(grain_ns_ / 4, 1.0)));
        const int64_t pieces = std::min(most, std::max<int64_t>(threads_, std::min<int64_t>(threads_ * 4, pixels / kWholeTiles)));
        if (pieces < 2) return;
        const auto border = [&](int64_t piece) { return static_cast<int>(piece == pieces ? pixels : pixels * piece / pieces / kTile * kTile); };
        for (int64_t piece = 0; piece < pieces; ++piece) s.units.push_back({0, 0, border(piece), border(piece + 1)});
    }

    const double grain_ns_;
};

}  // namespace

std::unique_ptr<const Plan> make_plan(const Program& program, const std::vector<PackedOp>& packed,
                                      const std::vector<Size>& inputs, int threads, double grain_ns) {
    return Builder(program, packed, inputs, threads, grain_ns).build();
}

}  // namespace leanconv
