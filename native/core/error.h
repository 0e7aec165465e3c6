// The one exception of the core: a line of text for people (what was given, what was expected, what to do).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace leanconv {

class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// A text put together from its parts: text("a ", 1, "x", 2) == "a 1x2".
template <class... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    throw Error(text(parts...));
}

}  // namespace leanconv
