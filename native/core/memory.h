// Places buffers with known lifetimes in one arena, so that those that are never alive together share bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace leanconv {

class MemoryPlanner {
public:
    // A buffer that is alive from operator `first` to operator `last`, both included.
    int buffer(int64_t bytes, int first, int last) {
        buffers_.push_back({(std::max<int64_t>(bytes, 1) + 63) / 64 * 64, first, last, 0, false});
        return static_cast<int>(buffers_.size()) - 1;
    }

    void extend(int id, int first, int last) {
        Buffer& b = buffers_[static_cast<size_t>(id)];
        b.first = std::min(b.first, first);
        b.last = std::max(b.last, last);
    }

    // A buffer whose frame stays zero: shared only with those of the same shape. Ask in ascending order of `first`
    // within a shape, or it will not be shared.
    using Shape = std::array<int64_t, 7>;
    int framed(const Shape& shape, int64_t bytes, int first, int last) {
        for (Framed& f : framed_)
            if (f.shape == shape && f.last < first) {
                f.last = last;
                return f.id;
            }
        const int id = buffer(bytes, first, last);
        buffers_.back().zeroed = true;
        framed_.push_back({shape, id, last});
        return id;
    }

    // Largest first, each at the lowest place that is free during its life; zeroed ones behind, for themselves.
    void lay_out() {
        std::vector<int> order;
        for (int i = 0; i < static_cast<int>(buffers_.size()); ++i)
            if (!buffers_[static_cast<size_t>(i)].zeroed) order.push_back(i);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return at(a).bytes > at(b).bytes; });
        std::vector<int> placed;  // by offset
        int64_t end = kStart;
        for (int id : order) {
            Buffer& b = at(id);
            int64_t offset = kStart;
            for (int other : placed) {
                const Buffer& o = at(other);
                if (o.last < b.first || o.first > b.last) continue;
                if (o.offset >= offset + b.bytes) break;
                offset = std::max(offset, o.offset + o.bytes);
            }
            b.offset = offset;
            end = std::max(end, offset + b.bytes);
            placed.insert(std::upper_bound(placed.begin(), placed.end(), id,
                                           [&](int x, int y) { return at(x).offset < at(y).offset; }),
                          id);
        }
        zeroed_from_ = end;
        for (Buffer& b : buffers_)
            if (b.zeroed) {
                b.offset = end;
                end += b.bytes;
            }
        bytes_ = end + 64;
    }

    int64_t offset(int id) const { return buffers_[static_cast<size_t>(id)].offset; }
    int64_t bytes() const { return bytes_; }
    int64_t zeroed_from() const { return zeroed_from_; }

private:
    static constexpr int64_t kStart = 64;  // offset 0 means null

    struct Buffer {
        int64_t bytes;
        int first, last;
        int64_t offset;
        bool zeroed;
    };
    struct Framed {
        Shape shape;
        int id, last;
    };

    Buffer& at(int id) { return buffers_[static_cast<size_t>(id)]; }

    std::vector<Buffer> buffers_;
    std::vector<Framed> framed_;
    int64_t bytes_ = 0, zeroed_from_ = 0;
};

}  // namespace leanconv
