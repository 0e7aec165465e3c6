// A small strict JSON reader (RFC 8259): one value, UTF-8 checked, duplicate keys refused, numbers finite, depth limited.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace leanconv {

class Json {
public:
    struct Member;
    enum class Type : uint8_t { null, boolean, number, string, array, object };

    Type type = Type::null;
    bool boolean = false;
    bool integer = false;  // a number without fraction or exponent, within +-2^53
    double number = 0;
    std::string string;
    std::vector<Json> items;      // of an array
    std::vector<Member> members;  // of an object, in the order of the text

    bool is(Type t) const { return type == t; }
    const Json* find(std::string_view key) const;  // null when absent (or not an object)
};

struct Json::Member {
    std::string name;
    Json value;
};

inline constexpr int kJsonDepth = 32;

// Throws Error "not valid JSON at byte N: reason".
Json parse_json(std::string_view text);

}  // namespace leanconv
