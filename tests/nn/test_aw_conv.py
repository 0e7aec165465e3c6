import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from leanconv.nn.aw_attention import pool_to
from leanconv.nn.aw_conv import AWConv2d
from leanconv.nn.aw_functional import IMPLEMENTATIONS, Window, _folded, _loop, _unfolded, choose, gated_conv2d
from tests.nn.aw_oracle import LAYERS, SHARES, gradients, make, oracle

torch.set_num_threads(1)


@pytest.mark.parametrize("pool", ["kernel", "one"])
@pytest.mark.parametrize("shape", LAYERS)
def test_every_form_is_the_definition(shape, pool):
    for share in SHARES:
        for impl in ("per_sample", "taps", "auto"):
            if (share, impl) == ("none", "taps"):
                continue
            for residual in (True, False):
                layer, x = make(shape, share, impl, pool=pool, residual=residual)
                expected, got = oracle(layer, x), layer(x)
                torch.testing.assert_close(got, expected)
                torch.testing.assert_close(layer(x[:1]), expected[:1])
                for a, b in zip(gradients(got, layer, x), gradients(expected, layer, x), strict=True):
                    torch.testing.assert_close(a, b)


def test_the_sum_written_out():
    """Attention on what each output and tap sees equals attention on the weights (ZHENG's equation)."""
    layer, x = make("plain", "none", "auto", bias=False)
    a, padded = layer.attention(x), F.pad(x, (1, 1, 1, 1))
    got = layer(x)
    for n, p, u, v in [(0, 0, 0, 0), (1, 3, 6, 7), (2, 5, 2, 4)]:
        seen = padded[n, :, u : u + 3, v : v + 3]
        total = ((seen + seen * a[n, p]) * layer.weight[p]).sum()
        torch.testing.assert_close(got[n, p, u, v], total)


