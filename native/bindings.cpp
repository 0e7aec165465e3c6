// leanconv._core: the engine for Python. Only conversions; every check is in the core.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <system_error>

#include "core/aw_conv.h"
#include "core/error.h"
#include "core/model.h"
#include "core/peaks.h"
#include "core/threads.h"
#include "kernels/aw_kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using leanconv::Error;

// Bytes of a file (its path is the prefix of messages) or of a bytes object.
struct Source {
    std::vector<uint8_t> bytes;
    std::string prefix;

    explicit Source(nb::handle object) {
        if (nb::isinstance<nb::bytes>(object)) {
            const nb::bytes data = nb::borrow<nb::bytes>(object);
            const auto* begin = static_cast<const uint8_t*>(data.data());
            bytes.assign(begin, begin + data.size());
            return;
        }
        const std::string path = nb::cast<std::string>(object);
        prefix = path + ": ";
        const nb::gil_scoped_release release;
        bytes = leanconv::read_bytes(path);
    }
};

// Runs `body`, with the source's name before what it complains about.
template <class Body>
auto named(const std::string& prefix, Body body) {
    try {
        return body();
    } catch (const Error& error) {
        throw Error(prefix + error.what());
    }
}

nb::object numpy_array(const leanconv::Tensor& t) {
    std::vector<size_t> shape(t.shape.begin(), t.shape.end());
    auto* copy = new uint8_t[static_cast<size_t>(t.size) + 1];
    std::copy(t.data, t.data + t.size, copy);
    nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
    const auto dtype = t.dtype == leanconv::DType::f32  ? nb::dtype<float>()
                       : t.dtype == leanconv::DType::i8 ? nb::dtype<int8_t>()
                                                        : nb::dtype<uint8_t>();
    return nb::cast(nb::ndarray<nb::numpy>(copy, shape.size(), shape.data(), owner, nullptr, dtype));
}

nb::tuple read_packed(nb::object source) {
    Source s(source);
    const leanconv::Program program = named(s.prefix, [&] {
        const nb::gil_scoped_release release;
        return leanconv::parse_program(leanconv::parse_container(std::move(s.bytes)));
    });
    nb::dict tensors;
    for (const auto& [name, tensor] : program.file.tensors) tensors[name.c_str()] = numpy_array(tensor);
    return nb::make_tuple(program.file.program, tensors);
}

nb::dict peaks(double seconds, int threads) {
    if (!(seconds > 0 && seconds < 3600)) throw Error("peaks are measured for more than 0 and less than 3600 seconds");
    if (threads < 1 || threads > leanconv::kMaxThreads) throw Error("peaks are measured on 1 to 1024 threads");
    leanconv::Peaks found;
    {
        const nb::gil_scoped_release release;
        found = leanconv::measure_peaks(seconds, threads);
    }
    nb::list arithmetic, bandwidth;
    for (const leanconv::PeakRate& r : found.rates) {
        nb::dict d;
        d["name"] = r.name;
        d["isa"] = r.isa;
        d["kind"] = r.kind;
        d["gmacs"] = r.gmacs;
        d["macs_per_cycle"] = r.macs_per_cycle;
        arithmetic.append(d);
    }
    for (const leanconv::Bandwidth& b : found.bandwidths) {
        nb::dict d;
        d["level"] = b.level;
        d["bytes"] = b.bytes;
        d["gb_per_s"] = b.gb_per_s;
        bandwidth.append(d);
    }
    nb::dict result;
    result["clock_ghz"] = found.clock_ghz;
    result["threads"] = found.threads;
    result["arithmetic"] = arithmetic;
    result["bandwidth"] = bandwidth;
    return result;
}

class PyModel {
public:
    PyModel(nb::object source, int threads, const std::string& isa, double grain_ns) {
        Source s(source);
        model_ = named(s.prefix, [&] {
            const nb::gil_scoped_release release;
            return std::make_unique<leanconv::Model>(std::move(s.bytes), threads, isa, grain_ns);
        });
    }

    nb::list run(nb::list arrays) const {
        const leanconv::Model::Call call = prepare(arrays);
        nb::list results;
        std::vector<float*> outputs;
        for (const std::vector<int64_t>& dims : call.output_shapes()) {
            std::vector<size_t> shape(dims.begin(), dims.end());
            size_t count = 1;
            for (size_t n : shape) count *= n;
            auto* data = new float[count + 1];
            nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
            results.append(nb::cast(nb::ndarray<nb::numpy, float>(data, shape.size(), shape.data(), owner)));
            outputs.push_back(data);
        }
        const nb::gil_scoped_release release;
        model_->run(call, outputs);
        return results;
    }

