#include "core/program.h"

#include <cmath>
#include <initializer_list>
#include <limits>
#include <string_view>

#include "core/error.h"
#include "core/json.h"

namespace leanconv {

namespace {

constexpr int kMaxChannels = 1 << 20;
constexpr int kMaxItems = 1 << 20;    // operators, values
constexpr int kMaxWindow = 1 << 10;   // kernel, stride, dilation
constexpr int kMaxPadding = 1 << 12;
constexpr int kMaxSide = 1 << 16;
constexpr int kMaxTransposedStride = 64;
constexpr int64_t kMaxParts = 1 << 20;  // groups times phases of a transposed convolution

constexpr const char* kOpNames[] = {"binary_conv", "binary_conv_transpose", "conv", "linear", "max_pool",
                                    "avg_pool", "global_avg_pool", "elementwise", "concat", "flatten",
                                    "gated_conv", "windowed_conv", "adaptive_avg_pool", "int8_conv"};
constexpr const char* kGainNames[] = {"output", "input", "tap", "weight"};
constexpr const char* kStepNames[] = {"affine", "add", "mul", "clip", "prelu", "sigmoid",
                                      "silu", "hard_sigmoid", "hard_swish", "store", "sign", "quantize"};

template <class Kind, size_t N>
Kind kind_of(const std::string& name, const char* const (&names)[N], const std::string& where) {
    for (size_t i = 0; i < N; ++i)
        if (name == names[i]) return static_cast<Kind>(i);
    fail("damaged program: ", where, " has the unknown kind '", name, "'");
}

// An object of the program with exactly the fields that the format names.
class Fields {
public:
    Fields(const Json& json, std::string where, std::initializer_list<const char*> names) : json_(json), where_(std::move(where)) {
        if (!json.is(Json::Type::object)) stop("is not an object");
        for (const char* name : names) get(name);
        for (const auto& [key, value] : json.members) {
            bool known = false;
            for (const char* name : names) known = known || key == name;
            if (!known) stop("has the unknown field '", key, "'");
        }
    }

    template <class... Parts>
    [[noreturn]] void stop(const Parts&... parts) const {
        fail("damaged program: ", where_, " ", parts...);
    }

    const Json& get(const char* name) const {
        const Json* value = json_.find(name);
        if (!value) stop("lacks '", name, "'");
        return *value;
    }

    bool null(const char* name) const { return get(name).is(Json::Type::null); }

    const std::string& string(const char* name) const {
        const Json& value = get(name);
        if (!value.is(Json::Type::string)) stop("has a '", name, "' that is not a text");
        return value.string;
    }

    bool boolean(const char* name) const {
        const Json& value = get(name);
        if (!value.is(Json::Type::boolean)) stop("has a '", name, "' that is not true or false");
        return value.boolean;
    }

    const std::vector<Json>& array(const char* name, int max = kMaxItems) const {
        const Json& value = get(name);
        if (!value.is(Json::Type::array) || value.items.size() > static_cast<size_t>(max))
            stop("has a '", name, "' that is not a list of at most ", max);
        return value.items;
    }

    int integer(const Json& value, const char* name, int min, int max) const {
        if (!value.is(Json::Type::number) || !value.integer || value.number < min || value.number > max)
            stop("has a '", name, "' that is not a whole number from ", min, " to ", max);
        return static_cast<int>(value.number);
    }
    int integer(const char* name, int min, int max) const { return integer(get(name), name, min, max); }
    int integer_or_null(const char* name, int min, int max, int otherwise) const {
        return null(name) ? otherwise : integer(name, min, max);
    }

    void integers(const char* name, int* out, int count, int min, int max) const {
        const auto& items = array(name);
        if (items.size() != static_cast<size_t>(count)) stop("has a '", name, "' of ", items.size(), " numbers instead of ", count);
        for (int i = 0; i < count; ++i) out[i] = integer(items[static_cast<size_t>(i)], name, min, max);
    }

    float number_or_null(const char* name, float otherwise) const {
        const Json& value = get(name);
        if (value.is(Json::Type::null)) return otherwise;
        if (!value.is(Json::Type::number) || std::fabs(value.number) > std::numeric_limits<float>::max())
            stop("has a '", name, "' that is not a number");
        return static_cast<float>(value.number);
    }

private:
    const Json& json_;
    std::string where_;
};

class Reader {
public:
    explicit Reader(Container file) { p_.file = std::move(file); }