def test_attention_written_out():
    layer, x = make("stride", "in", "auto", rd_ratio=2)
    attn = layer.attn
    pooled = torch.stack([
        torch.stack([x[:, :, r : r + 3, c0:c1].mean((2, 3)) for c0, c1 in ((0, 3), (2, 5), (4, 7))], -1)
        for r in (0, 3, 6)
    ], 2)  # fmt: skip

    def norm(z, bn):
        mean, var, weight, bias = (
            t[None, :, None, None] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        )
        return (z - mean) / (var + bn.eps).sqrt() * weight + bias

    hidden = norm(torch.einsum("nchw,dc->ndhw", pooled, attn.fc1.weight[..., 0, 0]), attn.bn1).clamp(min=0)
    maps = norm(torch.einsum("ndhw,pd->nphw", hidden, attn.fc2.weight[..., 0, 0]), attn.bn2)
    expected = (1 / (1 + torch.exp(-maps)))[:, :, None].expand(3, 6, 2, 3, 3)
    assert attn.fc1.weight.shape == (2, 4, 1, 1) and attn.fc2.weight.shape == (6, 2, 1, 1)
    torch.testing.assert_close(layer.attention(x), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_where_attention_is_shared(groups):
    def differs(a, dim):
        return not torch.equal(a, a.narrow(dim, 0, 1).expand_as(a))

    for share, over_outputs, over_inputs in [("in", True, False), ("out", False, True), ("none", True, True)]:
        layer = AWConv2d(8, 12, 3, groups=groups, share=share)
        a = layer.attention(torch.randn(2, 8, 6, 6))
        assert a.shape == (2, 12, 8 // groups, 3, 3)
        group = a[:, : 12 // groups]
        assert [differs(group, 1), differs(group, 2), differs(group, 3)] == [over_outputs, over_inputs, True]
        assert groups == 1 or not torch.equal(a[:, :6], a[:, 6:])
    taps = AWConv2d(8, 12, 3, groups=groups, share="taps").attention(torch.randn(2, 8, 6, 6))
    assert not differs(taps, 1) and not differs(taps, 2) and differs(taps, 3) and differs(taps, 0)
    one = AWConv2d(8, 12, 3, groups=groups, pool="one").attention(torch.randn(2, 8, 6, 6))
    assert not differs(one, 3) and not differs(one, 4) and differs(one, 1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * 2), st.integers(1, 3),
    st.tuples(*[st.integers(0, 2)] * 4), st.integers(1, 2), st.integers(1, 3), st.tuples(*[st.booleans()] * 4),
    st.integers(0, 2**31),
)  # fmt: skip
def test_any_gain(n, inputs, outputs, kernel, stride, padding, dilation, groups, shared, seed):
    """Gains of any shape that may be broadcast, among them those that no layer makes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [1 if one else size for one, size in zip(shared, (groups, outputs, inputs), strict=False)]
    taps = (1, 1) if shared[3] else kernel
    x = torch.randn(n, groups * inputs, 7, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(groups * outputs, inputs, *kernel, generator=generator, dtype=torch.float64)
    gain = torch.randn(n, *sizes, *taps, generator=generator, dtype=torch.float64)
    padded = F.pad(x, (padding[1], padding[3], padding[0], padding[2]))
    full = gain.expand(n, groups, outputs, inputs, *kernel).reshape(n, *weight.shape)
    rows = [F.conv2d(a[None], weight * b, None, stride, 0, dilation, groups) for a, b in zip(padded, full, strict=True)]
    expected = torch.cat(rows)
    names = ["auto", "per_sample"] + (["taps"] if 1 in (gain.shape[2], gain.shape[3]) else [])
    for name in names:
        window = ((stride, stride), padding, (dilation, dilation), groups)
        torch.testing.assert_close(gated_conv2d(x, weight, gain, None, *window, impl=name), expected)
    for form in (_folded, _loop, _unfolded):
        window = Window((stride, stride), (0, 0), (dilation, dilation), groups)
        torch.testing.assert_close(form(padded, weight, gain, window), expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradcheck(impl, groups):
    torch.manual_seed(0)
    shapes = [(2, 4, 4, 3), (4, 4 // groups, 2, 2), (2, groups, 4 // groups, 1, 2, 2), (4,)]
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    window = ((2, 1), (1, 0, 1, 0), (1, 1), groups)
    assert torch.autograd.gradcheck(lambda *t: gated_conv2d(*t, *window, impl=impl), tensors)


@pytest.mark.parametrize("impl", ["per_sample", "taps"])
@pytest.mark.parametrize("share", ["in", "out"])
@pytest.mark.parametrize("pool", ["kernel", "one"])
def test_bfloat16_and_autocast(pool, share, impl):
    layer, x = make("plain", share, impl, pool=pool)
    exact = layer(x).detach()
    layer, x = layer.float(), x.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    low = layer.bfloat16()(x.bfloat16())
    assert mixed.dtype == low.dtype == torch.bfloat16
    for got in (mixed, low):  # a few roundings of 2^-9 each on the way
        assert (got - exact).norm() < 0.01 * exact.norm()
    expected = oracle(layer, x.bfloat16())
    assert (low - expected).double().norm() < 0.008 * exact.norm()


@pytest.mark.parametrize("shape", ["plain", "stride", "depthwise"])
def test_memory_format_stays(shape):
    for impl in ("per_sample", "taps"):
        layer, x = make(shape, "in", impl)
        assert layer(x).is_contiguous()
        y = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, oracle(layer, x))


def test_what_constant_attention_is():
    layer, x = make("plain", "in", "auto", bias=False)
    plain = F.conv2d(x, layer.weight, None, padding=1)
    nn.init.zeros_(layer.attn.bn2.weight)
    for bias, factor in ((0.0, 1.5), (-1e3, 1.0), (1e3, 2.0)):
        nn.init.constant_(layer.attn.bn2.bias, bias)
        torch.testing.assert_close(layer(x), factor * plain)


def test_pointwise_is_a_gate_on_the_output():
    layer, x = make("pointwise", "in", "auto", bias=False)
    plain = F.conv2d(x, layer.weight, None, groups=2)
    torch.testing.assert_close(layer(x), plain * (1 + layer.attention(x)[:, :, 0]))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "none"])
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, nn.Identity, partial(nn.GroupNorm, 1)])
def test_identity_start(gate, residual, norm_layer):
    torch.manual_seed(0)
    args = {"gate": gate, "residual": residual, "norm_layer": norm_layer}
    layer = AWConv2d(6, 8, 3, padding=1, rd_ratio=2, start="identity", impl="per_sample", **args)
    x = torch.randn(2, 6, 7, 7)
    for training in (True, False):
        layer.train(training)
        assert torch.equal(layer.attention(x), torch.full((2, 8, 6, 3, 3), 0.0 if residual else 1.0))
        plain = torch.cat([F.conv2d(row, layer.weight, layer.bias, padding=1) for row in x.split(1)])
        assert torch.equal(layer(x), plain)
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    layer(x).square().sum().backward()
    optimizer.step()
    assert layer.attention(x).std() > 0


def test_gates():
    for gate, function in (("sigmoid", torch.sigmoid), ("tanh", torch.tanh), ("none", lambda z: z)):
        layer, x = make("plain", "in", "auto", gate=gate)
        z = []
        layer.attn.bn2.register_forward_hook(lambda m, i, o, z=z: z.append(o))
        a = layer.attention(x)
        torch.testing.assert_close(a[:, :, 0], function(z[0]))


def test_every_parameter_gets_a_gradient():
    for share in SHARES:
        layer = AWConv2d(8, 8, 3, padding=1, share=share)
        layer(torch.randn(4, 8, 5, 5)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_copies_and_state():
    layer, x = make("plain", "in", "auto")
    other = AWConv2d(5, 6, 3, padding=1, rd_ratio=2, dtype=torch.float64).eval()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(copy.deepcopy(layer)(x), layer(x)) and torch.equal(other(x), layer(x))
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(traced(x[:2]), layer(x[:2]))


def test_what_auto_chooses():
    def rule(n, channels, size, gain, kernel=3, groups=1):
        x, weight = torch.empty(n, channels, size, size), torch.empty(channels, channels // groups, kernel, kernel)
        window, gains = Window(padding=(1, 1), groups=groups), torch.empty(n, groups, *gain)
        few = groups > 1 and channels // groups < 8
        assert (choose(x, weight, gains, window) == "fused") == (not few)
        if few and channels == groups:
            assert choose(x.to(memory_format=torch.channels_last), weight, gains, window) == "fused"
        return choose(x.double(), weight.double(), gains.double(), window)

    assert rule(8, 16, 7, (16, 1, 3, 3)) == rule(8, 16, 7, (1, 16, 3, 3)) == "taps"
    assert rule(8, 16, 14, (16, 1, 3, 3)) == rule(1, 16, 7, (16, 1, 3, 3)) == "per_sample"
    assert rule(8, 16, 7, (16, 16, 3, 3)) == rule(8, 16, 7, (1, 1, 3, 3), groups=16) == "per_sample"
    assert rule(8, 16, 56, (16, 1, 1, 1)) == "taps"


def test_pooling_matches_pytorch_under_export(monkeypatch):
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, (3, 4))
    assert torch.equal(pool_to(x, (3, 4)), expected)
    monkeypatch.setattr("leanconv.nn.aw_attention.is_exporting", lambda: True)
    for size in ((3, 4), (1, 1), (9, 2), (7, 10)):
        torch.testing.assert_close(pool_to(x, size), F.adaptive_avg_pool2d(x, size))


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"share": "both"}, "unknown share 'both': expected one of in, out, taps, none"),
        ({"gate": "relu"}, "unknown gate 'relu'"),
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"start": "zero"}, "unknown start 'zero'"),
        ({"impl": "grouped"}, "unknown impl 'grouped': expected one of auto, per_sample, taps, fused"),
        ({"impl": "taps", "share": "none"}, "share='none'"),
        ({"rd_ratio": 0}, "rd_ratio must be a whole number"),
        ({"rd_ratio": 1 / 16}, "rd_ratio must be a whole number"),
    ],
)
def test_bad_arguments(bad, message):
    with pytest.raises(ValueError, match=message):
        AWConv2d(4, 4, 3, **bad)


def test_one_value_a_channel_cannot_be_normalised():
    x = torch.randn(1, 8, 4, 4)
    for layer in (AWConv2d(8, 8, 1), AWConv2d(8, 8, 3, pool="one")):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(x)
        assert layer.eval()(x).shape[0] == 1
