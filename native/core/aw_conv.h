// AW-convolution for training: y[n] = conv2d(x[n], weight * gain[n]) and its gradients.
#pragma once

#include <cstdint>
#include <string>

namespace leanconv::aw {

struct Shape {
    int64_t samples, in_channels, height, width, out_channels, groups;
    int64_t kernel[2], stride[2], padding[2], dilation[2];

    int64_t out_size(int axis) const {
        const int64_t size = axis ? width : height;
        return (size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis] + 1;
    }
};

// A map [N, H, W, C] without gaps.
struct Pixels {
    void* data;
    bool bf16;
};

// float [out_channels, in_channels / groups, h, w] with strides in elements.
struct Weight {
    float* data;
    int64_t strides[4];
};

// float [N, g, O, I, h, w] without gaps; axes but the first may be 1.
struct Gains {
    float* data;
    int64_t sizes[6];
};

struct Setting {
    int threads;
    std::string isa;  // "": the best, or what LEANCONV_ISA names
};

// Throws Error for sizes that do not fit; the arrays are as large as the sizes say.
void forward(const Shape& shape, Pixels x, const Weight& weight, const Gains& gain, Pixels y, const Setting& setting);
void input_gradient(const Shape& shape, Pixels grad_y, const Weight& weight, const Gains& gain, Pixels grad_x,
                    const Setting& setting);
// grad_weight has its own strides; grad_gain the sizes of gain.
void weight_gradient(const Shape& shape, Pixels x, Pixels grad_y, const Weight& weight, const Gains& gain,
                     const Weight& grad_weight, const Gains& grad_gain, const Setting& setting);

// The attention maps of all samples (kernels/aw_kernels.h). `x` has `samples` of them.
struct Attention;
void attention(int64_t samples, const Attention& a, const Setting& setting);

}  // namespace leanconv::aw