    Program read() {
        Json json;
        try {
            json = parse_json(p_.file.program);
        } catch (const Error& error) {
            fail("damaged program: ", error.what());
        }
        const Fields f(json, "the program", {"inputs", "outputs", "values", "ops", "preprocessing", "classes", "provenance"});
        values(f);
        inputs(f);
        const auto& ops = f.array("ops");
        p_.ops.reserve(ops.size());
        for (const Json& op : ops) operation(op);
        outputs(f);
        for (size_t v = 0; v < p_.values.size(); ++v)
            if (!written_[v]) fail("damaged program: value ", v, " is never written");
        preprocessing(f);
        if (!f.null("classes"))
            for (const Json& name : f.array("classes"))
                if (!name.is(Json::Type::string)) f.stop("has 'classes' that are not texts");
        if (!f.get("provenance").is(Json::Type::object)) f.stop("has a 'provenance' that is not an object");
        return std::move(p_);
    }

private:
    void values(const Fields& f) {
        for (const Json& item : f.array("values")) {
            const std::string where = text("value ", p_.values.size());
            const Json* kind = item.find("type");
            const bool bytes = kind && kind->is(Json::Type::string) && kind->string == "bytes";
            const Fields v = bytes ? Fields(item, where, {"type", "channels", "zero"}) : Fields(item, where, {"type", "channels"});
            const std::string& type = v.string("type");
            if (type != "real" && type != "bits" && type != "bf16" && !bytes) v.stop("has the unknown type '", type, "'");
            p_.values.push_back({type == "bits", v.integer("channels", 1, kMaxChannels), bytes, type == "bf16"});
            if (bytes) zero_points(v, p_.values.back());
        }
        written_.assign(p_.values.size(), false);
    }

    // One for all channels or one for each.
    static void zero_points(const Fields& f, Value& value) {
        const auto& items = f.array("zero");
        if (items.size() != 1 && items.size() != static_cast<size_t>(value.channels))
            f.stop("has ", items.size(), " zero points for ", value.channels, " channels");
        for (const Json& item : items) value.zero.push_back(static_cast<uint8_t>(f.integer(item, "zero", 0, 255)));
    }

    void inputs(const Fields& f) {
        for (const Json& item : f.array("inputs", 64)) {
            const Fields i(item, text("input ", p_.inputs.size()), {"name", "value", "channels", "height", "width", "dims"});
            Port port;
            port.name = i.string("name");
            port.value = value_number(i, "value");
            port.channels = i.integer("channels", 1, kMaxChannels);
            port.height = i.integer_or_null("height", 1, kMaxSide, 0);
            port.width = i.integer_or_null("width", 1, kMaxSide, 0);
            port.dims = i.integer("dims", 2, 4);
            const Value& v = p_.values[static_cast<size_t>(port.value)];
            if (v.bits || v.bf16 || v.channels != port.channels || (v.bytes && port.dims != 4)) i.stop("does not fit its value");
            for (const Port& other : p_.inputs)
                if (other.name == port.name) i.stop("has the name of another input");
            // what a shape does not say is 1
            if ((port.dims < 4 && port.height > 1) || (port.dims < 3 && port.width > 1)) i.stop("has more size than dimensions");
            if (port.dims < 4) port.height = 1;
            if (port.dims < 3) port.width = 1;
            write(i, port.value);
            p_.inputs.push_back(std::move(port));
        }
        if (p_.inputs.empty()) f.stop("has no inputs");
    }

    void outputs(const Fields& f) {
        for (const Json& item : f.array("outputs", 1 << 16)) {
            const Fields o(item, text("output ", p_.outputs.size()), {"name", "value", "dims"});
            Port port;
            port.name = o.string("name");
            port.value = value_number(o, "value");
            port.dims = o.integer("dims", 2, 4);
            port.channels = p_.values[static_cast<size_t>(port.value)].channels;
            const Value& v = p_.values[static_cast<size_t>(port.value)];
            if (v.bits || v.bytes || v.bf16) o.stop("is a map of ", v.bits ? "signs" : v.bytes ? "bytes" : "bf16", "; only real maps can be outputs");
            if (!written_[static_cast<size_t>(port.value)]) o.stop("is never written");
            for (const Port& other : p_.outputs)
                if (other.name == port.name) o.stop("has the name of another output");
            p_.outputs.push_back(std::move(port));
        }
        if (p_.outputs.empty()) f.stop("has no outputs");
    }

