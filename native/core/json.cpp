#include "core/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"

namespace leanconv {

const Json* Json::find(std::string_view key) const {
    for (const auto& [name, value] : members)
        if (name == key) return &value;
    return nullptr;
}

namespace {

class Parser {
public:
    explicit Parser(std::string_view s) : s_(s) {}

    Json document() {
        Json value = parse(0);
        space();
        if (at_ != s_.size()) stop("text after the value");
        return value;
    }

private:
    [[noreturn]] void stop(const char* reason) const { fail("not valid JSON at byte ", at_, ": ", reason); }

    int peek() const { return at_ < s_.size() ? static_cast<unsigned char>(s_[at_]) : -1; }

    void space() {
        while (at_ < s_.size() && (s_[at_] == ' ' || s_[at_] == '\t' || s_[at_] == '\n' || s_[at_] == '\r')) ++at_;
    }

    void expect(char c, const char* reason) {
        space();
        if (peek() != c) stop(reason);
        ++at_;
    }

    bool accept(char c) {
        space();
        if (peek() != c) return false;
        ++at_;
        return true;
    }

    void word(std::string_view w) {
        if (s_.substr(at_, w.size()) != w) stop("unknown word");
        at_ += w.size();
    }

    Json parse(int depth) {
        if (depth > kJsonDepth) stop("nested too deeply");
        space();
        Json value;
        switch (peek()) {
            case '{': object(value, depth); break;
            case '[': array(value, depth); break;
            case '"':
                value.type = Json::Type::string;
                value.string = string();
                break;
            case 't':
            case 'f':
                value.type = Json::Type::boolean;
                value.boolean = peek() == 't';
                word(value.boolean ? "true" : "false");
                break;
            case 'n': word("null"); break;
            case -1: stop("the text ends early");
            default: number(value);
        }
        return value;
    }

    void object(Json& value, int depth) {
        value.type = Json::Type::object;
        ++at_;
        if (accept('}')) return;
        do {
            space();
            if (peek() != '"') stop("a key in quotes was expected");
            std::string key = string();
            expect(':', "a colon was expected");
            value.members.push_back({std::move(key), parse(depth + 1)});
        } while (accept(','));
        expect('}', "a comma or closing brace was expected");
        std::vector<std::string_view> keys;
        keys.reserve(value.members.size());
        for (const auto& member : value.members) keys.push_back(member.name);
        std::sort(keys.begin(), keys.end());
        if (std::adjacent_find(keys.begin(), keys.end()) != keys.end()) stop("a key appears twice");
    }

    void array(Json& value, int depth) {
        value.type = Json::Type::array;
        ++at_;
        if (accept(']')) return;
        do value.items.push_back(parse(depth + 1));
        while (accept(','));
        expect(']', "a comma or closing bracket was expected");
    }

    void digits() {
        if (peek() < '0' || peek() > '9') stop("a digit was expected");
        while (peek() >= '0' && peek() <= '9') ++at_;
    }

    void number(Json& value) {
        const size_t start = at_;
        bool integer = true;
        if (peek() == '-') ++at_;
        if (peek() == '0')
            ++at_;
        else
            digits();
        if (peek() == '.') {
            integer = false;
            ++at_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            integer = false;
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            digits();
        }
        value.type = Json::Type::number;
        const auto [end, error] = std::from_chars(s_.data() + start, s_.data() + at_, value.number);
        if (error != std::errc() || end != s_.data() + at_ || !std::isfinite(value.number)) {
            at_ = start;
            stop("a number out of range");
        }
        value.integer = integer && std::fabs(value.number) <= 9007199254740992.0;
    }

    unsigned hex4() {
        unsigned code = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const int c = peek();
            if (c >= '0' && c <= '9')
                code = code * 16 + static_cast<unsigned>(c - '0');
            else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
                code = code * 16 + static_cast<unsigned>((c | 32) - 'a' + 10);
            else
                stop("a bad \\u escape");
        }
        return code;
    }

    static void append_utf8(std::string& out, unsigned code) {
        if (code < 0x80) {
            out += static_cast<char>(code);
        } else if (code < 0x800) {
            out += static_cast<char>(0xc0 | code >> 6);
            out += static_cast<char>(0x80 | (code & 63));
        } else if (code < 0x10000) {
            out += static_cast<char>(0xe0 | code >> 12);
            out += static_cast<char>(0x80 | (code >> 6 & 63));
            out += static_cast<char>(0x80 | (code & 63));
        } else {
            out += static_cast<char>(0xf0 | code >> 18);
            out += static_cast<char>(0x80 | (code >> 12 & 63));
            out += static_cast<char>(0x80 | (code >> 6 & 63));
            out += static_cast<char>(0x80 | (code & 63));
        }
    }

    void escape(std::string& out) {
        const int c = peek();
        ++at_;
        switch (c) {
            case '"': case '\\': case '/': out += static_cast<char>(c); return;
            case 'b': out += '\b'; return;
            case 'f': out += '\f'; return;
            case 'n': out += '\n'; return;
            case 'r': out += '\r'; return;
            case 't': out += '\t'; return;
            case 'u': break;
            default: --at_; stop("an unknown escape");
        }
        unsigned code = hex4();
        if (code >= 0xdc00 && code < 0xe000) stop("half of a surrogate pair");
        if (code >= 0xd800 && code < 0xdc00) {
            if (s_.substr(at_, 2) != "\\u") stop("half of a surrogate pair");
            at_ += 2;
            const unsigned low = hex4();
            if (low < 0xdc00 || low >= 0xe000) stop("half of a surrogate pair");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        append_utf8(out, code);
    }

    // One character of more than one byte: shortest form, no surrogates, at most U+10FFFF.
    void multibyte(std::string& out) {
        const unsigned lead = static_cast<unsigned>(peek());
        const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4) stop("not UTF-8");
        unsigned code = lead & (more == 1 ? 0x1fu : more == 2 ? 0x0fu : 0x07u);
        if (s_.size() - at_ <= static_cast<size_t>(more)) stop("not UTF-8");
        for (int i = 1; i <= more; ++i) {
            const unsigned c = static_cast<unsigned char>(s_[at_ + i]);
            if ((c & 0xc0) != 0x80) stop("not UTF-8");
            code = code << 6 | (c & 63);
        }
        if ((more == 2 && code < 0x800) || (more == 3 && code < 0x10000) || code > 0x10ffff ||
            (code >= 0xd800 && code < 0xe000))
            stop("not UTF-8");
        out.append(s_, at_, static_cast<size_t>(more) + 1);
        at_ += static_cast<size_t>(more) + 1;
    }

    std::string string() {
        ++at_;  // the opening quote
        std::string out;
        for (;;) {
            const size_t start = at_;
            while (at_ < s_.size() && s_[at_] != '"' && s_[at_] != '\\' && static_cast<unsigned char>(s_[at_]) >= 0x20 &&
                   static_cast<unsigned char>(s_[at_]) < 0x80)
                ++at_;
            out.append(s_, start, at_ - start);
            const int c = peek();
            if (c == '"') {
                ++at_;
                return out;
            }
            if (c == -1) stop("a string without an end");
            if (c < 0x20) stop("a control character in a string");
            if (c == '\\') {
                ++at_;
                escape(out);
            } else {
                multibyte(out);
            }
        }
    }

    std::string_view s_;
    size_t at_ = 0;
};

}  // namespace

Json parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace leanconv
