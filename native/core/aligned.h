// A fixed-size array on a 64-byte boundary, zero-filled.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace leanconv {

template <class T>
class Aligned {
public:
    Aligned() = default;
    explicit Aligned(size_t count) : size_(count) {
        if (count == 0) return;
        if (count > (size_t{1} << 46) / sizeof(T)) throw std::bad_alloc();
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        void* p = std::aligned_alloc(64, bytes);
        if (!p) throw std::bad_alloc();
        data_.reset(static_cast<T*>(p));
        std::memset(p, 0, bytes);
    }

    T* data() const { return data_.get(); }
    size_t size() const { return size_; }
    T& operator[](size_t i) const { return data_.get()[i]; }

private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    std::unique_ptr<T[], Free> data_;
    size_t size_ = 0;
};

}  // namespace leanconv