    int value_number(const Fields& f, const Json& json, const char* name) const {
        return f.integer(json, name, 0, static_cast<int>(p_.values.size()) - 1);
    }
    int value_number(const Fields& f, const char* name) const { return value_number(f, f.get(name), name); }

    void write(const Fields& f, int value) {
        if (written_[static_cast<size_t>(value)]) f.stop("writes value ", value, ", which is written already");
        written_[static_cast<size_t>(value)] = true;
    }

    const Value& read_value(const Fields& f, int value) const {
        if (!written_[static_cast<size_t>(value)]) f.stop("reads value ", value, " before it is written");
        return p_.values[static_cast<size_t>(value)];
    }

    const Tensor* tensor(const Fields& f, const std::string& name, DType dtype, const std::vector<int64_t>& shape) const {
        const auto found = p_.file.tensors.find(name);
        if (found == p_.file.tensors.end()) f.stop("names the tensor '", name, "', which is not in the file");
        if (found->second.dtype != dtype || found->second.shape != shape)
            f.stop("needs another type or shape of the tensor '", name, "'");
        return &found->second;
    }

    const Tensor* channel_tensor(const Fields& f, const char* name, int channels) const {
        return f.null(name) ? nullptr : tensor(f, f.string(name), DType::f32, {channels});
    }

