// What this processor can do at most: multiply-adds a second of each kind of arithmetic, and bytes a second from each
// level of memory. Loops over registers or one buffer (kernels/peak.h), many short bursts, the best of them: another
// process that takes the processor away spoils some bursts, not the result.
#pragma once

#include <string>
#include <vector>

namespace leanconv {

struct PeakRate {
    std::string name, isa, kind;
    double gmacs = 0;            // of all threads, 1e9 a second
    double macs_per_cycle = 0;   // of one core; 0: the clock is not known
};

struct Bandwidth {
    std::string level;           // L1, L2, L3, memory
    size_t bytes = 0;            // of the buffer, a thread
    double gb_per_s = 0;         // read, of all threads
};

struct Peaks {
    double clock_ghz = 0;        // 0: unknown
    int threads = 1;
    std::vector<PeakRate> rates;
    std::vector<Bandwidth> bandwidths;
};

// About `seconds` long (and what it takes to fill the buffers).
Peaks measure_peaks(double seconds, int threads);

}  // namespace leanconv
