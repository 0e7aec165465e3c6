// A test registers itself; a failed CHECK prints where and ends the program with 1 at the end.
#pragma once

#include <functional>
#include <iostream>
#include <string>
#include <vector>

namespace leanconv::test {

struct Case {
    std::string name;
    std::function<void()> run;
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

inline int& failures() {
    static int count = 0;
    return count;
}

struct Register {
    Register(const char* name, std::function<void()> run) { cases().push_back({name, std::move(run)}); }
};

}  // namespace leanconv::test

#define TEST(name)                                                     \
    static void name();                                                \
    static const leanconv::test::Register register_##name{#name, name}; \
    static void name()

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            ++leanconv::test::failures();                                                         \
            std::cerr << __FILE__ << ":" << __LINE__ << ": failed: " << #condition << std::endl;  \
        }                                                                                         \
    } while (false)
