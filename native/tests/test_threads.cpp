// The pool: every unit once, whoever does it, and one holder at a time.
#include <atomic>
#include <thread>

#include "check.h"
#include "core/memory.h"
#include "core/threads.h"

using namespace leanconv;

TEST(every_unit_runs_once) {
    for (int threads : {1, 2, 3, 8})
        for (int round = 0; round < 200; ++round) {
            const Team team(threads);
            CHECK(team.threads() == threads);
            struct Work {
                std::vector<std::atomic<int>> counts;
                std::vector<std::atomic<int>> in_slot;
                int threads;
            } work{std::vector<std::atomic<int>>(static_cast<size_t>(round)), std::vector<std::atomic<int>>(8), threads};
            team.run(round, [](void* argument, int unit, int slot) {
                Work& w = *static_cast<Work*>(argument);
                CHECK(slot < w.threads);
                CHECK(w.in_slot[static_cast<size_t>(slot)].fetch_add(1) == 0);
                w.counts[static_cast<size_t>(unit)].fetch_add(1);
                w.in_slot[static_cast<size_t>(slot)].fetch_sub(1);
            }, &work);
            for (const auto& count : work.counts) CHECK(count.load() == 1);
        }
}

TEST(a_taken_pool_means_one_thread) {
    const Team first(2);
    CHECK(first.threads() == 2);
    std::thread([] {
        const Team second(2);
        CHECK(second.threads() == 1);
        int count = 0;
        second.run(5, [](void* argument, int, int slot) { *static_cast<int*>(argument) += slot == 0; }, &count);
        CHECK(count == 5);
    }).join();
}

TEST(sleeping_workers_wake_up) {
    for (int round = 0; round < 20; ++round) {
        const Team team(3);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        std::atomic<int> count{0};
        team.run(50, [](void* argument, int, int) { ++*static_cast<std::atomic<int>*>(argument); }, &count);
        CHECK(count == 50);
    }
}

TEST(buffers_that_live_together_do_not_overlap) {
    unsigned state = 7;
    const auto random = [&](unsigned n) { return static_cast<int>((state = state * 1664525 + 1013904223) >> 8) % static_cast<int>(n); };
    for (int round = 0; round < 50; ++round) {
        MemoryPlanner planner;
        struct Buffer {
            int id, first, last, bytes;
        };
        std::vector<Buffer> buffers;
        for (int i = 0; i < 40; ++i) {
            const int first = random(30), last = first + random(8), bytes = 1 + random(5000);
            buffers.push_back({planner.buffer(bytes, first, last), first, last, bytes});
        }
        planner.lay_out();
        for (const Buffer& a : buffers) {
            CHECK(planner.offset(a.id) > 0 && planner.offset(a.id) % 64 == 0 && planner.offset(a.id) + a.bytes <= planner.bytes());
            for (const Buffer& b : buffers) {
                if (a.id >= b.id || a.last < b.first || b.last < a.first) continue;
                CHECK(planner.offset(a.id) + a.bytes <= planner.offset(b.id) || planner.offset(b.id) + b.bytes <= planner.offset(a.id));
            }
        }
    }
}
