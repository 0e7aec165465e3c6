import pytest
import torch
from torch import nn

from leanconv.nn.bam import BAM


def spread(module):
    """Norms that do something."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
            m.running_mean.uniform_(-0.5, 0.5)
            m.running_var.uniform_(0.5, 2)
    return module.double().eval()


def norm(v, bn, c):
    """One channel of a batch norm in evaluation, on any tensor."""
    return (v - bn.running_mean[c]) / torch.sqrt(bn.running_var[c] + bn.eps) * bn.weight[c] + bn.bias[c]


def oracle(bam, x, dilation):
    """Loops over pictures, channels, positions and taps."""
    y = torch.empty_like(x)
    c_in, c_norm, _, c_out = bam.channel
    s_in, s_norm, _, d1, n1, _, d2, n2, _, s_out = bam.spatial
    _, _, height, width = x.shape
    for n, picture in enumerate(x):
        mean = picture.sum((1, 2)) / (height * width)
        hidden = c_in.weight[:, :, 0, 0] @ mean + c_in.bias
        hidden = torch.stack([norm(v, c_norm, c) for c, v in enumerate(hidden)]).relu()
        channel = c_out.weight[:, :, 0, 0] @ hidden + c_out.bias

        maps = torch.einsum("oc,chw->ohw", s_in.weight[:, :, 0, 0], picture) + s_in.bias[:, None, None]
        maps = torch.stack([norm(v, s_norm, c) for c, v in enumerate(maps)]).relu()
        for conv, bn in ((d1, n1), (d2, n2)):
            out = conv.bias[:, None, None].repeat(1, height, width)
            for i in range(height):
                for j in range(width):
                    for a in range(3):
                        for b in range(3):
                            u, v = i + dilation * (a - 1), j + dilation * (b - 1)
                            if 0 <= u < height and 0 <= v < width:
                                out[:, i, j] += conv.weight[:, :, a, b] @ maps[:, u, v]
            maps = torch.stack([norm(v, bn, c) for c, v in enumerate(out)]).relu()
        spatial = torch.einsum("c,chw->hw", s_out.weight[0, :, 0, 0], maps) + s_out.bias
        y[n] = picture * (1 + torch.sigmoid(channel[:, None, None] * spatial))
    return y


@torch.no_grad()
@pytest.mark.parametrize(
    "shape, ratio, dilation",
    [((1, 8, 6, 7), 2, 4), ((2, 32, 5, 3), 16, 4), ((3, 5, 1, 1), 16, 4), ((2, 12, 9, 4), 3, 1)],
)
def test_against_loops(shape, ratio, dilation):
    torch.manual_seed(0)
    bam = spread(BAM(shape[1], rd_ratio=ratio, dilation=dilation))
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(bam(x), oracle(bam, x, dilation))


@pytest.mark.parametrize("channels, hidden", [(256, 16), (64, 4), (24, 1), (8, 1)])
def test_parameters(channels, hidden):
    count = sum(p.numel() for p in BAM(channels).parameters())
    channel = 2 * channels * hidden + channels + hidden + 2 * hidden
    spatial = channels * hidden + 2 * 9 * hidden**2 + hidden + (3 + 2 * 3) * hidden + 1
    assert count == channel + spatial


def test_gate_lies_between_one_and_two_and_is_one_and_a_half_without_a_branch():
    torch.manual_seed(0)
    bam = BAM(16).eval()
    x = torch.rand(2, 16, 6, 6) + 0.1
    gate = bam(x) / x
    assert (gate > 1).all() and (gate < 2).all() and gate.std() > 1e-4
    nn.init.zeros_(bam.spatial[-1].weight)
    nn.init.zeros_(bam.spatial[-1].bias)
    torch.testing.assert_close(bam(x), 1.5 * x)


def test_gradients():
    torch.manual_seed(0)
    bam = BAM(6, rd_ratio=2).double()  # training: batch statistics
    x = torch.randn(3, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bam, x)
    bam(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in bam.parameters())


def test_exports_with_a_dynamic_batch():
    torch.manual_seed(0)
    bam = BAM(8).eval()
    exported = torch.export.export(
        bam, (torch.randn(2, 8, 5, 6),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    for batch in (1, 5):
        x = torch.randn(batch, 8, 5, 6)
        torch.testing.assert_close(exported.module()(x), bam(x))


def test_norm_layer_is_used():
    bam = BAM(32, norm_layer=lambda width: nn.GroupNorm(1, width))
    assert sum(isinstance(m, nn.GroupNorm) for m in bam.modules()) == 4
    x = torch.randn(1, 32, 5, 5)  # one picture, in training
    assert bam(x).shape == x.shape


@pytest.mark.parametrize("ratio", [1 / 16, 0, -2])
def test_bad_ratio(ratio):
    with pytest.raises(ValueError, match="rd_ratio is what the channels are divided by"):
        BAM(32, rd_ratio=ratio)


def test_bad_dilation():
    with pytest.raises(ValueError, match="dilation must be at least 1, got 0"):
        BAM(32, dilation=0)
