#include "core/pack.h"

#include <bit>

namespace leanconv {

namespace {

// Tensor bytes are little-endian and may lie anywhere.
float float_at(const Tensor& t, int64_t i) {
    const uint8_t* p = t.data + i * 4;
    return std::bit_cast<float>(uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24);
}

Aligned<float> channel_array(const Tensor* t) {
    if (!t) return {};
    Aligned<float> out(static_cast<size_t>(padded_channels(static_cast<int>(t->elements()))));
    for (int64_t c = 0; c < t->elements(); ++c) out[static_cast<size_t>(c)] = float_at(*t, c);
    return out;
}

// Lanes of all blocks; the last one may be narrower.
int all_lanes(int channels) {
    const int last = block_count(channels) - 1;
    return last * kBlock + block_lanes(channels, last);
}

// The taps of one axis for outputs with (output + padding) % stride == remainder of a transposed convolution:
// output * 1 = input * stride - padding + k * dilation, so input = (output + padding) / stride + offset.
std::vector<Tap> transposed_taps(const Op& op, int axis, int remainder) {
    std::vector<Tap> taps;
    for (int k = 0; k < op.kernel[axis]; ++k) {
        const int reach = k * op.dilation[axis];
        if (reach % op.stride[axis] == remainder) taps.push_back({k, -(reach - remainder) / op.stride[axis]});
    }
    return taps;
}

std::vector<Tap> all_taps(const Op& op, int axis) {
    std::vector<Tap> taps;
    for (int k = 0; k < op.kernel[axis]; ++k) taps.push_back({k, k * op.dilation[axis]});
    return taps;
}

void pack_phase(const Op& op, const PackedOp& packed, Phase& phase) {
    const int in = op.in_channels / op.groups, out = op.channels / op.groups;
    const int bytes = (in + 7) / 8;
    const int taps = static_cast<int>(phase.rows.size() * phase.columns.size());
    phase.words = taps * packed.group_words;
    const bool sums = op.kind == OpKind::binary_conv_transpose || op.pad_value != -1;
    for (int g = 0; g < op.groups; ++g) {
        Aligned<uint32_t> weights(static_cast<size_t>(all_lanes(out)) * phase.words);
        Aligned<int32_t> tap_sums(sums ? static_cast<size_t>(taps) * padded_channels(out) : 0);
        for (int o = 0; o < out; ++o) {
            const int block = o / kBlock, lanes = block_lanes(out, block);
            uint32_t* to = weights.data() + int64_t{block} * phase.words * kBlock + o % kBlock;
            int tap = 0;
            for (const Tap& row : phase.rows)
                for (const Tap& column : phase.columns) {
                    const int64_t filter = int64_t{g} * out + o;
                    const uint8_t* from =
                        op.weight->data + ((filter * op.kernel[0] + row.k) * op.kernel[1] + column.k) * bytes;
                    int ones = 0;
                    for (int b = 0; b < bytes; ++b) {
                        const int64_t word = int64_t{tap} * packed.group_words + b / 4;
                        to[word * lanes] |= uint32_t{from[b]} << (b % 4 * 8);
                        ones += std::popcount(from[b]);
                    }
                    if (sums) tap_sums[static_cast<size_t>(tap) * padded_channels(out) + o] = 2 * ones - in;
                    ++tap;
                }
        }
        phase.weights.push_back(std::move(weights));
        phase.tap_sums.push_back(std::move(tap_sums));
    }
}

// The same weights as BinaryWeights::nibbles.
Aligned<uint32_t> nibbles_of(const Aligned<uint32_t>& words, int count, int channels) {
    const int last = block_count(channels) - 1;
    const auto rows = [&](int block) { return (block_lanes(channels, block) + 31) / 32 * 32; };
    Aligned<uint32_t> out((static_cast<size_t>(last) * kBlock + static_cast<size_t>(rows(last))) * static_cast<size_t>(count) * 2);
    uint8_t* bytes = reinterpret_cast<uint8_t*>(out.data());
    for (int b = 0; b <= last; ++b) {
        const int lanes = block_lanes(channels, b);
        const uint32_t* from = words.data() + int64_t{b} * count * kBlock;
        uint8_t* to = bytes + int64_t{b} * count * 8 * kBlock;
        for (int k = 0; k < count; ++k, from += lanes)
            for (int n = 0; n < 8; ++n, to += rows(b))
                for (int c = 0; c < lanes; ++c) to[c] = static_cast<uint8_t>(from[c] >> (4 * n) & 15);
    }
    return out;
}

void pack_binary(const Op& op, PackedOp& packed) {
    const int in = op.in_channels / op.groups;
    packed.group_words = (in + 31) / 32;
    packed.regroup = op.groups > 1 && in % 32 != 0;
    const bool transposed = op.kind == OpKind::binary_conv_transpose;
    for (int y = 0; y < (transposed ? op.stride[0] : 1); ++y)
        for (int x = 0; x < (transposed ? op.stride[1] : 1); ++x) {
            Phase phase;
            phase.remainder[0] = y;
            phase.remainder[1] = x;
            phase.rows = transposed ? transposed_taps(op, 0, y) : all_taps(op, 0);
            phase.columns = transposed ? transposed_taps(op, 1, x) : all_taps(op, 1);
            if (phase.rows.empty() || phase.columns.empty()) phase.rows = phase.columns = {};
            pack_phase(op, packed, phase);
            packed.phases.push_back(std::move(phase));
        }
}

void pack_real(const Op& op, PackedOp& packed) {
    const int in = op.group_in, out = op.channels / op.groups;
    const int64_t terms = int64_t{in} * op.kernel[0] * op.kernel[1];
    packed.depthwise = op.groups > 1 && in == 1 && out == 1 && op.kind != OpKind::windowed_conv;
    if (packed.depthwise) {
        Aligned<float> weights(static_cast<size_t>(terms) * op.channels);
        for (int c = 0; c < op.channels; ++c)
            for (int64_t k = 0; k < terms; ++k) weights[static_cast<size_t>(k * op.channels + c)] = float_at(*op.weight, c * terms + k);
        packed.real.push_back(std::move(weights));
        return;
    }
    for (int g = 0; g < op.groups; ++g) {
        Aligned<float> weights(static_cast<size_t>(all_lanes(out)) * terms);
        for (int o = 0; o < out; ++o) {
            const int block = o / kBlock, lanes = block_lanes(out, block);
            float* to = weights.data() + block * terms * kBlock + o % kBlock;
            for (int64_t k = 0; k < terms; ++k) to[k * lanes] = float_at(*op.weight, (int64_t{g} * out + o) * terms + k);
        }
        packed.real.push_back(std::move(weights));
    }
}

void pack_int8(const Op& op, const Value& input, PackedOp& packed) {
    const int runs = op.kernel[0] * int8_row_runs(op), run_groups = int8_run_groups(op), bytes = int8_run_bytes(op);
    const int groups = runs * run_groups;
    packed.int8 = Aligned<int8_t>(static_cast<size_t>(all_lanes(op.channels)) * groups * 4);
    packed.int8_base = Aligned<int32_t>(static_cast<size_t>(padded_channels(op.channels)));
    const auto* from = reinterpret_cast<const int8_t*>(op.weight->data);
    for (int o = 0; o < op.channels; ++o) {
        const int block = o / kBlock, lanes = block_lanes(op.channels, block);
        int8_t* to = packed.int8.data() + (int64_t{block} * groups * kBlock + o % kBlock) * 4;
        int32_t base = 0;
        for (int r = 0; r < runs; ++r)
            for (int i = 0; i < bytes; ++i, ++from) {
                to[(int64_t{r} * run_groups + i / 4) * lanes * 4 + i % 4] = *from;
                base -= *from * input.zero_of(i % op.in_channels);
            }
        packed.int8_base[static_cast<size_t>(o)] = base;
    }
}

}  // namespace

PackedOp pack(const Program& program, const Op& op, BinaryWeights binary_weights) {
    PackedOp packed;
    if (op.kind == OpKind::int8_conv) pack_int8(op, program.values[static_cast<size_t>(op.inputs[0])], packed);
    if (op.kind == OpKind::binary_conv || op.kind == OpKind::binary_conv_transpose) {
        pack_binary(op, packed);
        if (binary_weights == BinaryWeights::nibbles)
            for (Phase& phase : packed.phases)
                for (Aligned<uint32_t>& group : phase.weights) group = nibbles_of(group, phase.words, op.channels / op.groups);
    }
    if (op.real_conv() || op.kind == OpKind::linear) pack_real(op, packed);
    for (const StepSpec& step : op.steps) packed.steps.push_back({channel_array(step.scale), channel_array(step.bias)});
    return packed;
}

}  // namespace leanconv