    void operation(const Json& json) {
        Op op;
        const Fields f(json, operation_name(json),
                       {"kind", "name", "inputs", "output", "attrs", "tensors", "steps", "parameters_real"});
        op.name = f.string("name");
        op.kind = kind_of<OpKind>(f.string("kind"), kOpNames, operation_name(json));
        f.integer("parameters_real", 0, std::numeric_limits<int>::max());
        const bool joins = op.kind == OpKind::concat;
        const bool direct = joins || op.kind == OpKind::flatten;  // writes `output` instead of running steps
        const bool binary = op.kind == OpKind::binary_conv || op.kind == OpKind::binary_conv_transpose;
        for (const Json& item : f.array("inputs", 4096)) {
            op.inputs.push_back(value_number(f, item, "inputs"));
            const Value& v = read_value(f, op.inputs.back());
            const bool bytes = op.kind == OpKind::int8_conv;
            if (v.bf16 && !op.reads_bf16()) f.stop("cannot read value ", op.inputs.back(), ", which is stored in bf16");
            if (v.bits != binary || v.bytes != bytes) f.stop("takes ", binary ? "bits" : bytes ? "bytes" : "real maps", " only");
        }
        const size_t inputs = op.kind == OpKind::gated_conv ? 2 : 1;
        if (op.inputs.empty() || (!joins && op.inputs.size() != inputs)) f.stop("has ", op.inputs.size(), " inputs");
        op.in_channels = p_.values[static_cast<size_t>(op.inputs[0])].channels;
        op.channels = op.in_channels;

        const Json& attrs = f.get("attrs");
        const std::string attrs_of = operation_name(json) + ", attrs";
        switch (op.kind) {
            case OpKind::binary_conv:
                convolution(op, Fields(attrs, attrs_of, {"in_channels", "out_channels", "kernel", "stride", "padding",
                                                         "pad_value", "dilation", "groups"}));
                break;
            case OpKind::binary_conv_transpose:
                convolution(op, Fields(attrs, attrs_of, {"in_channels", "out_channels", "kernel", "stride", "padding",
                                                         "output_padding", "dilation", "groups"}));
                break;
            case OpKind::int8_conv:
                convolution(op, Fields(attrs, attrs_of, {"in_channels", "out_channels", "kernel", "stride", "padding", "dilation"}));
                break;
            case OpKind::conv:
                convolution(op, Fields(attrs, attrs_of, {"in_channels", "out_channels", "kernel", "stride", "padding",
                                                         "dilation", "groups"}));
                break;
            case OpKind::gated_conv: {
                const Fields a(attrs, attrs_of, {"in_channels", "out_channels", "kernel", "stride", "padding", "dilation",
                                                 "groups", "gain"});
                convolution(op, a);
                op.gain = kind_of<GainKind>(a.string("gain"), kGainNames, attrs_of);
                const int64_t needed = gains_of(op);
                if (p_.values[static_cast<size_t>(op.inputs[1])].channels != needed) a.stop("need a map of ", needed, " gains");
                break;
            }
            case OpKind::windowed_conv:
                convolution(op, Fields(attrs, attrs_of, {"in_channels", "out_channels", "kernel", "stride", "padding",
                                                         "dilation", "groups", "window", "shift"}));
                break;
            case OpKind::adaptive_avg_pool: {
                const Fields a(attrs, attrs_of, {"height", "width"});
                op.height = a.integer("height", 1, kMaxWindow);
                op.width = a.integer("width", 1, kMaxWindow);
                break;
            }
            case OpKind::linear: {
                const Fields a(attrs, attrs_of, {"in_channels", "out_channels"});
                channel_counts(op, a);
                op.group_in = op.in_channels;
                break;
            }
            case OpKind::max_pool:
                pool(op, Fields(attrs, attrs_of, {"kernel", "stride", "padding", "dilation", "ceil_mode"}));
                break;
            case OpKind::avg_pool:
                pool(op, Fields(attrs, attrs_of, {"kernel", "stride", "padding", "ceil_mode", "count_include_pad"}));
                break;
            case OpKind::flatten: {
                const Fields a(attrs, attrs_of, {"height", "width"});
                op.height = a.integer("height", 1, kMaxSide);
                op.width = a.integer("width", 1, kMaxSide);
                const int64_t total = int64_t{op.channels} * op.height * op.width;
                if (total > kMaxChannels) a.stop("make a vector of ", total, " numbers; at most ", kMaxChannels, " are possible");
                op.channels = static_cast<int>(total);
                break;
            }
            case OpKind::concat: {
                const Fields a(attrs, attrs_of, {});
                int64_t total = 0;
                for (int v : op.inputs) total += p_.values[static_cast<size_t>(v)].channels;
                if (total > kMaxChannels) a.stop("join ", total, " channels; at most ", kMaxChannels, " are possible");
                op.channels = static_cast<int>(total);
                break;
            }
            case OpKind::global_avg_pool:
            case OpKind::elementwise: Fields(attrs, attrs_of, {}); break;
        }
        weights(op, f);

        if (direct) {
            if (f.null("output")) f.stop("has no output");
            op.output = value_number(f, "output");
            const Value& out = p_.values[static_cast<size_t>(op.output)];
            if (out.bits || out.bytes || out.bf16 || out.channels != op.channels) f.stop("makes ", op.channels, " real channels, its output says otherwise");
            write(f, op.output);
            if (!f.array("steps").empty()) f.stop("cannot have steps");
        } else {
            if (!f.null("output")) f.stop("writes through its steps and cannot have an output");
            for (const Json& item : f.array("steps", 256)) step(op, f, item);
        }
        p_.ops.push_back(std::move(op));
    }

    std::string operation_name(const Json& json) const {
        const Json* name = json.find("name");
        return text("operator ", p_.ops.size(), name && name->is(Json::Type::string) ? " (" + printable(name->string) + ")" : "");
    }

    // A name as part of a one-line message.
    static std::string printable(std::string name) {
        if (name.size() > 80) name = name.substr(0, 77) + "...";
        for (char& c : name)
            if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
        return name;
    }

    static int64_t gains_of(const Op& op) {
        switch (op.gain) {
            case GainKind::output: return op.channels;
            case GainKind::input: return op.in_channels;
            case GainKind::tap: return 1;
            default: return int64_t{op.channels} * op.group_in;
        }
    }

    static void channel_counts(Op& op, const Fields& a) {
        if (a.integer("in_channels", 1, kMaxChannels) != op.in_channels)
            a.stop("say ", a.integer("in_channels", 1, kMaxChannels), " input channels, the input has ", op.in_channels);
        op.channels = a.integer("out_channels", 1, kMaxChannels);
    }

    static void window(Op& op, const Fields& a) {
        a.integers("kernel", op.kernel, 2, 1, kMaxWindow);
        a.integers("stride", op.stride, 2, 1, kMaxWindow);
    }

