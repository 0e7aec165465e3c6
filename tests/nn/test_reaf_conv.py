import copy
import os
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from leanconv.nn import ConvertError, convert
from leanconv.nn.reaf_conv import ReafConv2d, channel_sets

IMPLS = ("auto", "slices", "gather")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def oracle(layer: ReafConv2d, x: torch.Tensor, weight=None, bias=None) -> torch.Tensor:
    """Each output channel on its own, on channels picked one by one."""
    weight, bias = layer.weight if weight is None else weight, layer.bias if bias is None else bias
    maps = []
    for o in range(layer.out_channels):
        g = o * layer.sets // layer.out_channels
        read = [x[:, (g * layer.shift + j) % layer.in_channels] for j in range(layer.window)]
        b = None if bias is None else bias[o : o + 1]
        maps.append(F.conv2d(torch.stack(read, 1), weight[o : o + 1], b, layer.stride, layer.padding, layer.dilation))
    return torch.cat(maps, 1)


@st.composite
def cases(draw):
    c1, sets = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    window = draw(st.integers(1, c1))
    layer = ReafConv2d(
        c1,
        sets * draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 2, 3, (1, 3)])),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        sets=sets,
        window=window,
        shift=draw(st.one_of(st.just(window), st.integers(1, 2 * c1))),
        impl=draw(st.sampled_from(IMPLS)),
        dtype=torch.float64,
    )
    shape = (draw(st.integers(1, 3)), c1, draw(st.integers(5, 8)), draw(st.integers(5, 8)))
    return layer, torch.randn(shape, dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_value_and_gradients_are_the_definition(case):
    layer, x = case
    inputs = [t.detach().requires_grad_() for t in (x, layer.weight, layer.bias) if t is not None]
    expected = oracle(layer, *inputs)
    y = layer(x.requires_grad_())
    torch.testing.assert_close(y, expected)
    probe = torch.randn_like(y)
    y.backward(probe)
    ours = [x.grad, layer.weight.grad, *([layer.bias.grad] if layer.bias is not None else [])]
    torch.testing.assert_close(ours, list(torch.autograd.grad(expected, inputs, probe)))


@pytest.mark.parametrize("impl", ["slices", "gather"])
def test_gradients_by_finite_differences(impl):
    layer = ReafConv2d(4, 4, 3, 2, 1, sets=2, window=3, shift=2, impl=impl, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)

    def of(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(of, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("groups", [1, 2, 4, 12])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_ordinary_group_and_depthwise_convolution_are_special_cases(groups, padding, impl):
    """Bit for bit: the same call on the same input."""
    n = 12 // groups
    conv = nn.Conv2d(12, 24, 3, padding=padding, groups=groups)
    layer = ReafConv2d(12, 24, 3, padding=padding, sets=groups, window=n, shift=n, impl=impl)
    layer.load_state_dict(conv.state_dict())
    x = torch.randn(3, 12, 7, 6)
    assert torch.equal(layer(x), conv(x))


def test_no_copy_of_the_input_for_the_special_cases(monkeypatch):
    seen = []
    conv2d = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *args: seen.append(x.data_ptr()) or conv2d(x, *args))
    x = torch.randn(1, 8, 5, 5)
    for sets, window in ((1, 8), (4, 2), (8, 1), (1, 5), (2, 3)):
        ReafConv2d(8, 8, 3, sets=sets, window=window, shift=window)(x)
    assert seen == [x.data_ptr()] * 5
    seen.clear()
    ReafConv2d(8, 8, 3, sets=3 + 1, window=4, shift=2, impl="slices")(x)
    row = x.stride(1) * x.element_size()
    assert seen[:3] == [x.data_ptr() + g * 2 * row for g in range(3)] and len(seen) == 4  # the last one wraps around


def test_integers_agree_exactly():
    """Section 4 of the specification: any (G, n, s) is a group convolution on the gathered channels."""
    for sets, window, shift in ((4, 6, 3), (6, 4, 2), (2, 12, 5), (12, 5, 1), (3, 2, 4)):
        for impl in ("slices", "gather"):
            layer = ReafConv2d(12, 12, 3, padding=1, bias=False, sets=sets, window=window, shift=shift, impl=impl)
            nn.init.constant_(layer.weight, 0)
            layer.weight.data += torch.randint(-4, 5, layer.weight.shape)
            x = torch.randint(-8, 9, (2, 12, 5, 5)).float()
            gathered = torch.cat([x[:, s] for s in channel_sets(12, sets, window, shift)], 1)
            expected = F.conv2d(gathered.double(), layer.weight.double(), padding=1, groups=sets)
            assert torch.equal(layer(x).double(), expected)


REACH = [  # table of section 4: channels that the least connected output sees after 1, 2, ... layers of 64 channels
    (1, 64, 64, [64]),
    (8, 8, 8, [8, 8, 8, 8, 8, 8, 8, 8]),
    (8, 16, 8, [16, 24, 32, 40, 48, 56, 64, 64]),
    (8, 32, 8, [32, 56, 64]),
    (64, 8, 1, [8, 15, 22, 29, 36, 43, 50, 57]),
]


@pytest.mark.parametrize(("sets", "window", "shift", "expected"), REACH)
def test_channels_mix(sets, window, shift, expected):
    layer = ReafConv2d(64, 64, 1, bias=False, sets=sets, window=window, shift=shift)
    nn.init.ones_(layer.weight)
    seen, reach = torch.eye(64).view(64, 64, 1, 1), []  # a picture for each input channel
    for _ in expected:
        seen = layer(seen).clamp(max=1)
        reach.append(int(seen.sum((0, 2, 3)).min()))
    assert reach == expected


def test_weights_cost_and_initial_spread():
    layer = ReafConv2d(64, 48, 3, sets=4, window=32, shift=16)
    assert layer.weight.numel() == 9 * 32 * 48 and (layer.in_channels, layer.out_channels) == (64, 48)
    assert layer.weight.abs().max() <= (32 * 9) ** -0.5 < 1.01 * layer.weight.abs().max()  # PyTorch's for 32 inputs
    assert "sets=4, window=32, shift=16" in repr(layer) and repr(layer).startswith("ReafConv2d(64, 48")
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("impl", ["slices", "gather"])
def test_formats_and_copies(impl):
    layer = ReafConv2d(8, 8, 3, padding=1, sets=4, window=4, shift=2, impl=impl)
    x = torch.randn(2, 8, 6, 5)
    expected = layer(x)
    torch.testing.assert_close(layer(x[0]), expected[0])  # without a batch dimension
    last = x.contiguous(memory_format=torch.channels_last)
    y = copy.deepcopy(layer).to(memory_format=torch.channels_last)(last)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.03, rtol=0.03)
    half.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("impl", ["slices", "gather"])
@pytest.mark.parametrize("assign", [True, False])
def test_weights_are_all_that_a_layer_made_without_numbers_needs(impl, assign):
    arguments = {"sets": 4, "window": 4, "shift": 2, "impl": impl}
    layer, x = ReafConv2d(8, 8, 3, **arguments), torch.randn(2, 8, 6, 5)
    with torch.device("meta"):
        empty = ReafConv2d(8, 8, 3, **arguments)
    if not assign:
        empty.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict(), assign=assign)
    assert not list(empty.buffers()) and torch.equal(empty(x), layer(x))


