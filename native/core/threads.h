// One pool of worker threads a process, made at its first use.
//
// A caller takes the whole pool for one network run (a caller that finds it taken runs alone), then gives it many small
// pieces of work one after another; between them the workers stay awake for a bounded time, then sleep. A piece is a
// number of units, and each thread has a range of them: the same share of every piece, so that what a thread wrote into
// its cache in one piece it reads there in the next. Units are claimed one by one, and who has none left takes those of
// others: a worker that the system does not schedule delays nothing but a unit that it holds.
#pragma once

namespace leanconv {

// Processors that this process may use: the affinity mask, cut to the cgroup's quota. At least 1.
int available_cores();

class Team {
public:
    // The pool, or nothing (then `run` does everything here): threads < 2, or another call holds it.
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int threads() const { return threads_; }

    // Calls fn(argument, unit, slot) once for each unit below `units`; slot is below threads() and belongs to one thread.
    // Returns when all are done. `fn` must not throw.
    void run(int units, void (*fn)(void* argument, int unit, int slot), void* argument) const;

private:
    class Pool* pool_ = nullptr;
    int threads_ = 1;
    friend class Pool;
};

inline constexpr int kMaxThreads = 1024;

}  // namespace leanconv
