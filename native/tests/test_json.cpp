// What the JSON reader takes and what it refuses.
#include "check.h"
#include "core/error.h"
#include "core/json.h"

using leanconv::Json;
using leanconv::parse_json;

static bool refused(const std::string& text) {
    try {
        parse_json(text);
        return false;
    } catch (const leanconv::Error& error) {
        return std::string(error.what()).find("not valid JSON at byte ") == 0;
    }
}

TEST(json_values) {
    const Json j = parse_json(R"( {"a": [1, -2.5e3, true, false, null, "x"], "b": {}, "": []} )");
    CHECK(j.members.size() == 3 && j.find("b") && !j.find("c"));
    const auto& items = j.find("a")->items;
    CHECK(items.size() == 6 && items[0].integer && items[0].number == 1);
    CHECK(!items[1].integer && items[1].number == -2500);
    CHECK(items[2].boolean && !items[3].boolean && items[4].is(Json::Type::null) && items[5].string == "x");
}

TEST(json_strings) {
    CHECK(parse_json(R"("\"\\\/\b\f\n\r\t")").string == "\"\\/\b\f\n\r\t");
    CHECK(parse_json(R"("\u0041\u00e9\u20ac\ud83d\ude00")").string == "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    CHECK(parse_json("\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"").string == "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    const std::string with_zero = parse_json(R"("a\u0000b")").string;
    CHECK(with_zero.size() == 3 && with_zero[1] == 0);
}

TEST(json_numbers) {
    CHECK(parse_json("9007199254740992").integer);
    CHECK(!parse_json("9007199254740994").integer);
    CHECK(!parse_json("1.0").integer && !parse_json("1e2").integer);
    CHECK(parse_json("-0").number == 0);
    for (const char* text : {"01", "+1", ".5", "1.", "1e", "1e+", "-", "1e999", "-1e999", "NaN", "Infinity", "0x10", "1_0", "--1"})
        CHECK(refused(text));
}

TEST(json_refusals) {
    for (const char* text : {"", " ", "{", "}", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}",
                             "{\"a\":1 \"b\":2}", "{\"a\":1,\"a\":2}", "{\"a\":1,\"b\":2,\"\\u0061\":3}", "tru", "nul", "True", "1 2", "\"", "\"a",
                             "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\\udc00\"", "\"\n\"",
                             "\"\x01\"", "\"\x80\"", "\"\xc0\xaf\"", "\"\xc3\"", "\"\xe2\x82\"", "\"\xed\xa0\x80\"", "\"\xe0\x80\xaf\"",
                             "\"\xf0\x80\x80\xaf\"", "\"\xf5\x80\x80\x80\"", "\"\xf4\x90\x80\x80\"", "// comment\n1", "'a'", "\xef\xbb\xbf" "1"})
        CHECK(refused(text));
    CHECK(refused(std::string("1\0", 2)));
}

TEST(json_depth) {
    const auto nested = [](int depth) { return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']'); };
    CHECK(!refused(nested(leanconv::kJsonDepth)));
    CHECK(refused(nested(leanconv::kJsonDepth + 2)));
    CHECK(refused(nested(1000000)));
}

TEST(json_every_prefix_is_refused) {
    const std::string text = R"({"a":[1,-2.5e3,true,null,"\u00e9\ud83d\ude00"],"b":{"c":"d"}})";
    for (size_t size = 0; size < text.size(); ++size) CHECK(refused(text.substr(0, size)));
}
