// The entries of a table, with the arithmetic `Pairs` for words of two bfloat16 (`Floats` where there is none).

namespace {

template <class Pairs>
void pack(const Packing& k, const Filters& f, int group, int block, int plane0, int plane1, float* to) {
    if (k.depthwise)
        pack_depthwise(k, f, block, to);
    else if (k.halves == 2)
        pack_with<Pairs>(k, f, group, block, plane0, plane1, to);
    else
        pack_with<Floats>(k, f, group, block, plane0, plane1, to);
}

template <class Pairs>
void correlate(const Correlation& a, const Part& part, char* scratch) {
    if (a.depthwise)
        correlate_depthwise(a, part, scratch);
    else if (a.source.words == Words::channel_pairs)
        correlate_with<Pairs>(a, part, scratch);
    else
        correlate_with<Floats>(a, part, scratch);
}

template <class Pairs>
void weight_gradient(const WeightGradient& a, const Part& part, float* weight_grad, float* gain_grad, char* scratch) {
    if (a.depthwise)
        gradient_depthwise(a, part, weight_grad, gain_grad, scratch);
    else if (a.source.words == Words::column_pairs)
        gradient_with<Pairs>(a, part, weight_grad, gain_grad, scratch);
    else
        gradient_with<Floats>(a, part, weight_grad, gain_grad, scratch);
}

size_t correlate_scratch(const Correlation& a) {
    if (a.depthwise) return static_cast<size_t>(a.source.plane_bytes() + int64_t{a.taps} * kPixel);
    return static_cast<size_t>(Cut(a, packing(a)).bytes());
}

int correlate_samples(const Correlation& a) { return a.depthwise ? 1 : Cut(a, packing(a)).samples; }

int weight_gradient_samples(const WeightGradient& a) { return a.depthwise ? 1 : GradientCut(a, packing(a)).samples; }

size_t weight_gradient_scratch(const WeightGradient& a) {
    if (a.depthwise)
        return static_cast<size_t>(a.source.plane_bytes() + (int64_t{a.out_height} * a.out_width + a.taps + 1) * kPixel);
    return static_cast<size_t>(GradientCut(a, packing(a)).bytes());
}

template <class Pairs>
constexpr Kernels table(const char* name, bool (*supported)(), bool dots) {
    return {name, supported, V::kLanes, dots, pack<Pairs>, unpack, correlate_samples, correlate_scratch, correlate<Pairs>,
            weight_gradient_samples, weight_gradient_scratch, weight_gradient<Pairs>, attention_scratch, attention};
}

}  // namespace
