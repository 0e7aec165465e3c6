"""The native AW-convolution against convolutions sample by sample in float64."""

import math
import multiprocessing
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from leanconv import _core
from leanconv.nn.aw_attention import WeightAttention
from leanconv.nn.aw_conv import AWConv2d
from leanconv.nn.aw_functional import Window, _per_sample, gated_conv2d
from leanconv.nn.aw_fused import aw_conv, aw_conv_backward, fused, supports
from leanconv.nn.aw_native_attention import native_maps

torch.set_num_threads(1)

ISAS = _core.aw_isa_names()
SHARES = ("in", "out", "taps", "none", "in, one", "taps, one")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.012}  # relative, of the norm; bfloat16 rounds at 2^-9 a few times
CASES = {  # n, inputs, outputs, height, width, kernel, stride, padding, dilation, groups
    "plain": (3, 5, 6, 7, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "whole blocks": (2, 64, 32, 7, 7, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "blocks and a rest": (2, 35, 70, 9, 33, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "many weights": (9, 130, 66, 4, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stride": (2, 20, 24, 9, 10, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "all uneven": (2, 17, 33, 9, 17, (2, 3), (2, 3), (1, 2), (2, 1), 1),
    "groups": (3, 8, 12, 9, 7, (3, 3), (2, 1), (1, 1), (1, 2), 4),
    "pointwise": (2, 6, 8, 5, 5, (1, 1), (1, 1), (0, 0), (1, 1), 2),
    "pointwise, stride beyond": (2, 6, 8, 7, 5, (1, 1), (3, 2), (0, 0), (1, 1), 1),
    "much padding": (1, 4, 4, 3, 2, (3, 2), (1, 2), (4, 3), (1, 1), 1),
    "depthwise": (3, 20, 20, 9, 11, (3, 3), (1, 1), (1, 1), (1, 1), 20),
    "depthwise, stride": (2, 33, 33, 10, 9, (3, 5), (2, 2), (1, 2), (2, 1), 33),
    "one pixel": (4, 16, 16, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
}


def gain_sizes(share, case):
    _, inputs, outputs, _, _, kernel, *_, groups = case
    shared, _, one = share.partition(", ")
    maps = {
        "in": (groups, outputs // groups, 1),
        "out": (groups, 1, inputs // groups),
        "taps": (1, 1, 1),
        "none": (groups, outputs // groups, inputs // groups),
    }[shared]
    return (*maps, *((1, 1) if one else kernel))


def tensors(case, share, dtype=torch.float32, memory_format=torch.contiguous_format, seed=0):
    n, inputs, outputs, height, width, kernel, *_, groups = case
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, height, width, generator=g).to(dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(outputs, inputs // groups, *kernel, generator=g).to(dtype)
    gain = torch.rand(n, *gain_sizes(share, case), generator=g).to(dtype)
    return [t.requires_grad_() for t in (x, weight.contiguous(memory_format=memory_format), gain)]


def by_sample(x, weight, gain, window):
    """The definition, written out."""
    full = gain.expand(-1, window.groups, weight.shape[0] // window.groups, weight.shape[1], *weight.shape[2:])
    kernels = weight * full.reshape(x.shape[0], *weight.shape)
    return torch.cat([F.conv2d(a[None], k, None, *window) for a, k in zip(x, kernels, strict=True)])


def check(inputs, window):
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected, got = by_sample(*exact, window), fused(*inputs, window)
    assert got.dtype == inputs[0].dtype and got.is_contiguous() == inputs[0].is_contiguous()
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(got.dtype)
    wanted = torch.autograd.grad(expected, exact, seed.double())
    found = torch.autograd.grad(got, inputs, seed)
    for a, b, like in zip((got, *found), (expected, *wanted), (got, *inputs), strict=True):
        assert a.dtype == like.dtype and a.shape == b.shape
        size = max(b.norm().item(), 0.1 * math.sqrt(b.numel()))
        assert (a.double() - b).norm().item() < TOLERANCE[got.dtype] * size


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
def test_is_the_definition(case, isa, monkeypatch):
    monkeypatch.setenv("LEANCONV_ISA", isa)
    window = Window(*CASES[case][6:])
    for dtype in TOLERANCE:
        for share in SHARES:
            check(tensors(CASES[case], share, dtype), window)
        check(tensors(CASES[case], "in", dtype, torch.channels_last), window)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads(threads):
    torch.set_num_threads(threads)
    try:
        for case in ("blocks and a rest", "many weights", "groups", "depthwise"):
            for share in ("in", "out", "taps", "none"):
                check(tensors(CASES[case], share), Window(*CASES[case][6:]))
                one = [t[:1].detach().requires_grad_() for t in tensors(CASES[case], share)]
                one[1] = tensors(CASES[case], share)[1]
                check(one, Window(*CASES[case][6:]))
    finally:
        torch.set_num_threads(1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.tuples(*[st.integers(1, 4)] * 2),
    st.tuples(*[st.integers(1, 4)] * 2), st.tuples(*[st.integers(0, 3)] * 2), st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(0, 12)] * 2), st.sampled_from(SHARES), st.sampled_from(ISAS), st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape(n, groups, inputs, outputs, kernel, stride, padding, dilation, more, share, isa, seed):
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    height, width = (max(r - 2 * p, 1) + m for r, p, m in zip(reach, padding, more, strict=True))
    case = (n, groups * inputs, groups * outputs, height, width, kernel, stride, padding, dilation, groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEANCONV_ISA", isa)
        check(tensors(case, share, seed=seed), Window(*case[6:]))


def test_tensors_with_gaps():
    """Slices, transposes and broadcast views are read as what they are."""
    window = Window((1, 1), (1, 1))
    wide, gain = torch.randn(2, 10, 7, 9), torch.rand(1, 1, 8, 1, 3, 3).expand(2, -1, -1, -1, -1, -1)
    weight = torch.randn(3, 3, 5, 8).permute(3, 2, 1, 0)
    x = wide[:, ::2].transpose(2, 3)
    for a, b, g in (
        (x, weight, gain),
        (x, weight[:, :1].expand(-1, 5, -1, -1), gain),
        (x.expand(2, -1, -1, -1), weight, gain),
    ):
        check([t.detach().requires_grad_() for t in (a, b, g)], window)


def test_only_what_is_wanted():
    case = CASES["plain"]
    x, weight, gain = (t.detach() for t in tensors(case, "in"))
    window = Window(*case[6:])
    grads = []
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        inputs = [t.clone().requires_grad_(flag) for t, flag in zip((x, weight, gain), wanted, strict=True)]
        fused(*inputs, window).square().sum().backward()
        assert [t.grad is not None for t in inputs] == list(wanted)
        grads += [t.grad for t in inputs if t.grad is not None]
    every = [t.clone().requires_grad_() for t in (x, weight, gain)]
    fused(*every, window).square().sum().backward()
    for a, b in zip(grads, every, strict=True):
        torch.testing.assert_close(a, b.grad)


def test_what_is_computed_otherwise():
    x, weight, gain = (t.detach() for t in tensors(CASES["plain"], "in"))
    window = Window(padding=(1, 1))
    assert supports(x, weight, gain, window) and supports(x.bfloat16(), weight, gain, window)
    assert not supports(x[:0], weight, gain[:0], window) and not supports(x.half(), weight, gain, window)
    assert not supports(x.to("meta"), weight.to("meta"), gain.to("meta"), window)
    with torch.autocast("cpu", torch.float16):
        assert not supports(x, weight, gain, window)
    double = [t.double() for t in (x, weight, gain)]
    got = gated_conv2d(*double, None, (1, 1), (1, 1, 1, 1), (1, 1), 1, impl="fused")
    torch.testing.assert_close(got, by_sample(*double, window))


@pytest.mark.parametrize("impl", ["per_sample", "taps", "fused", "auto"])
def test_empty_batch(impl):
    for groups in (1, 4):
        layer = AWConv2d(4, 8, 3, stride=2, padding=1, groups=groups, impl=impl).eval()
        y = layer(torch.empty(0, 4, 9, 7))
        assert y.shape == (0, 8, 5, 4)
        y.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_layer_under_autocast():
    torch.manual_seed(0)
    layer = AWConv2d(24, 40, 3, padding=1, bias=True, impl="fused")
    plain = AWConv2d(24, 40, 3, padding=1, bias=True, impl="per_sample")
    plain.load_state_dict(layer.state_dict())
    results = []
    for one in (layer, plain):
        x = torch.randn(4, 24, 9, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = one(x)
        assert y.dtype == torch.bfloat16
        y.float().square().mean().backward()
        results.append([y, x.grad, one.weight.grad, one.attn.fc2.weight.grad])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_compiled(precision):
    """One graph, and the figures of eager mode, forward and backward."""
    torch.manual_seed(0)
    net = nn.Sequential(
        AWConv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), AWConv2d(16, 8, 3, 2, 1)
    )
    net = net.to(memory_format=torch.channels_last)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    results = []
    for one in (net, compiled):
        x = (
            torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
            .contiguous(memory_format=torch.channels_last)
            .requires_grad_()
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            y = one(x)
        net.zero_grad()
        y.float().square().mean().backward()
        results.append([y.detach(), x.grad, *[p.grad.clone() for p in net.parameters()]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 if precision == "autocast" else 1e-5)


def test_operators_follow_the_rules():
    """Schemas, fake tensors and autograd registration, as PyTorch checks them."""
    for case, memory_format in (("stride", torch.contiguous_format), ("depthwise", torch.channels_last)):
        *_, stride, padding, dilation, groups = CASES[case]
        inputs = tensors(CASES[case], "in", memory_format=memory_format)
        window = (list(stride), list(padding), list(dilation), groups)
        torch.library.opcheck(aw_conv, (*inputs, *window))
        x, weight, gain = (t.detach() for t in inputs)
        grad = aw_conv(x, weight, gain, *window)
        for wanted in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(aw_conv_backward, (grad, x, weight, gain, *window, wanted))


def test_called_from_many_threads():
    x, weight, gain = (t.detach() for t in tensors(CASES["blocks and a rest"], "in"))
    window = Window(padding=(1, 1))
    expected, results = fused(x, weight, gain, window), []
    threads = [threading.Thread(target=lambda: results.append(fused(x, weight, gain, window))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(expected, y) for y in results)


def _in_child(queue, inputs):
    torch.set_num_threads(2)
    queue.put(fused(*inputs, Window(padding=(1, 1))).double().sum().item())


def test_after_a_fork():
    inputs = [t.detach() for t in tensors(CASES["many weights"], "in")]
    torch.set_num_threads(2)
    try:
        expected = fused(*inputs, Window(padding=(1, 1))).double().sum().item()
    finally:
        torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, inputs))
    child.start()
    try:
        assert queue.get(timeout=60) == pytest.approx(expected, rel=1e-5)
    finally:
        child.kill()


def test_nonsense_is_refused(monkeypatch):
    x, weight, gain = (t.detach() for t in tensors(CASES["plain"], "in"))
    window = ([1, 1], [1, 1], [1, 1], 1)
    with pytest.raises(ValueError, match=r"float32 or bfloat16 on a CPU, got torch\.float64"):
        aw_conv(x.double(), weight, gain, *window)
    with pytest.raises(ValueError, match="does not fit 4 channels"):
        aw_conv(x[:, :4], weight, gain, *window)
    with pytest.raises(ValueError, match="axis 0 of the gain has 2 entries, expected 3"):
        aw_conv(x, weight, gain[:2], *window)
    with pytest.raises(ValueError, match="axis 2 of the gain has 5 entries, expected 6 or 1"):
        aw_conv(x, weight, gain[:, :, :5], *window)
    with pytest.raises(ValueError, match=r"takes x \[N, C, H, W\]"):
        aw_conv(x[0], weight, gain, *window)
    with pytest.raises(ValueError, match="groups"):
        aw_conv(x, weight, gain, [1, 1], [1, 1], [1, 1], 5)
    monkeypatch.setenv("LEANCONV_ISA", "mmx")
    with pytest.raises(ValueError, match=r"mmx.*choose from.*portable"):
        aw_conv(x, weight, gain, *window)


def test_network_trains_alike():
    """A few steps of SGD with the fused and the plain form stay together."""
    losses = {}
    for impl in ("fused", "per_sample"):
        torch.manual_seed(0)
        net = nn.Sequential(
            AWConv2d(3, 20, 3, padding=1, impl=impl), nn.BatchNorm2d(20), nn.ReLU(),
            AWConv2d(20, 12, 3, stride=2, padding=1, impl=impl), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        x, y = torch.randn(16, 3, 9, 9), torch.randint(12, (16,))
        losses[impl] = []
        for _ in range(5):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[impl].append(loss.item())
    assert losses["fused"] == pytest.approx(losses["per_sample"], rel=1e-4)
    assert losses["fused"][-1] < losses["fused"][0]


def test_per_sample_is_the_oracle():
    for case in CASES.values():
        inputs = [t.detach().double() for t in tensors(case, "in")]
        torch.testing.assert_close(_per_sample(*inputs, Window(*case[6:])), by_sample(*inputs, Window(*case[6:])))


def attention(channels, maps, kernel, norm=nn.BatchNorm2d, **args):
    torch.manual_seed(0)
    attn = WeightAttention(channels, maps, kernel, norm_layer=norm, rd_ratio=2, offset=0.25, **args).eval()
    for bn in (attn.bn1, attn.bn2):
        if isinstance(bn, nn.BatchNorm2d):
            for tensor in (bn.weight, bn.bias, bn.running_var, bn.running_mean):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 2)
    return attn


@pytest.mark.parametrize("isa", ISAS)
def test_native_attention(isa, monkeypatch):
    monkeypatch.setenv("LEANCONV_ISA", isa)
    for gate in ("sigmoid", "tanh", "none"):
        for norm in (nn.BatchNorm2d, nn.Identity, lambda c: nn.BatchNorm2d(c, affine=False)):
            for channels, maps, kernel, size in (
                (64, 32, (3, 3), (9, 14)),
                (37, 70, (3, 5), (7, 4)),
                (5, 3, (1, 1), (4, 4)),
                (129, 9, (2, 2), (1, 3)),
            ):
                attn = attention(channels, maps, kernel, norm, gate=gate)
                for memory_format in (torch.contiguous_format, torch.channels_last):
                    x = (3 * torch.randn(2, channels, *size)).contiguous(memory_format=memory_format)
                    with torch.no_grad():
                        got = native_maps(attn, x)
                        assert torch.equal(attn.flat(x), got)
                    torch.testing.assert_close(got, attn.flat(x).detach(), rtol=1e-4, atol=1e-5)


def test_native_attention_at_its_limits():
    attn = WeightAttention(4, 4, (1, 1), norm_layer=nn.Identity, rd_ratio=1).eval()
    with torch.no_grad():
        attn.fc1.weight.copy_(torch.eye(4)[..., None, None])
        attn.fc2.weight.copy_(-torch.eye(4)[..., None, None])
        x = torch.tensor([0.0, 1e-3, 60.0, 1e9]).view(1, 4, 1, 1)
        torch.testing.assert_close(attn.flat(x), torch.sigmoid(-x), rtol=1e-5, atol=1e-37)
        x[0, 1] = float("nan")
        assert attn.flat(x).isnan().all()


def test_when_the_modules_compute_the_attention():
    attn, x = attention(8, 4, (3, 3)), torch.randn(2, 8, 6, 6)
    seen = []
    with torch.no_grad():
        assert native_maps(attn, x) is not None
        assert native_maps(attn, x.double()) is None and native_maps(attn, x[:0]) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert native_maps(attn, x) is None
        handle = attn.bn2.register_forward_hook(lambda *_: seen.append(1))
        attn.flat(x)
        handle.remove()
        assert seen and native_maps(attn.train(), x) is None
        attn.eval()
        attn.bn1.train()
        assert native_maps(attn, x) is None
        for norm in (nn.InstanceNorm2d, lambda c: nn.BatchNorm2d(c, track_running_stats=False)):
            assert native_maps(attention(8, 4, (3, 3), norm), x) is None
        assert native_maps(attention(8, 4, (3, 3)).double(), x) is None
    assert native_maps(attn.eval(), x) is None
