// The attention maps of AW-convolution for one sample; included like aw_inl.h, behind it.
//
// V::div, min, max (the second argument where one is NaN), ldexp(a, n) = a * 2^n for whole n.

namespace {

// Relative error below 3e-7.
inline V::F exponential(V::F x) {
    x = V::min(V::set1(88.0f), V::max(V::set1(-87.0f), x));
    const V::F magic = V::set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const V::F n = V::add(V::add(V::mul(x, V::set1(1.44269504f)), magic), V::set1(-12582912.0f));
    V::F r = V::fma(n, V::set1(-0.693359375f), x);
    r = V::fma(n, V::set1(2.12194440e-4f), r);
    V::F sum = V::set1(1.0f / 720);
    constexpr float kFactors[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (float c : kFactors) sum = V::fma(sum, r, V::set1(c));
    return V::ldexp(sum, n);
}

inline V::F sigmoid(V::F x) {
    return V::div(V::set1(1.0f), V::add(V::set1(1.0f), exponential(V::mul(x, V::set1(-1.0f)))));
}

inline V::F gated(Gate gate, V::F x) {
    switch (gate) {
        case Gate::sigmoid: return sigmoid(x);
        case Gate::tanh: return V::fma(V::set1(2.0f), sigmoid(V::add(x, x)), V::set1(-1.0f));
        default: return x;
    }
}

// x * scale + bias of one channel.
struct Affine {
    float scale = 1, bias = 0;
    Affine(const Norm& n, int c) {
        if (!n.mean) return;
        scale = static_cast<float>((n.weight ? n.weight[c] : 1.0) / __builtin_sqrt(n.variance[c] + n.eps));
        bias = (n.bias ? n.bias[c] : 0.0f) - n.mean[c] * scale;
    }
};

// to[row][position] = the sum over `terms` of weight[row][term] * from[term][position], for `width` positions, a whole
// number of vectors; ROWS rows at a time.
template <int ROWS, class Finish>
AW_INLINE void product(const float* weight, int terms, const float* from, int width, int row, const Finish& finish) {
    for (int p = 0; p < width; p += V::kLanes) {
        V::F sum[ROWS];
        AW_UNROLL for (int i = 0; i < ROWS; ++i) sum[i] = V::zero();
        for (int k = 0; k < terms; ++k) {
            const V::F x = V::load(from + int64_t{k} * width + p);
            AW_UNROLL for (int i = 0; i < ROWS; ++i) sum[i] = V::fma(V::set1(weight[int64_t{row + i} * terms + k]), x, sum[i]);
        }
        AW_UNROLL for (int i = 0; i < ROWS; ++i) finish(row + i, p, sum[i]);
    }
}

template <class Finish>
void products(const float* weight, int rows, int terms, const float* from, int width, const Finish& finish) {
    int row = 0;
    for (; row + 8 <= rows; row += 8) product<8>(weight, terms, from, width, row, finish);
    for (; row < rows; ++row) product<1>(weight, terms, from, width, row, finish);
}

int attention_width(const Attention& a) { return (a.positions() + V::kLanes - 1) / V::kLanes * V::kLanes; }

size_t attention_scratch(const Attention& a) {
    return static_cast<size_t>(attention_width(a)) * static_cast<size_t>(a.channels + a.hidden) * sizeof(float);
}

// The averages, [channel][position].
void average(const Attention& a, const float* x, int width, float* to) {
    for (int i = 0; i < a.pooled_rows; ++i) {
        const int row0 = static_cast<int>(int64_t{i} * a.height / a.pooled_rows);
        const int row1 = static_cast<int>((int64_t{i + 1} * a.height + a.pooled_rows - 1) / a.pooled_rows);
        for (int j = 0; j < a.pooled_cols; ++j) {
            const int col0 = static_cast<int>(int64_t{j} * a.width / a.pooled_cols);
            const int col1 = static_cast<int>((int64_t{j + 1} * a.width + a.pooled_cols - 1) / a.pooled_cols);
            const float share = 1.0f / static_cast<float>((row1 - row0) * (col1 - col0));
            constexpr int kMany = 4;  // vectors at a time
            for (int c = 0; c < a.channels; c += kMany * V::kLanes) {
                V::F sum[kMany];
                for (int v = 0; v < kMany; ++v) sum[v] = V::zero();
                const int n = static_cast<int>(smaller(kMany * V::kLanes, a.channels - c));
                for (int row = row0; row < row1; ++row) {
                    const float* at = x + (int64_t{row} * a.width + col0) * a.channels + c;
                    if (n == kMany * V::kLanes)
                        for (int col = col0; col < col1; ++col, at += a.channels)
                            AW_UNROLL for (int v = 0; v < kMany; ++v) sum[v] = V::add(sum[v], V::load(at + v * V::kLanes));
                    else
                        for (int col = col0; col < col1; ++col, at += a.channels)
                            for (int v = 0; v * V::kLanes < n; ++v) sum[v] = V::add(sum[v], V::load_n(at + v * V::kLanes, n - v * V::kLanes));
                }
                alignas(64) float all[kMany * V::kLanes];
                for (int v = 0; v < kMany; ++v) V::store(all + v * V::kLanes, V::mul(sum[v], V::set1(share)));
                for (int l = 0; l < n; ++l) to[int64_t{c + l} * width + i * a.pooled_cols + j] = all[l];
            }
        }
    }
}

void attention(const Attention& a, int sample, char* scratch) {
    const int width = attention_width(a), positions = a.positions();
    float* pooled = reinterpret_cast<float*>(scratch);
    float* hidden = pooled + int64_t{a.channels} * width;
    for (int c = 0; c < a.channels; ++c)
        for (int p = positions; p < width; ++p) pooled[int64_t{c} * width + p] = 0;
    average(a, a.x + int64_t{sample} * a.height * a.width * a.channels, width, pooled);
    products(a.first, a.hidden, a.channels, pooled, width, [&](int row, int p, V::F sum) {
        const Affine affine(a.norm1, row);
        const V::F y = V::fma(sum, V::set1(affine.scale), V::set1(affine.bias));
        V::store(hidden + int64_t{row} * width + p, V::max(V::zero(), y));
    });
    float* out = a.out + int64_t{sample} * a.maps * positions;
    products(a.second, a.maps, a.hidden, hidden, width, [&](int row, int p, V::F sum) {
        const Affine affine(a.norm2, row);
        const V::F y = gated(a.gate, V::fma(sum, V::set1(affine.scale), V::set1(affine.bias)));
        V::store_n(out + int64_t{row} * positions + p, V::add(y, V::set1(a.offset)), positions - p);
    });
}

}  // namespace
