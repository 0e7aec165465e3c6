// leanconv._core: the engine for Python. Only conversions; every check is in the core.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <system_error>

#include "core/error.h"
#include "core/model.h"
#include "core/threads.h"

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
    const bool f32 = t.dtype == leanconv::DType::f32;
    return nb::cast(nb::ndarray<nb::numpy>(copy, shape.size(), shape.data(), owner, nullptr,
                                           f32 ? nb::dtype<float>() : nb::dtype<uint8_t>()));
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