    static void symmetric_padding(Op& op, const Fields& a) {
        a.integers("padding", op.padding, 2, 0, kMaxPadding);
        op.padding[2] = op.padding[0];
        op.padding[3] = op.padding[1];
    }

    static void convolution(Op& op, const Fields& a) {
        channel_counts(op, a);
        window(op, a);
        a.integers("dilation", op.dilation, 2, 1, kMaxWindow);
        op.groups = op.kind == OpKind::int8_conv ? 1 : a.integer("groups", 1, kMaxChannels);
        const bool windowed = op.kind == OpKind::windowed_conv;
        if ((!windowed && op.in_channels % op.groups) || op.channels % op.groups)
            a.stop("have channels that the groups do not divide");
        op.group_in = windowed ? a.integer("window", 1, op.in_channels) : op.in_channels / op.groups;
        op.group_shift = windowed ? a.integer("shift", 1, kMaxChannels) : op.group_in;
        if (op.kind == OpKind::binary_conv_transpose) {
            symmetric_padding(op, a);
            if (op.stride[0] > kMaxTransposedStride || op.stride[1] > kMaxTransposedStride)
                a.stop("have a stride above ", kMaxTransposedStride);
            if (int64_t{op.groups} * op.stride[0] * op.stride[1] > kMaxParts) a.stop("have too many groups for this stride");
            a.integers("output_padding", op.output_padding, 2, 0, kMaxWindow);
            for (int i = 0; i < 2; ++i)
                if (op.output_padding[i] >= op.stride[i] && op.output_padding[i] >= op.dilation[i])
                    a.stop("have an output_padding that is not below stride or dilation");
        } else {
            a.integers("padding", op.padding, 4, 0, kMaxPadding);
        }
        if (op.kind == OpKind::binary_conv) op.pad_value = a.integer("pad_value", -1, 1);
    }

    static void pool(Op& op, const Fields& a) {
        window(op, a);
        symmetric_padding(op, a);
        if (op.kind == OpKind::max_pool) a.integers("dilation", op.dilation, 2, 1, kMaxWindow);
        for (int i = 0; i < 2; ++i)
            if (op.padding[i] * 2 > op.kernel[i]) a.stop("have a padding above half of the kernel");
        op.ceil_mode = a.boolean("ceil_mode");
        if (op.kind == OpKind::avg_pool) op.count_include_pad = a.boolean("count_include_pad");
    }

    void weights(Op& op, const Fields& f) const {
        const Json& tensors = f.get("tensors");
        const std::string where = text("operator ", p_.ops.size(), ", tensors");
        const bool binary = op.kind == OpKind::binary_conv || op.kind == OpKind::binary_conv_transpose;
        const bool int8 = op.kind == OpKind::int8_conv;
        if (!binary && !int8 && !op.real_conv() && op.kind != OpKind::linear) {
            Fields(tensors, where, {});
            return;
        }
        const Fields t(tensors, where, {"weight"});
        const int in = op.group_in;
        if (op.kind == OpKind::linear)
            op.weight = tensor(t, t.string("weight"), DType::f32, {op.channels, in});
        else
            op.weight = tensor(t, t.string("weight"), binary ? DType::u8 : int8 ? DType::i8 : DType::f32,
                               {op.channels, op.kernel[0], op.kernel[1], binary ? (in + 7) / 8 : in});
        if (binary && in % 8) {
            const int bytes = (in + 7) / 8;
            for (int64_t i = bytes - 1; i < op.weight->size; i += bytes)
                if (op.weight->data[i] >> (in % 8)) t.stop("have filters with bits beyond the last channel");
        }
        // sums stay exact: in float32, for binary ones with what they count outside the picture; of bytes times int8, in int32
        const int most = binary ? 1 << 22 : int8 ? 1 << 16 : 1 << 24;
        if (int64_t{in} * op.kernel[0] * op.kernel[1] > most) t.stop("have filters of more than ", most, " weights");
    }

