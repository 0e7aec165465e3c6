#include "core/sizes.h"

#include "core/error.h"

namespace leanconv {

namespace {

constexpr int64_t kMaxSide = 1 << 20;
constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;  // offsets inside a map are 32-bit

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

int64_t side(const Op& op, int64_t size, int i) {
    const int64_t reach = int64_t{op.dilation[i]} * (op.kernel[i] - 1);
    const int64_t stride = op.stride[i], before = op.padding[i], after = op.padding[i + 2];
    switch (op.kind) {
        case OpKind::binary_conv:
        case OpKind::conv:
        case OpKind::gated_conv:
        case OpKind::windowed_conv:
        case OpKind::int8_conv: return floor_div(size + before + after - reach - 1, stride) + 1;
        case OpKind::binary_conv_transpose: return (size - 1) * stride - 2 * before + reach + op.output_padding[i] + 1;
        case OpKind::max_pool:
        case OpKind::avg_pool: {
            const int64_t rest = size + 2 * before - reach - 1;
            int64_t out = (op.ceil_mode ? ceil_div(rest, stride) : floor_div(rest, stride)) + 1;
            // the last window must start inside the picture or its left border
            if (op.ceil_mode && (out - 1) * stride >= size + before) --out;
            return out;
        }
        case OpKind::adaptive_avg_pool: return i ? op.width : op.height;
        case OpKind::global_avg_pool:
        case OpKind::flatten:
        case OpKind::linear: return 1;
        default: return size;
    }
}

// Op names come from a file: keep a message on one line.
std::string one_line(const std::string& name) {
    std::string out = name.substr(0, 80);
    for (char& c : out)
        if (static_cast<unsigned char>(c) < 0x20) c = '?';
    return out;
}

}  // namespace

std::vector<Size> infer_sizes(const Program& program, const std::vector<Size>& inputs) {
    std::vector<Size> sizes(program.values.size());
    const auto set = [&](int value, int64_t height, int64_t width) {
        const int64_t channels = program.values[static_cast<size_t>(value)].channels;
        if (height > kMaxSide || width > kMaxSide || height * width > kMaxElements / channels)
            fail("the picture is too large: a map of ", channels, " x ", height, " x ", width,
                 " inside the network has more than 2^31 numbers; use a smaller one");
        sizes[static_cast<size_t>(value)] = {static_cast<int>(height), static_cast<int>(width)};
    };
    const auto of = [&](int value) { return sizes[static_cast<size_t>(value)]; };

    for (size_t i = 0; i < inputs.size(); ++i) set(program.inputs[i].value, inputs[i].height, inputs[i].width);
    for (const Op& op : program.ops) {
        const Size in = of(op.inputs[0]);
        const std::string name = one_line(op.name);
        const bool gated = op.kind == OpKind::gated_conv;
        if (gated && of(op.inputs[1]) != Size{op.kernel[0], op.kernel[1]} && of(op.inputs[1]) != Size{1, 1})
            fail(name, ": gains of ", of(op.inputs[1]).height, "x", of(op.inputs[1]).width, " for a kernel of ", op.kernel[0], "x",
                 op.kernel[1]);
        for (int v : op.inputs)
            if (!gated && of(v) != in)
                fail(name, ": maps of ", in.height, "x", in.width, " and ", of(v).height, "x", of(v).width, " cannot be joined");
        if (op.kind == OpKind::linear && in != Size{1, 1})
            fail(name, ": a linear layer needs a 1x1 map, not ", in.height, "x", in.width);
        if (op.kind == OpKind::flatten && in != Size{op.height, op.width})
            fail(name, ": this network was compiled for a ", op.height, "x", op.width, " map here, not ", in.height, "x",
                 in.width, "; use the picture size it was compiled with");
        const int64_t height = side(op, in.height, 0), width = side(op, in.width, 1);
        if (height < 1 || width < 1)
            fail(name, ": an input of ", in.height, "x", in.width, " is too small for this ", op_kind_name(op.kind));
        if (op.output >= 0) set(op.output, height, width);
        if (height > kMaxSide || width > kMaxSide || height * width > kMaxElements / op.channels)
            fail(name, ": the picture is too large; use a smaller one");
        const Size out = {static_cast<int>(height), static_cast<int>(width)};
        for (const StepSpec& step : op.steps) {
            if (step.value < 0) continue;
            if (writes(step.kind))
                set(step.value, height, width);
            else if (of(step.value) != out && of(step.value) != Size{1, 1})
                fail(name, ": cannot ", step_kind_name(step.kind), " a ", of(step.value).height, "x", of(step.value).width,
                     " map to a ", height, "x", width, " map");
        }
    }
    return sizes;
}

}  // namespace leanconv
