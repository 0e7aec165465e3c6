#include "core/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>

namespace leanconv {

namespace {

constexpr auto kSpin = std::chrono::microseconds(100);  // a worker without work sleeps after this long
constexpr int kUnitBits = 26;                           // of a range: next unit, end, threads
constexpr int kMaxUnits = (1 << kUnitBits) - 1;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// What remains of one slot's range, in one word, so that a claim is one compare-and-swap and can never be stale.
struct Range {
    uint64_t word;
    int next() const { return static_cast<int>(word & kMaxUnits); }
    int end() const { return static_cast<int>(word >> kUnitBits & kMaxUnits); }
    int threads() const { return static_cast<int>(word >> (2 * kUnitBits)); }
    bool open_to(int slot) const { return next() < end() && slot < threads(); }
    static uint64_t of(int64_t begin, int64_t end, int threads) {
        return static_cast<uint64_t>(threads) << (2 * kUnitBits) | static_cast<uint64_t>(end) << kUnitBits | static_cast<uint64_t>(begin);
    }
};

}  // namespace

class Pool {
public:
    static Pool& instance();

    bool take() { return !taken_.exchange(true, std::memory_order_acquire); }
    void give_back() { taken_.store(false, std::memory_order_release); }

    // Only by the holder.
    void grow(int workers) {
        while (workers_ < workers) {
            sigset_t all, before;  // signals are for the threads of the program, not for workers
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &before);
            bool started = true;
            try {
                std::thread([this, slot = workers_ + 1] { work(slot); }).detach();
            } catch (const std::system_error&) {
                started = false;  // no more threads to be had: run with those that are there
            }
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
            if (!started) return;
            ++workers_;
        }
    }

    void run(int units, int threads, void (*fn)(void*, int, int), void* argument) {
        work_.fn = fn;
        work_.argument = argument;
        work_.threads.store(threads, std::memory_order_relaxed);
        due_ += static_cast<uint32_t>(units);
        for (int64_t slot = 0; slot < threads; ++slot)  // each may be claimed from once it is written
            ranges_[slot].word.store(Range::of(units * slot / threads, units * (slot + 1) / threads, threads), std::memory_order_release);
        work_.round.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) work_.round.notify_all();
        take_part(0);
        for (int spins = 0; done_.load(std::memory_order_acquire) != due_;) {
            if (++spins < 4096)
                pause();
            else
                sched_yield();  // perhaps the worker that we wait for needs this processor
        }
    }

private:
    struct alignas(64) Claims {
        std::atomic<uint64_t> word{0};
    };

    // What is to be done, in one cache line, so that a worker that waits for it gets all of it at once.
    struct alignas(64) Work {
        std::atomic<uint32_t> round{0};  // counts calls of run
        std::atomic<int> threads{0};
        void (*fn)(void*, int, int) = nullptr;
        void* argument = nullptr;
    };

    // A unit of the slot's own range, or else of another one's.
    bool claim(int slot) {
        const int threads = work_.threads.load(std::memory_order_relaxed);
        for (int i = 0; i < threads; ++i) {
            std::atomic<uint64_t>& word = ranges_[(slot + i) % threads].word;
            Range r{word.load(std::memory_order_acquire)};
            while (r.open_to(slot)) {
                if (!word.compare_exchange_weak(r.word, r.word + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
                work_.fn(work_.argument, r.next(), slot);
                return true;
            }
        }
        return false;
    }

    // Everything that can be claimed. Units of two calls of run may follow one another here: `done_` only ever grows.
    void take_part(int slot) {
        uint32_t units = 0;
        while (claim(slot)) ++units;
        if (units > 0) done_.fetch_add(units, std::memory_order_release);
    }

    void work(int slot) {
        using Clock = std::chrono::steady_clock;
        for (;;) {
            const uint32_t round = work_.round.load(std::memory_order_seq_cst);
            take_part(slot);
            const auto idle_since = Clock::now();
            bool more = false;
            while (!more && Clock::now() - idle_since < kSpin)
                for (int i = 0; i < 32 && !more; ++i) {
                    pause();
                    more = work_.round.load(std::memory_order_relaxed) != round;
                }
            if (more) continue;
            sleepers_.fetch_add(1, std::memory_order_seq_cst);
            work_.round.wait(round, std::memory_order_seq_cst);
            sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        }
    }

    std::array<Claims, kMaxThreads> ranges_;
    Work work_;
    alignas(64) std::atomic<uint32_t> done_{0};  // units, of all calls
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> taken_{false};
    uint32_t due_ = 0;  // what `done_` will be; the holder's
    int workers_ = 0;
};

namespace {

std::atomic<Pool*> the_pool{nullptr};

// Threads do not survive a fork: the child starts with a pool of its own. The old one is left alone, its memory may be
// in any state.
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr, std::memory_order_relaxed); });

}  // namespace

