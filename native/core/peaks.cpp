#include "core/peaks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>

#include "core/aligned.h"
#include "core/threads.h"
#include "kernels/peak.h"

namespace leanconv {

namespace {

using Clock = std::chrono::steady_clock;

constexpr double kBurst = 100e-6;  // seconds
constexpr double kClockBurst = 20e-6;
constexpr double kPatience = 20e-3;  // that threads wait for each other

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Runs `work(repeats, slot)` on every thread at once and times it.
class Bench {
public:
    explicit Bench(int threads) : team_(threads), threads_(team_.threads()) {}

    int threads() const { return threads_; }

    using Work = std::function<void(int64_t repeats, int slot)>;

    // Seconds from the first start to the last end. The threads wait for each other before they start, but not for ever: one
    // that the system keeps waiting works afterwards, and that burst is a slow one.
    double time(const Work& work, int64_t repeats) const {
        struct Job {
            const Work& work;
            int64_t repeats;
            int threads;
            std::vector<Clock::time_point> start, end;
            std::atomic<int> here{0};
        };
        const size_t count = static_cast<size_t>(threads_);
        Job job{work, repeats, threads_, std::vector<Clock::time_point>(count), std::vector<Clock::time_point>(count)};
        team_.run(threads_,
                  [](void* argument, int unit, int slot) {
                      Job& j = *static_cast<Job*>(argument);
                      const auto arrived = Clock::now();
                      j.here.fetch_add(1);
                      while (j.here.load() < j.threads && since(arrived) < kPatience) {
                      }
                      j.start[static_cast<size_t>(unit)] = Clock::now();
                      j.work(j.repeats, slot);
                      j.end[static_cast<size_t>(unit)] = Clock::now();
                  },
                  &job);
        const auto first = *std::min_element(job.start.begin(), job.start.end());
        const auto last = *std::max_element(job.end.begin(), job.end.end());
        return std::chrono::duration<double>(last - first).count();
    }

    // How often to repeat `work` so that it takes `seconds`, tried on this thread alone: the quickest of several tries counts.
    static int64_t calibrate(const Work& work, double seconds) {
        for (int64_t repeats = 1;; repeats *= 4) {
            double best = 1e9;
            for (int i = 0; i < 4; ++i) {
                const auto start = Clock::now();
                work(repeats, 0);
                best = std::min(best, since(start));
            }
            if (best >= seconds / 4)
                return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(repeats) * seconds / best));
        }
    }

    // The smallest number of seconds that a repeat took, over bursts during `seconds` (eight of them at least); between
    // them `other` runs.
    double best(const Work& work, double seconds, const std::function<void()>& other) const {
        const int64_t repeats = calibrate(work, kBurst);
        double quickest = 1e9;
        const auto start = Clock::now();
        for (int n = 0; n < 8 || since(start) < seconds; ++n) {
            other();
            quickest = std::min(quickest, time(work, repeats));
        }
        return quickest / static_cast<double>(repeats);
    }

private:
    Team team_;
    int threads_;
};

// Bytes of the data cache of this level that processor 0 uses, or `otherwise`. The kernel's own table: sysconf counts some
// processors' level 3 many times.
size_t cache_size(int level, size_t otherwise) {
    for (int i = 0; i < 8; ++i) {
        const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/";
        std::ifstream level_file(folder + "level"), type_file(folder + "type"), size_file(folder + "size");
        int found = 0;
        size_t kilobytes = 0;
        std::string type;
        if (!(level_file >> found) || found != level || !(type_file >> type) || type == "Instruction") continue;
        if (size_file >> kilobytes && kilobytes) return kilobytes << 10;
    }
    return otherwise;
}

struct Level {
    const char* name;
    size_t bytes;
};

// Buffers, a thread, that surely lie in one level: half of L1 and L2; L3 and memory are shared by the threads.
std::vector<Level> levels(size_t threads) {
    const size_t l1 = cache_size(1, 32 << 10), l2 = cache_size(2, 1 << 20);
    const size_t l3 = cache_size(3, 0);
    std::vector<Level> found = {{"L1", l1 / 2}, {"L2", l2 / 2}};
    if (l3 > 4 * l2) found.push_back({"L3", std::max(2 * l2, l3 / 4 / threads)});
    found.push_back({"memory", std::max<size_t>(4 * std::min<size_t>(l3, 64 << 20) / threads, 16 << 20)});
    for (Level& level : found) level.bytes = level.bytes / 1024 * 1024;
    return found;
}

const ReadLoop* widest_read() {
    for (int f = 0; f < kPeakFileCount; ++f)
        if (kPeakFiles[f]->read.run && kPeakFiles[f]->read.supported()) return &kPeakFiles[f]->read;
    return nullptr;
}

}  // namespace

Peaks measure_peaks(double seconds, int threads) {
    const Bench bench(std::max(1, threads));
    Peaks peaks;
    peaks.threads = bench.threads();
    std::vector<const PeakLoop*> loops;
    for (int f = 0; f < kPeakFileCount; ++f)
        for (int i = 0; i < kPeakFiles[f]->count; ++i)
            if (kPeakFiles[f]->loops[i].supported()) loops.push_back(&kPeakFiles[f]->loops[i]);
    const std::vector<Level> buffers = levels(static_cast<size_t>(peaks.threads));
    const double slot = seconds / static_cast<double>(loops.size() + buffers.size());

    const int64_t ticks = kClockLoop ? Bench::calibrate([](int64_t repeats, int) { kClockLoop(repeats); }, kClockBurst) : 0;
    const double all = static_cast<double>(peaks.threads);
    for (const PeakLoop* loop : loops) {
        double hertz = 0;  // of this thread around this loop alone: wide registers may lower the clock
        const double quickest = bench.best([&](int64_t repeats, int) { loop->run(repeats); }, slot, [&] {
            if (!kClockLoop) return;
            const auto start = Clock::now();
            kClockLoop(ticks);
            hertz = std::max(hertz, static_cast<double>(ticks) * kClockCycles / since(start));
        });
        const double rate = static_cast<double>(loop->macs) / quickest;
        peaks.clock_ghz = std::max(peaks.clock_ghz, hertz * 1e-9);
        peaks.rates.push_back({loop->name, loop->isa, loop->kind, all * rate * 1e-9, hertz > 0 ? rate / hertz : 0});
    }
    if (const ReadLoop* read = widest_read())
        for (const Level& level : buffers) {
            std::vector<Aligned<char>> memory;
            for (int i = 0; i < peaks.threads; ++i) {
                memory.emplace_back(level.bytes);
                std::memset(memory.back().data(), i + 1, level.bytes);
            }
            const Bench::Work work = [&](int64_t repeats, int thread) {
                for (int64_t r = 0; r < repeats; ++r) read->run(memory[static_cast<size_t>(thread)].data(), level.bytes);
            };
            const double quickest = bench.best(work, slot, [] {});
            peaks.bandwidths.push_back({level.name, level.bytes, all * static_cast<double>(level.bytes) / quickest * 1e-9});
        }
    return peaks;
}

}  // namespace leanconv
