#include "core/model.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <list>
#include <map>
#include <mutex>

#include "core/context.h"
#include "core/error.h"

namespace leanconv {

// A plan with the contexts that no call uses at the moment.
struct PlanEntry {
    std::shared_ptr<const Plan> plan;
    std::vector<std::unique_ptr<Context>> free;
};

namespace {

constexpr size_t kMaxPlans = 16;      // input sizes that a model keeps ready
constexpr double kShareGrains = 4;    // a run of fewer grains than this is left to one thread

// Guards every model's plans and free contexts; held for a few instructions only. One lock for all, so that a fork can
// happen while it is free and the child finds it so.
std::mutex cache_lock;
const int cache_fork_handler =
    pthread_atfork([] { cache_lock.lock(); }, [] { cache_lock.unlock(); }, [] { cache_lock.unlock(); });

const Kernels& kernels_named(const std::string& isa) {
    if (isa.empty()) return select_kernels();
    std::string choices;
    for (int i = 0; i < kBuiltKernelCount; ++i) {
        if (!kBuiltKernels[i]->supported()) continue;
        if (isa == kBuiltKernels[i]->name) return *kBuiltKernels[i];
        choices += (choices.empty() ? "" : ", ") + std::string(kBuiltKernels[i]->name);
    }
    fail("the instruction set '", isa, "' was not built or this processor lacks it; choose from: ", choices);
}

// (u / 255 - mean) / std, each operation rounded to float32
std::vector<float> byte_table(const Program& program, int channels) {
    if (program.mean.size() != static_cast<size_t>(channels)) return {};
    std::vector<float> table(static_cast<size_t>(channels) * 256);
    for (size_t c = 0; c < static_cast<size_t>(channels); ++c)
        for (size_t u = 0; u < 256; ++u) {
            const float scaled = static_cast<float>(u) / 255.0f;
            const float shifted = scaled - program.mean[c];
            table[c * 256 + u] = shifted / program.std[c];
        }
    return table;
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string out = "[";
    for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

// `floats` and `bytes`: what the port takes.
std::string expected(const Port& port, bool floats, bool bytes) {
    const auto side = [](int n, const char* letter) { return n ? std::to_string(n) : std::string(letter); };
    const std::string c = std::to_string(port.channels);
    const std::string h = side(port.height, "H"), w = side(port.width, port.dims == 3 ? "L" : "W");
    const std::string array = "float32 [N, " + c + (port.dims == 4 ? ", " + h + ", " + w : port.dims == 3 ? ", " + w : "") + "]";
    const std::string pictures = "uint8 pictures [N, " + h + ", " + w + ", " + c + "]";
    return !floats ? pictures : bytes ? array + " or " + pictures : array;
}

}  // namespace

struct Model::Impl {
    Program program;
    std::vector<PackedOp> packed;
    std::vector<std::vector<float>> tables;  // of each input; empty: takes floats only
    const Kernels* kernels = nullptr;
    int threads = 1;
    double grain_ns = kDefaultGrainNs;
    size_t bytes = 0;
    mutable std::list<std::pair<std::vector<Size>, std::shared_ptr<PlanEntry>>> plans;  // most recently used first

    std::shared_ptr<PlanEntry> find(const std::vector<Size>& sizes) const {
        const std::lock_guard guard(cache_lock);
        for (auto it = plans.begin(); it != plans.end(); ++it)
            if (it->first == sizes) {
                plans.splice(plans.begin(), plans, it);
                return it->second;
            }
        return nullptr;
    }

    std::shared_ptr<PlanEntry> entry(const std::vector<Size>& sizes) const {
        if (auto known = find(sizes)) return known;
        auto made = std::make_shared<PlanEntry>();
        made->plan = make_plan(program, packed, sizes, threads, grain_ns);
        decltype(plans) dropped;  // destroyed after the lock is released
        const std::lock_guard guard(cache_lock);
        for (const auto& [key, entry] : plans)
            if (key == sizes) return entry;  // another thread was faster
        plans.emplace_front(sizes, made);
        if (plans.size() > kMaxPlans) dropped.splice(dropped.begin(), plans, std::prev(plans.end()));
        return made;
    }
};

namespace {

// A context for as long as a call lasts.
class Borrowed {
public:
    Borrowed(PlanEntry& entry, const Kernels& kernels) : entry_(entry) {
        {
            const std::lock_guard guard(cache_lock);
            if (!entry.free.empty()) {
                context_ = std::move(entry.free.back());
                entry.free.pop_back();
            }
        }
        if (!context_) context_ = std::make_unique<Context>(entry.plan, kernels);
    }
    Borrowed(Borrowed&& other) noexcept : entry_(other.entry_), context_(std::move(other.context_)) {}
    ~Borrowed() {
        if (!context_) return;
        const std::lock_guard guard(cache_lock);
        entry_.free.push_back(std::move(context_));
    }
    const Context& operator*() const { return *context_; }
    const Context* operator->() const { return context_.get(); }

private:
    PlanEntry& entry_;
    std::unique_ptr<Context> context_;
};

struct Batch {
    const std::vector<InputArray>& inputs;
    const std::vector<std::vector<float>>& tables;
    const std::vector<std::vector<int64_t>>& shapes;
    const std::vector<float*>& outputs;

