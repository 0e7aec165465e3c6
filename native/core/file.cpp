#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/json.h"
#include "core/sha256.h"

namespace leanconv {

namespace {

constexpr const char* kAgain = "; copy or download it again";
constexpr uint64_t kMaxHeader = 100'000'000;  // as in the safetensors library
constexpr int kFormatVersion = 1;

[[noreturn]] void damaged(const std::string& what) { fail("damaged (", what, ")", kAgain); }

// The value of a metadata entry, all of which are strings.
const std::string& metadata(const Json& entries, const char* key) {
    const Json* value = entries.find(key);
    if (!value) damaged(text("its metadata has no '", key, "'"));
    return value->string;
}

void check_version(const std::string& version) {
    if (version == std::to_string(kFormatVersion)) return;
    const bool number = !version.empty() && version.size() < 9 && version.find_first_not_of("0123456789") == std::string::npos;
    if (number && std::stoi(version) > kFormatVersion)
        fail("format version ", version, " is newer than this leanconv reads (", kFormatVersion, "); upgrade leanconv");
    damaged("its format version is not a known number");
}

int64_t integer(const Json& value, const char* what, int64_t max) {
    if (!value.is(Json::Type::number) || !value.integer || value.number < 0 || value.number > static_cast<double>(max))
        damaged(what);
    return static_cast<int64_t>(value.number);
}

struct Region {
    int64_t begin, end;
};

Region parse_tensor(const std::string& name, const Json& entry, int64_t data_size, Tensor& tensor) {
    const auto bad = [&](const char* what) { damaged(text("tensor '", name, "': ", what)); };
    if (name.empty() || std::any_of(name.begin(), name.end(), [](unsigned char c) { return c <= 0x20 || c == 0x7f; }))
        damaged("a tensor's name is empty or has blanks");
    if (!entry.is(Json::Type::object) || entry.members.size() != 3) bad("unexpected header fields");
    const Json* dtype = entry.find("dtype");
    const Json* shape = entry.find("shape");
    const Json* offsets = entry.find("data_offsets");
    if (!dtype || !shape || !offsets) bad("unexpected header fields");
    if (dtype->string == "U8")
        tensor.dtype = DType::u8;
    else if (dtype->string == "F32")
        tensor.dtype = DType::f32;
    else if (dtype->string == "I8")
        tensor.dtype = DType::i8;
    else
        bad("its type is none of U8, I8 and F32");
    if (!shape->is(Json::Type::array) || shape->items.size() > 8) bad("its shape is not a short list");
    int64_t bytes = tensor.dtype == DType::f32 ? 4 : 1;
    for (const Json& dim : shape->items) {
        const int64_t n = integer(dim, "a tensor's shape is not made of numbers", int64_t{1} << 40);
        tensor.shape.push_back(n);
        if (n != 0 && bytes > (int64_t{1} << 50) / n) bad("its shape is too large");
        bytes *= n;
    }
    if (!offsets->is(Json::Type::array) || offsets->items.size() != 2) bad("its offsets are not a pair");
    const Region region = {integer(offsets->items[0], "a tensor's offset is out of range", int64_t{1} << 50),
                           integer(offsets->items[1], "a tensor's offset is out of range", int64_t{1} << 50)};
    if (region.end - region.begin != bytes) bad("its size and its shape disagree");
    if (region.end > data_size)
        fail("truncated (", data_size, " bytes of tensors, at least ", region.end, " expected)", kAgain);
    tensor.size = bytes;
    return region;
}

std::string digest(const Container& c) {
    Sha256 sha;
    sha.update(c.program);
    for (const auto& [name, tensor] : c.tensors) {  // std::map: ascending bytes
        std::string line = "\n" + name + (tensor.dtype == DType::f32 ? " F32 " : tensor.dtype == DType::i8 ? " I8 " : " U8 ");
        for (size_t i = 0; i < tensor.shape.size(); ++i) line += text(i ? "," : "", tensor.shape[i]);
        sha.update(line + "\n");
        sha.update(tensor.data, static_cast<size_t>(tensor.size));
    }
    return sha.hex();
}

}  // namespace

std::vector<uint8_t> read_bytes(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const auto stop = [&] {
        const int code = errno;
        if (file >= 0) close(file);
        throw FileError(code, path);
    };
    if (file < 0) stop();
    struct stat status{};
    if (fstat(file, &status) != 0) stop();
    if (S_ISDIR(status.st_mode)) {
        errno = EISDIR;
        stop();
    }
    std::vector<uint8_t> bytes(S_ISREG(status.st_mode) ? static_cast<size_t>(status.st_size) + 1 : 1 << 16);
    size_t filled = 0;
    for (;;) {
        if (filled == bytes.size()) bytes.resize(bytes.size() * 2);
        const ssize_t n = read(file, bytes.data() + filled, bytes.size() - filled);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) stop();
        if (n == 0) break;
        filled += static_cast<size_t>(n);
    }
    close(file);
    bytes.resize(filled);
    return bytes;
}

Container parse_container(std::vector<uint8_t> bytes) {
    Container c;
    c.bytes = std::move(bytes);
    const size_t size = c.bytes.size();
    if (size == 0) fail("truncated (the file is empty)", kAgain);
    if (size < 9) fail("not a leanconv file (", size, " bytes)");
    uint64_t header_size = 0;
    for (int i = 7; i >= 0; --i) header_size = header_size << 8 | c.bytes[static_cast<size_t>(i)];
    if (header_size < 2 || header_size > kMaxHeader || c.bytes[8] != '{') fail("not a leanconv file");
    if (header_size > size - 8) fail("truncated (", size, " bytes, at least ", header_size + 8, " expected)", kAgain);

    Json header;
    try {
        header = parse_json({reinterpret_cast<const char*>(c.bytes.data()) + 8, static_cast<size_t>(header_size)});
    } catch (const Error& error) {
        damaged(text("its header is ", error.what()));
    }
    const Json* entries = header.find("__metadata__");
    const Json* format = entries ? entries->find("format") : nullptr;
    if (!format || format->string != "leanconv") fail("not a leanconv file (a safetensors file of another kind)");
    for (const auto& [key, value] : entries->members)
        if (!value.is(Json::Type::string)) damaged("its metadata is not made of strings");
    check_version(metadata(*entries, "format_version"));
    c.program = metadata(*entries, "program");

    const int64_t data_size = static_cast<int64_t>(size - 8 - header_size);
    std::vector<Region> regions;
    for (const auto& [name, entry] : header.members) {
        if (name == "__metadata__") continue;
        Tensor tensor;
        regions.push_back(parse_tensor(name, entry, data_size, tensor));
        tensor.data = c.bytes.data() + 8 + header_size + regions.back().begin;
        c.tensors.emplace(name, std::move(tensor));
    }
    std::sort(regions.begin(), regions.end(),
              [](Region a, Region b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    int64_t end = 0;
    for (const Region& region : regions) {
        if (region.begin != end) damaged("its tensors overlap or leave a gap");
        end = region.end;
    }
    if (end != data_size) damaged("there are bytes after the last tensor");
    if (digest(c) != metadata(*entries, "sha256")) damaged("checksum does not match");
    return c;
}

}  // namespace leanconv
