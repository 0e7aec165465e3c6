#include "core/parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "core/threads.h"

namespace leanconv {

namespace {

using OpenMP = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

std::atomic<bool> forked{false};
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

// Of GCC's runtime; LLVM's and Intel's offer the same entry.
OpenMP openmp() {
    static const OpenMP found = reinterpret_cast<OpenMP>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

struct Loop {
    void (*fn)(void*, int, int);
    void* argument;
    int units, slots;
    std::atomic<int> unit{0}, slot{0};

    void work() {
        const int mine = slot.fetch_add(1, std::memory_order_relaxed);
        if (mine >= slots) return;
        for (int i; (i = unit.fetch_add(1, std::memory_order_relaxed)) < units;) fn(argument, i, mine);
    }
};

}  // namespace

void parallel(int threads, int units, void (*fn)(void*, int, int), void* argument) {
    (void)fork_handler;
    threads = std::min({threads, units, kMaxThreads});
    if (threads < 2) {
        for (int i = 0; i < units; ++i) fn(argument, i, 0);
        return;
    }
    if (const OpenMP run = forked.load(std::memory_order_relaxed) ? nullptr : openmp()) {
        Loop loop{fn, argument, units, threads};
        run([](void* p) { static_cast<Loop*>(p)->work(); }, &loop, static_cast<unsigned>(threads), 0);
        return;
    }
    Team(threads).run(units, fn, argument);
}

}  // namespace leanconv
