// Without arguments: all tests. With packed files: loads each, runs it with every instruction set, alone and with three
// threads, and compares. A file that is refused prints its message; only a crash or a difference is a failure.
#include <cmath>
#include <cstring>
#include <exception>

#include "check.h"
#include "core/error.h"
#include "core/model.h"

namespace {

using namespace leanconv;

bool close(const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i) {
        const bool both_nan = std::isnan(a[i]) && std::isnan(b[i]);
        if (!both_nan && a[i] != b[i] && !(std::fabs(a[i] - b[i]) <= 1e-3f * (1 + std::fabs(b[i])))) return false;
    }
    return true;
}

std::vector<std::vector<float>> run(const Model& model, int batch) {
    std::vector<std::vector<float>> numbers;
    std::vector<InputArray> inputs;
    for (const Port& port : model.program().inputs) {
        InputArray in;
        in.shape = {batch, port.channels};
        if (port.dims == 4) in.shape.push_back(port.height ? port.height : 9);
        if (port.dims >= 3) in.shape.push_back(port.width ? port.width : 7);
        size_t count = 1;
        for (int64_t n : in.shape) count *= static_cast<size_t>(n);
        std::vector<float> values(count);  // exactly as large as it must be: reads beyond are found
        for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i * 2654435761u % 17) - 8;
        numbers.push_back(std::move(values));
        in.data = numbers.back().data();
        inputs.push_back(in);
    }
    const Model::Call call = model.prepare(inputs);
    std::vector<std::vector<float>> outputs;
    std::vector<float*> pointers;
    for (const auto& shape : call.output_shapes()) {
        size_t count = 1;
        for (int64_t n : shape) count *= static_cast<size_t>(n);
        outputs.emplace_back(count);
        pointers.push_back(outputs.back().data());
    }
    model.run(call, pointers);
    return outputs;
}

void run_file(const std::string& path) {
    try {
        std::vector<std::vector<float>> first;
        for (const std::string& isa : isa_names())
            for (int threads : {1, 3}) {
                const Model model(read_bytes(path), threads, isa, 0);
                for (int batch : {1, 2, 7}) {
                    const auto outputs = run(model, batch);
                    if (batch == 1 && first.empty()) first = outputs;
                    for (size_t i = 0; batch == 1 && i < outputs.size(); ++i) CHECK(close(outputs[i], first[i]));
                }
            }
        std::cout << path << ": ran" << std::endl;
    } catch (const Error& error) {
        std::cout << path << ": " << error.what() << std::endl;
    }
}

}  // namespace

int main(int count, char** arguments) {
    for (int i = 1; i < count; ++i) run_file(arguments[i]);
    if (count < 2)
        for (const leanconv::test::Case& test : leanconv::test::cases()) {
            const int before = leanconv::test::failures();
            try {
                test.run();
            } catch (const std::exception& error) {
                ++leanconv::test::failures();
                std::cerr << test.name << ": " << error.what() << std::endl;
            }
            std::cout << (leanconv::test::failures() == before ? "ok      " : "FAILED  ") << test.name << std::endl;
        }
    return leanconv::test::failures() ? 1 : 0;
}