    nb::list profile(nb::list arrays, int repeats) const {
        const leanconv::Model::Call call = prepare(arrays);
        std::vector<leanconv::OpProfile> rows;
        {
            const nb::gil_scoped_release release;
            rows = model_->profile(call, repeats);
        }
        nb::list result;
        for (const leanconv::OpProfile& row : rows) {
            nb::dict d;
            d["name"] = row.name;
            d["kind"] = row.kind;
            d["ms"] = row.milliseconds;
            d["macs_binary"] = nb::int_(static_cast<uint64_t>(row.macs_binary));
            d["macs_real"] = nb::int_(static_cast<uint64_t>(row.macs_real));
            result.append(d);
        }
        return result;
    }

    const leanconv::Model& model() const { return *model_; }

private:
    leanconv::Model::Call prepare(nb::list arrays) const {
        std::vector<leanconv::InputArray> inputs;
        for (nb::handle item : arrays) {
            nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig> array;
            if (!nb::try_cast(item, array, false)) throw Error("an input is not a contiguous array in memory");
            leanconv::InputArray in;
            in.is_uint8 = array.dtype() == nb::dtype<uint8_t>();
            if (!in.is_uint8 && array.dtype() != nb::dtype<float>()) throw Error("inputs are float32 or uint8 arrays");
            in.data = array.data();
            for (size_t i = 0; i < array.ndim(); ++i) in.shape.push_back(static_cast<int64_t>(array.shape(i)));
            inputs.push_back(std::move(in));
        }
        return model_->prepare(std::move(inputs));
    }

    std::unique_ptr<leanconv::Model> model_;
};

// AW-convolution: addresses of tensors that the caller keeps alive and has checked, and their sizes.
leanconv::aw::Shape aw_shape(const std::vector<int64_t>& s) {
    if (s.size() != 14) throw Error("AW-convolution: a shape has 14 numbers");
    return {s[0], s[1], s[2], s[3], s[4], s[5], {s[6], s[7]}, {s[8], s[9]}, {s[10], s[11]}, {s[12], s[13]}};
}

leanconv::aw::Weight aw_weight(uintptr_t data, const std::vector<int64_t>& strides) {
    if (strides.size() != 4) throw Error("AW-convolution: a weight has 4 axes");
    return {reinterpret_cast<float*>(data), {strides[0], strides[1], strides[2], strides[3]}};
}

leanconv::aw::Gains aw_gains(uintptr_t data, const std::vector<int64_t>& sizes) {
    if (sizes.size() != 6) throw Error("AW-convolution: a gain has 6 axes");
    return {reinterpret_cast<float*>(data), {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]}};
}

leanconv::aw::Pixels aw_pixels(uintptr_t data, bool bf16) { return {reinterpret_cast<void*>(data), bf16}; }

using Sizes = std::vector<int64_t>;

void aw_correlate(const Sizes& shape, bool transposed, uintptr_t source, bool source_bf16, uintptr_t weight, const Sizes& strides,
                uintptr_t gain, const Sizes& gain_sizes, uintptr_t out, bool out_bf16, int threads, const std::string& isa) {
    const nb::gil_scoped_release release;
    const auto compute = transposed ? leanconv::aw::input_gradient : leanconv::aw::forward;
    compute(aw_shape(shape), aw_pixels(source, source_bf16), aw_weight(weight, strides), aw_gains(gain, gain_sizes),
            aw_pixels(out, out_bf16), {threads, isa});
}

void aw_weight_gradient(const Sizes& shape, uintptr_t x, bool x_bf16, uintptr_t grad_y, bool grad_y_bf16, uintptr_t weight,
                        const Sizes& strides, uintptr_t gain, const Sizes& gain_sizes, uintptr_t grad_weight,
                        const Sizes& grad_strides, uintptr_t grad_gain, int threads, const std::string& isa) {
    const nb::gil_scoped_release release;
    leanconv::aw::weight_gradient(aw_shape(shape), aw_pixels(x, x_bf16), aw_pixels(grad_y, grad_y_bf16),
                                  aw_weight(weight, strides), aw_gains(gain, gain_sizes), aw_weight(grad_weight, grad_strides),
                                  aw_gains(grad_gain, gain_sizes), {threads, isa});
}

