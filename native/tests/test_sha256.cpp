// The vectors of FIPS 180-4 and lengths around a block's end.
#include "check.h"
#include "core/sha256.h"

using leanconv::Sha256;

static std::string digest(const std::string& text) {
    Sha256 sha;
    sha.update(text);
    return sha.hex();
}

TEST(sha256_vectors) {
    CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(digest(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(sha256_in_pieces) {
    for (size_t size : {1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1000}) {
        std::string text;
        for (size_t i = 0; i < size; ++i) text += static_cast<char>(i * 31);
        for (size_t step : {1, 7, 64, 100}) {
            Sha256 sha;
            for (size_t at = 0; at < size; at += step) sha.update(std::string_view(text).substr(at, step));
            CHECK(sha.hex() == digest(text));
        }
    }
}