@pytest.mark.parametrize("impl", ["slices", "gather"])
def test_compiles_as_one_graph(impl):
    layer = ReafConv2d(8, 8, 3, padding=1, sets=4, window=4, shift=2, impl=impl)
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    (got,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).square().sum(), x)[0])


@pytest.mark.parametrize(
    ("sets", "window", "shift", "calls"),
    [(1, 8, 8, ["Conv"]), (4, 2, 2, ["Conv"]), (4, 4, 2, ["Gather", "Conv"])],
)
def test_exports_with_a_dynamic_batch(sets, window, shift, calls, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = ReafConv2d(8, 8, 3, 2, 1, sets=sets, window=window, shift=shift).eval()
    example, x = torch.randn(2, 8, 7, 6), torch.randn(5, 8, 7, 6)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(layer, (example,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(x), layer(x))
    path = tmp_path / "reaf.onnx"
    torch.onnx.export(
        layer, (example,), path, dynamo=True, dynamic_shapes=({0: batch},), input_names=["x"], verbose=False
    )
    assert [node.op_type for node in onnx.load(path).graph.node] == calls
    (y,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(y, layer(x).detach().numpy(), atol=1e-5)


def _rank(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(rank)  # rank 0's weights win
    layer = nn.parallel.DistributedDataParallel(ReafConv2d(4, 4, 3, sets=4, window=2, shift=1, impl="gather"))
    x = torch.arange(2 * 2 * 4 * 5 * 5.0).view(2, 2, 4, 5, 5).sin()[rank]
    layer(x).square().mean().backward()
    if rank == 0:
        torch.save((layer.module.state_dict(), layer.module.weight.grad), result)
    dist.destroy_process_group()


@pytest.mark.slow  # two processes that import torch
@pytest.mark.skipif(not dist.is_available() or os.name != "posix", reason="needs gloo")
def test_two_processes_average_their_gradients(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), str(tmp_path / "result")), nprocs=2)
    state, grad = torch.load(tmp_path / "result")
    layer = ReafConv2d(4, 4, 3, sets=4, window=2, shift=1)
    layer.load_state_dict(state)
    layer(torch.arange(2 * 2 * 4 * 5 * 5.0).view(4, 4, 5, 5).sin()).square().mean().backward()
    torch.testing.assert_close(layer.weight.grad, grad)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_converted_layer_keeps_the_weights_in_its_windows(groups, bias):
    old = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups, bias=bias)
    x = torch.randn(2, 8, 7, 7)
    dense = torch.zeros(12, 8, 3, 3)
    for o in range(12):
        first = o * groups // 12 * (8 // groups)
        dense[o, first : first + 8 // groups] = old.weight.detach()[o]
    for sets, window, shift in ((4, 4, 2), (3, 5, 3), (1, 6, 6)):
        kept = torch.zeros(12, 8, 3, 3)
        for o in range(12):
            read = channel_sets(8, sets, window, shift)[o * sets // 12]
            kept[o, read] = dense[o, read]
        new = convert(copy.deepcopy(old), ReafConv2d, skip=(), sets=sets, window=window, shift=shift)
        torch.testing.assert_close(new(x), F.conv2d(x, kept, old.bias, 2, 1))


def test_convert_by_overlap():
    old = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 16, (3, 1)), nn.Flatten(), nn.Linear(4, 2)
    )
    old[1].weight.requires_grad_(False)
    model = convert(copy.deepcopy(old).double().eval(), ReafConv2d, sets=4)
    assert [(m.window, m.shift) for m in model[1:3]] == [(8, 4), (16, 8)] and type(model[0]) is nn.Conv2d
    assert model[1].weight.dtype == torch.float64 and not model[1].training
    assert not model[1].weight.requires_grad and model[2].weight.requires_grad
    model = convert(copy.deepcopy(old), ReafConv2d, sets=4, overlap=1.5, impl="gather")
    assert [(m.window, m.shift, m.impl) for m in model[1:3]] == [(6, 4, "gather"), (12, 8, "gather")]
    bias = old[1].bias
    assert convert(old, ReafConv2d, sets=4)[1].bias is bias
    assert convert(nn.Conv2d(8, 8, 3, device="meta"), ReafConv2d, skip=(), sets=2, overlap=1).weight.is_meta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sets": 0}, "sets must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"shift": 0}, "shift must be at least 1, got 0"),
        ({"sets": 5}, r"out_channels \(8\) must be a multiple of sets \(5\)"),
        ({"window": 9}, r"window \(9\) must not exceed in_channels \(8\)"),
        ({"impl": "views"}, "unknown impl 'views': expected one of auto, slices, gather"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReafConv2d(8, 8, 3, **{"sets": 4, "window": 4, "shift": 2} | arguments)


def test_bad_inputs():
    with pytest.raises(ValueError, match="expected 8 input channels, got 9"):
        ReafConv2d(8, 8, 3, sets=1, window=4, shift=4)(torch.randn(1, 9, 5, 5))
    with pytest.raises(ConvertError, match=r"layer 0: .*8 input channels do not divide into 3 sets"):
        convert(nn.Sequential(nn.Conv2d(8, 9, 3)), ReafConv2d, skip=(), sets=3)
    with pytest.raises(ValueError, match=r"overlap \(1.25\) times shift \(2\) must be a whole number"):
        ReafConv2d.from_layer(nn.Conv2d(8, 8, 3), sets=4, overlap=1.25)
    with pytest.raises(ValueError, match="padding_mode must be 'zeros', got 'reflect'"):
        ReafConv2d.from_layer(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), sets=4)
