// Maps with their border in blocks of kWords words a pixel, as the tiles read them; included by aw_inl.h.

namespace {

AW_INLINE void put_floats(float* to, const float* from, int n) {
    if (n == kWords) {
        __builtin_memcpy(to, from, kPixel);
        return;
    }
    for (int i = 0; i < kWords; ++i) to[i] = i < n ? from[i] : 0.0f;
}

AW_INLINE void put_floats(float* to, const uint16_t* from, int n) {
    if (n == kWords)
        for (int i = 0; i < kWords; ++i) to[i] = wide(from[i]);
    else
        for (int i = 0; i < kWords; ++i) to[i] = i < n ? wide(from[i]) : 0.0f;
}

AW_INLINE void put_pixel(char* to, const uint16_t* from, int n) {
    if (n == 2 * kWords)
        __builtin_memcpy(to, from, kPixel);
    else if (n == kWords) {
        __builtin_memcpy(to, from, kPixel / 2);
        __builtin_memset(to + kPixel / 2, 0, kPixel / 2);
    } else {
        __builtin_memset(to, 0, kPixel);
        __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(uint16_t));
    }
}

// Two pixels, channel by channel; a null one is zeros.
AW_INLINE void put_pairs(uint32_t* to, const uint16_t* a, const uint16_t* b, int n) {
    if (a && b && n == kWords)
        for (int i = 0; i < kWords; ++i) to[i] = a[i] | static_cast<uint32_t>(b[i]) << 16;
    else
        for (int i = 0; i < kWords; ++i)
            to[i] = i < n ? (a ? a[i] : 0u) | static_cast<uint32_t>(b ? b[i] : 0u) << 16 : 0u;
}

// One plane of a sample.
void frame_plane(const Map& m, int sample, int group, int block, char* to) {
    const int step = m.words == Words::channel_pairs ? 2 * kWords : kWords;
    const int n = static_cast<int>(smaller(step, m.per_group - block * step));
    const int64_t channels = m.channels(), first = int64_t{group} * m.per_group + block * step;
    for (int r = 0; r < m.rows; ++r, to += m.row_bytes()) {
        const int row = r - m.top;
        if (row < 0 || row >= m.height) {
            __builtin_memset(to, 0, static_cast<size_t>(m.row_bytes()));
            continue;
        }
        const int64_t at = (int64_t{sample} * m.height + row) * m.width * channels + first;
        char* pixel = to;
        if (m.words == Words::floats && !m.bf16) {
            const float* data = static_cast<const float*>(m.data) + at;
            for (int s = 0; s < m.slots; ++s, pixel += kPixel)
                if (m.column[s] < 0)
                    __builtin_memset(pixel, 0, kPixel);
                else
                    put_floats(reinterpret_cast<float*>(pixel), data + m.column[s] * channels, n);
            continue;
        }
        const uint16_t* data = static_cast<const uint16_t*>(m.data) + at;
        for (int s = 0; s < m.slots; ++s, pixel += kPixel) {
            const uint16_t* from = m.column[s] < 0 ? nullptr : data + m.column[s] * channels;
            if (m.words == Words::column_pairs) {
                const uint16_t* second = m.partner[s] < 0 ? nullptr : data + m.partner[s] * channels;
                put_pairs(reinterpret_cast<uint32_t*>(pixel), from, second, n);
            } else if (!from)
                __builtin_memset(pixel, 0, kPixel);
            else if (m.words == Words::floats)
                put_floats(reinterpret_cast<float*>(pixel), from, n);
            else
                put_pixel(pixel, from, n);
        }
    }
}

void frame_sample(const Map& m, int sample, int group0, int group1, char* to) {
    for (int g = group0; g < group1; ++g)
        for (int b = 0; b < m.blocks; ++b) frame_plane(m, sample, g, b, to + (int64_t{g} * m.blocks + b) * m.plane_bytes());
}

}  // namespace