    void step(Op& op, const Fields& f, const Json& json) {
        const std::string where = text("operator ", p_.ops.size(), ", step ", op.steps.size());
        const Json* kind = json.find("kind");
        if (!kind || !kind->is(Json::Type::string)) f.stop("has a step without a kind");
        StepSpec s;
        s.kind = kind_of<StepKind>(kind->string, kStepNames, where);
        switch (s.kind) {
            case StepKind::affine: {
                const Fields v(json, where, {"kind", "scale", "bias"});
                s.scale = channel_tensor(v, "scale", op.channels);
                s.bias = channel_tensor(v, "bias", op.channels);
                break;
            }
            case StepKind::add:
            case StepKind::mul: {
                const Fields v(json, where, {"kind", "value"});
                s.value = value_number(v, "value");
                const Value& other = read_value(v, s.value);
                if (other.bits || other.bytes || other.channels != op.channels) v.stop("takes a real map of ", op.channels, " channels");
                break;
            }
            case StepKind::clip: {
                const Fields v(json, where, {"kind", "min", "max"});
                s.min = v.number_or_null("min", -std::numeric_limits<float>::infinity());
                s.max = v.number_or_null("max", std::numeric_limits<float>::infinity());
                break;
            }
            case StepKind::prelu: {
                const Fields v(json, where, {"kind", "slope"});
                s.scale = channel_tensor(v, "slope", op.channels);
                if (!s.scale) v.stop("has no slope");
                break;
            }
            case StepKind::store:
            case StepKind::sign: {
                const bool sign = s.kind == StepKind::sign;
                const Fields v = sign ? Fields(json, where, {"kind", "value", "scale", "bias"})
                                      : Fields(json, where, {"kind", "value"});
                s.value = value_number(v, "value");
                const Value& out = p_.values[static_cast<size_t>(s.value)];
                if (out.bits != sign || out.bytes || out.channels != op.channels)
                    v.stop("writes ", op.channels, sign ? " channels of signs" : " real channels", ", value ", s.value,
                           " is declared otherwise");
                if (sign) {
                    s.scale = channel_tensor(v, "scale", op.channels);
                    s.bias = channel_tensor(v, "bias", op.channels);
                }
                write(v, s.value);
                break;
            }
            case StepKind::quantize: {
                const Fields v(json, where, {"kind", "value", "factor"});
                s.value = value_number(v, "value");
                const Value& out = p_.values[static_cast<size_t>(s.value)];
                if (!out.bytes || out.channels != op.channels)
                    v.stop("writes ", op.channels, " channels of bytes, value ", s.value, " is declared otherwise");
                for (uint8_t z : out.zero)
                    if (z != out.zero[0]) v.stop("writes value ", s.value, ", whose channels differ in their zero points");
                s.factor = v.number_or_null("factor", 0);
                if (!(s.factor > 0)) v.stop("has a 'factor' that is not a number above 0");
                write(v, s.value);
                break;
            }
            default: Fields(json, where, {"kind"});
        }
        op.steps.push_back(s);
    }

    void preprocessing(const Fields& f) {
        if (f.null("preprocessing")) return;
        const Json& json = f.get("preprocessing");
        if (!json.is(Json::Type::object)) f.stop("has a 'preprocessing' that is not an object");
        read_channels(f, json, "mean", p_.mean);
        read_channels(f, json, "std", p_.std);
        if (p_.mean.size() != p_.std.size()) f.stop("has a preprocessing whose mean and std differ in length");
        for (float s : p_.std)
            if (!(s > 0)) f.stop("has a preprocessing whose std is not above 0");
    }

    static void read_channels(const Fields& f, const Json& json, const char* name, std::vector<float>& out) {
        const Json* list = json.find(name);
        if (!list || list->is(Json::Type::null)) return;
        if (!list->is(Json::Type::array)) f.stop("has a preprocessing whose ", name, " is not a list");
        for (const Json& item : list->items) {
            if (!item.is(Json::Type::number) || !std::isfinite(static_cast<float>(item.number)))
                f.stop("has a preprocessing whose ", name, " is not made of numbers");
            out.push_back(static_cast<float>(item.number));
        }
    }

    Program p_;
    std::vector<bool> written_;
};

}  // namespace

const char* op_kind_name(OpKind kind) { return kOpNames[static_cast<int>(kind)]; }
const char* step_kind_name(StepKind kind) { return kStepNames[static_cast<int>(kind)]; }

Program parse_program(Container file) { return Reader(std::move(file)).read(); }

}  // namespace leanconv
