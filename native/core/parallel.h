// Loops over threads for operators that run inside another program's threads (PyTorch's).
#pragma once

namespace leanconv {

// Calls fn(argument, unit, slot) once for each unit below `units`, from at most `threads` threads, and returns when all are
// done; slot is below `threads` and belongs to one thread. `fn` must not throw.
//
// Where the process has loaded an OpenMP runtime, its threads do the work: they may still spin after an operator of
// PyTorch, and threads of our own would fight with them for processors. OpenMP does not survive a fork: there, and where
// none is loaded, it is the pool of core/threads.h.
void parallel(int threads, int units, void (*fn)(void* argument, int unit, int slot), void* argument);

}  // namespace leanconv