Pool& Pool::instance() {
    Pool* pool = the_pool.load(std::memory_order_acquire);
    if (pool) return *pool;
    Pool* made = new Pool;  // never destroyed: its workers live as long as the process
    if (the_pool.compare_exchange_strong(pool, made, std::memory_order_acq_rel)) return *made;
    delete made;
    return *pool;
}

Team::Team(int threads) {
    (void)fork_handler;
    if (threads < 2) return;
    Pool& pool = Pool::instance();
    if (!pool.take()) return;
    pool.grow(std::min(threads, kMaxThreads) - 1);
    pool_ = &pool;
    threads_ = std::min(threads, kMaxThreads);
}

Team::~Team() {
    if (pool_) pool_->give_back();
}

void Team::run(int units, void (*fn)(void*, int, int), void* argument) const {
    if (!pool_ || units < 2 || units > kMaxUnits) {
        for (int unit = 0; unit < units; ++unit) fn(argument, unit, 0);
        return;
    }
    pool_->run(units, threads_, fn, argument);
}

namespace {

int affinity_cores() {
    for (int capacity = 1024; capacity <= 1 << 20; capacity *= 4) {
        cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(capacity));
        if (!set) break;
        const size_t size = CPU_ALLOC_SIZE(static_cast<size_t>(capacity));
        const bool ok = sched_getaffinity(0, size, set) == 0;
        const int count = ok ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (ok) return std::max(1, count);
    }
    return std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
}

// Processors that a cgroup's quota allows; a large number where there is none.
double quota_of(const std::string& directory) {
    double quota = 1e9, period = 0;
    std::string word;
    if (std::ifstream v2(directory + "/cpu.max"); v2 >> word >> period && word != "max" && period > 0)
        quota = std::strtod(word.c_str(), nullptr) / period;
    std::ifstream v1(directory + "/cpu.cfs_quota_us"), v1_period(directory + "/cpu.cfs_period_us");
    if (double q = 0; v1 >> q && v1_period >> period && q > 0 && period > 0) quota = std::min(quota, q / period);
    return quota;
}

double cgroup_cores() {
    double cores = 1e9;
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        std::string controllers = ",";
        controllers.append(line, first + 1, second - first - 1).append(",");
        if (controllers != ",," && controllers.find(",cpu,") == std::string::npos) continue;
        const std::string root = controllers == ",," ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
        std::string path = line.substr(second + 1);
        for (;; path.resize(path.rfind('/'))) {  // a parent's quota holds too
            while (!path.empty() && path.back() == '/') path.pop_back();
            cores = std::min(cores, quota_of(root + path));
            if (path.find('/') == std::string::npos) break;
        }
    }
    return cores;
}

}  // namespace

int available_cores() {
    const double quota = cgroup_cores();
    const int cores = affinity_cores();
    return quota < cores ? std::max(1, static_cast<int>(quota)) : cores;
}

}  // namespace leanconv