leanconv::aw::Norm aw_norm(const std::vector<uintptr_t>& data, double eps) {
    if (data.empty()) return {};
    if (data.size() != 4) throw Error("attention: a norm is mean, variance, weight and bias");
    const auto at = [&](int i) { return reinterpret_cast<const float*>(data[static_cast<size_t>(i)]); };
    return {at(0), at(1), at(2), at(3), eps};
}

// sizes: samples, height, width, channels, rows and columns of the averages, hidden, maps.
void aw_attention(const std::vector<int>& sizes, uintptr_t x, uintptr_t first, const std::vector<uintptr_t>& norm1, double eps1,
                  uintptr_t second, const std::vector<uintptr_t>& norm2, double eps2, const std::string& gate, float offset,
                  uintptr_t out, int threads) {
    using leanconv::aw::Gate;
    if (sizes.size() != 8) throw Error("attention: 8 sizes");
    if (gate != "none" && gate != "sigmoid" && gate != "tanh") throw Error("attention: unknown gate " + gate);
    const auto floats = [](uintptr_t p) { return reinterpret_cast<const float*>(p); };
    const leanconv::aw::Attention a = {floats(x), sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7],
                                       floats(first), floats(second), aw_norm(norm1, eps1), aw_norm(norm2, eps2),
                                       gate == "none" ? Gate::none : gate == "tanh" ? Gate::tanh : Gate::sigmoid, offset,
                                       reinterpret_cast<float*>(out)};
    const nb::gil_scoped_release release;
    leanconv::aw::attention(sizes[0], a, {threads, ""});
}

}  // namespace

NB_MODULE(_core, m) {
    nb::set_leak_warnings(false);
    nb::register_exception_translator([](const std::exception_ptr& p, void*) {
        try {
            std::rethrow_exception(p);
        } catch (const Error& error) {
            PyErr_SetString(PyExc_ValueError, error.what());
        } catch (const leanconv::FileError& error) {
            errno = error.code().value();
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, error.path.c_str());
        }
    });
    m.def("read", &read_packed, "source"_a);
    m.def("isa_names", &leanconv::isa_names);
    m.def("available_cores", &leanconv::available_cores);
    m.def("aw_isa_names", [] {
        std::vector<std::string> names;
        for (int i = 0; i < leanconv::aw::kBuiltCount; ++i)
            if (leanconv::aw::kBuilt[i]->supported()) names.emplace_back(leanconv::aw::kBuilt[i]->name);
        return names;
    });
    m.def("aw_correlate", &aw_correlate, "shape"_a, "transposed"_a, "source"_a, "source_bf16"_a, "weight"_a, "strides"_a, "gain"_a,
          "gain_sizes"_a, "out"_a, "out_bf16"_a, "threads"_a, "isa"_a = "");
    m.def("aw_weight_gradient", &aw_weight_gradient, "shape"_a, "x"_a, "x_bf16"_a, "grad_y"_a, "grad_y_bf16"_a, "weight"_a,
          "strides"_a, "gain"_a, "gain_sizes"_a, "grad_weight"_a, "grad_strides"_a, "grad_gain"_a, "threads"_a, "isa"_a = "");
    m.def("peaks", &peaks, "seconds"_a = 0.5, "threads"_a = 1);
    m.def("aw_attention", &aw_attention, "sizes"_a, "x"_a, "first"_a, "norm1"_a, "eps1"_a, "second"_a, "norm2"_a, "eps2"_a,
          "gate"_a, "offset"_a, "out"_a, "threads"_a);
    nb::class_<PyModel>(m, "Model")
        .def(nb::init<nb::object, int, const std::string&, double>(), "source"_a, "threads"_a = 0, "isa"_a = "",
             "grain_ns"_a = leanconv::kDefaultGrainNs)
        .def("run", &PyModel::run, "arrays"_a)
        .def("profile", &PyModel::profile, "arrays"_a, "repeats"_a = 20)
        .def_prop_ro("isa", [](const PyModel& m) { return std::string(m.model().isa()); })
        .def_prop_ro("threads", [](const PyModel& m) { return m.model().threads(); })
        .def_prop_ro("file_bytes", [](const PyModel& m) { return m.model().file_bytes(); })
        .def_prop_ro("program_json", [](const PyModel& m) { return m.model().program().file.program; });
}
