// The packed file's container (docs/format.md): safetensors with a checksum. Every byte is accounted for and checked.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace leanconv {

enum class DType : uint8_t { u8, f32, i8 };

struct Tensor {
    DType dtype = DType::u8;
    std::vector<int64_t> shape;
    const uint8_t* data = nullptr;  // little-endian, any alignment; inside Container::bytes
    int64_t size = 0;               // bytes

    int64_t elements() const { return dtype == DType::f32 ? size / 4 : size; }
};

struct Container {
    std::vector<uint8_t> bytes;
    std::string program;  // JSON text
    std::map<std::string, Tensor> tensors;
};

// A file that cannot be opened or read.
struct FileError : std::system_error {
    FileError(int code, const std::string& path) : std::system_error(code, std::generic_category(), path), path(path) {}
    std::string path;
};

// Reads a whole file. Throws FileError.
std::vector<uint8_t> read_bytes(const std::string& path);

// Throws Error, without the file's name: "damaged (...)", "truncated (...)", "not a leanconv file (...)", ...
Container parse_container(std::vector<uint8_t> bytes);

}  // namespace leanconv