    static int64_t per_picture(const std::vector<int64_t>& shape) {
        int64_t n = 1;
        for (size_t i = 1; i < shape.size(); ++i) n *= shape[i];
        return n;
    }

    void load(const Context& context, int64_t picture) const {
        for (size_t i = 0; i < inputs.size(); ++i) {
            const InputArray& in = inputs[i];
            const int64_t offset = picture * per_picture(in.shape) * (in.is_uint8 ? 1 : 4);
            context.load(static_cast<int>(i), {static_cast<const char*>(in.data) + offset, in.is_uint8 ? tables[i].data() : nullptr});
        }
    }

    void store(const Context& context, int64_t picture) const {
        for (size_t i = 0; i < outputs.size(); ++i)
            context.store(static_cast<int>(i), outputs[i] + picture * per_picture(shapes[i]));
    }

    void run(const Context& context, int64_t picture, const Team* team) const {
        load(context, picture);
        for (size_t s = 0; s < context.stages().size(); ++s) context.run(s, team);
        store(context, picture);
    }
};

}  // namespace

Model::Model(std::vector<uint8_t> file, int threads, const std::string& isa, double grain_ns) : impl_(std::make_unique<Impl>()) {
    (void)cache_fork_handler;
    impl_->bytes = file.size();
    impl_->grain_ns = grain_ns;
    impl_->program = parse_program(parse_container(std::move(file)));
    impl_->kernels = &kernels_named(isa);
    impl_->threads = threads > 0 ? std::min(threads, kMaxThreads) : available_cores();
    for (const Op& op : impl_->program.ops) impl_->packed.push_back(pack(impl_->program, op, impl_->kernels->binary_weights));
    for (const Port& port : impl_->program.inputs)
        impl_->tables.push_back(port.dims == 4 ? byte_table(impl_->program, port.channels) : std::vector<float>());
}

Model::~Model() = default;

const Program& Model::program() const { return impl_->program; }
const char* Model::isa() const { return impl_->kernels->name; }
int Model::threads() const { return impl_->threads; }
size_t Model::file_bytes() const { return impl_->bytes; }

Model::Call Model::prepare(std::vector<InputArray> inputs) const {
    const Program& p = impl_->program;
    if (inputs.size() != p.inputs.size()) fail("the network takes ", p.inputs.size(), " inputs, ", inputs.size(), " were given");
    Call call;
    std::vector<Size> sizes;
    for (size_t i = 0; i < inputs.size(); ++i) {
        const Port& port = p.inputs[i];
        const std::vector<int64_t>& shape = inputs[i].shape;
        const bool floats = !p.values[static_cast<size_t>(port.value)].bytes;
        const bool bytes = !floats || !impl_->tables[i].empty();
        const std::string name = p.inputs.size() > 1 ? "input '" + port.name + "'" : "the network";
        const auto stop = [&] {
            fail(name, " takes ", expected(port, floats, bytes), "; given was ", inputs[i].is_uint8 ? "uint8 " : "float32 ", shape_text(shape),
                 floats ? "" : ": its first layer computes in int8, on the bytes of the pictures");
        };
        if (!inputs[i].is_uint8 && !floats) stop();
        if (inputs[i].is_uint8 && !bytes) {
            if (port.dims == 4 && shape.size() == 4)
                fail(name, " was compiled without a mean and std for each of its ", port.channels,
                     " channels, so it cannot take uint8 pictures; give it ", expected(port, true, false));
            stop();
        }
        if (shape.size() != static_cast<size_t>(port.dims)) stop();
        const bool last = inputs[i].is_uint8;  // channels last
        const int64_t channels = shape[last ? 3 : 1];
        const int64_t height = port.dims < 4 ? 1 : shape[last ? 1 : 2];
        const int64_t width = port.dims == 4 ? shape[last ? 2 : 3] : port.dims == 3 ? shape[2] : 1;
        if (channels != port.channels || height < 1 || width < 1) stop();
        if ((port.height && height != port.height) || (port.width && width != port.width)) stop();
        if (height > (1 << 20) || width > (1 << 20)) fail("the picture is too large: ", height, "x", width);
        if (i > 0 && shape[0] != call.batch_) fail("the inputs have different batch sizes, ", call.batch_, " and ", shape[0]);
        call.batch_ = shape[0];
        sizes.push_back({static_cast<int>(height), static_cast<int>(width)});
    }
    call.entry_ = impl_->entry(sizes);
    call.inputs_ = std::move(inputs);
    for (const Port& port : p.outputs) {
        const Size size = call.entry_->plan->sizes[static_cast<size_t>(port.value)];
        std::vector<int64_t> shape = {call.batch_, port.channels};
        if (port.dims == 4) shape.push_back(size.height);
        if (port.dims >= 3) shape.push_back(size.width);
        call.shapes_.push_back(std::move(shape));
    }
    return call;
}

void Model::run(const Call& call, const std::vector<float*>& outputs) const {
    const Batch batch{call.inputs_, impl_->tables, call.shapes_, outputs};
    const bool worth_sharing = call.entry_->plan->cost * static_cast<double>(call.batch_) > kShareGrains * impl_->grain_ns;
    const int wanted = worth_sharing ? impl_->threads : 1;
    if (wanted > 1 && call.batch_ >= 2 * int64_t{wanted}) {
        const Team team(wanted);
        std::vector<Borrowed> contexts;
        for (int i = 0; i < team.threads(); ++i) contexts.emplace_back(*call.entry_, *impl_->kernels);
        struct Work {
            const Batch& batch;
            const std::vector<Borrowed>& contexts;
            int64_t first;
        } work{batch, contexts, 0};
        constexpr int64_t kAtOnce = 1 << 20;
        for (; work.first < call.batch_; work.first += kAtOnce)
            team.run(static_cast<int>(std::min(kAtOnce, call.batch_ - work.first)),
                     [](void* argument, int unit, int slot) {
                         const Work& w = *static_cast<const Work*>(argument);
                         w.batch.run(*w.contexts[static_cast<size_t>(slot)], w.first + unit, nullptr);
                     },
                     &work);
        return;
    }
    if (call.batch_ == 0) return;
    const Borrowed context(*call.entry_, *impl_->kernels);
    const Team team(wanted);
    for (int64_t picture = 0; picture < call.batch_; ++picture)
        batch.run(*context, picture, team.threads() > 1 ? &team : nullptr);
}

std::vector<OpProfile> Model::profile(const Call& call, int repeats) const {
    using Clock = std::chrono::steady_clock;
    const Borrowed context(*call.entry_, *impl_->kernels);
    std::vector<std::vector<float>> storage;
    std::vector<float*> outputs;
    for (const auto& shape : call.shapes_) {
        storage.emplace_back(static_cast<size_t>(Batch::per_picture(shape) * std::max<int64_t>(1, shape[0])));
        outputs.push_back(storage.back().data());
    }
    const Batch batch{call.inputs_, impl_->tables, call.shapes_, outputs};
    const std::vector<Op>& ops = impl_->program.ops;
    const Team team(impl_->threads);
    const Team* used = team.threads() > 1 && call.entry_->plan->cost > kShareGrains * impl_->grain_ns ? &team : nullptr;
    std::vector<std::vector<double>> times(ops.size() + 2);  // operators, inputs, outputs
    repeats = std::max(1, repeats);
    for (int r = -1; r < repeats; ++r) {  // the first run warms up
        std::vector<double> sums(times.size(), 0.0);
        for (int64_t picture = 0; picture < call.batch_; ++picture) {
            auto before = Clock::now();
            const auto lap = [&](size_t row) {
                const auto now = Clock::now();
                sums[row] += std::chrono::duration<double, std::milli>(now - before).count();
                before = now;
            };
            batch.load(*context, picture);
            lap(ops.size());
            for (size_t s = 0; s < context->stages().size(); ++s) {
                context->run(s, used);
                lap(static_cast<size_t>(context->stages()[s].op));
            }
            batch.store(*context, picture);
            lap(ops.size() + 1);
        }
        for (size_t row = 0; r >= 0 && row < times.size(); ++row) times[row].push_back(sums[row]);
    }
    const auto median = [](std::vector<double> t) {
        std::sort(t.begin(), t.end());
        const size_t n = t.size();
        return n % 2 ? t[n / 2] : (t[n / 2 - 1] + t[n / 2]) / 2;
    };
    std::vector<OpProfile> rows;
    rows.push_back({"input", "input", median(times[ops.size()]), 0, 0});
    const double pictures = static_cast<double>(call.batch_);
    std::vector<std::string> names(ops.size());  // of those that cost time of their own
    for (const Stage& stage : context->stages()) {
        const size_t i = static_cast<size_t>(stage.op);
        const bool pooled = stage.kind == StageKind::pooled || stage.kind == StageKind::pooled_sums;
        const size_t first = stage.kind == StageKind::pooled_input ? i - 1 : i, last = pooled ? i + 1 : i;
        names[i] = first == last ? ops[i].name : ops[first].name + " + " + ops[last].name;
    }
    for (size_t i = 0; i < ops.size(); ++i)
        if (!names[i].empty())
            rows.push_back({names[i], op_kind_name(ops[i].kind), median(times[i]), pictures * call.entry_->plan->macs_binary[i],
                            pictures * call.entry_->plan->macs_real[i]});
    rows.push_back({"output", "output", median(times[ops.size() + 1]), 0, 0});
    return rows;
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (int i = 0; i < kBuiltKernelCount; ++i)
        if (kBuiltKernels[i]->supported()) names.push_back(kBuiltKernels[i]->name);
    return names;
}

}  // namespace leanconv
