"""The Triton kernels against the definition: in Triton's interpreter where triton is installed, on a GPU where one is.

The interpreter must be chosen before triton is imported, hence a process of its own, which runs this file once more.
"""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from leanconv.nn import aw_triton
from leanconv.nn.aw_functional import Window
from leanconv.nn.aw_triton import AVAILABLE, INTERPRETED, Blocks, gated_conv2d_cuda

DEVICE = "cpu" if INTERPRETED else "cuda"
RUNS = INTERPRETED or (AVAILABLE and torch.cuda.is_available())
WHY = "needs triton and a GPU" if AVAILABLE else "triton is not installed (it comes with PyTorch's GPU builds)"
needs_kernels = pytest.mark.skipif(not RUNS, reason=WHY)
SHARES = ("in", "out", "taps", "none")
EXAMPLES = 4 if INTERPRETED else 60


@pytest.fixture(autouse=True)
def exact_products():
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.manual_seed(0)
    yield
    torch.backends.cudnn.conv.fp32_precision = precision


def definition(x, weight, gain, window):
    """Each sample by a convolution of its own."""
    kernels = (weight.unflatten(0, (window.groups, -1)) * gain).flatten(1, 2)
    return torch.cat([F.conv2d(x[n : n + 1], kernels[n], None, *window) for n in range(x.shape[0])])


def tensors(share, channels, size, kernel, groups, samples=2, by_tap=True, dtype=torch.float32):
    """x, weight and gain."""
    c1, c2 = channels
    maps = {
        "in": (groups, c2 // groups, 1),
        "out": (groups, 1, c1 // groups),
        "taps": (1, 1, 1),
        "none": (groups, c2 // groups, c1 // groups),
    }[share]
    x = torch.randn(samples, c1, *size)
    weight = torch.randn(c2, c1 // groups, *kernel)
    gain = torch.rand(samples, *maps, *(kernel if by_tap else (1, 1)))
    return [t.to(DEVICE, kind).requires_grad_() for t, kind in ((x, dtype), (weight, dtype), (gain, torch.float32))]


def check(inputs, window, tolerance=1e-5):
    """Result and gradients, to a fraction of the largest value."""
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected, y = definition(*exact, window), gated_conv2d_cuda(*inputs, window)
    assert y.shape == expected.shape and y.dtype == inputs[0].dtype
    probe = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, exact, probe.double())
    grads = torch.autograd.grad(y, inputs, probe)
    for t, like, truth in zip((y, *grads), (y, *inputs), (expected, *wanted), strict=True):
        assert t.dtype == like.dtype and t.shape == truth.shape
        torch.testing.assert_close(t.double(), truth, rtol=0, atol=tolerance * float(truth.abs().max()))


CASES = [  # channels, size, kernel, window
    ((5, 7), (5, 4), (2, 2), Window((1, 1), (1, 1), (1, 1), 1)),
    ((4, 6), (7, 5), (3, 3), Window((2, 2), (1, 1), (1, 1), 2)),
    ((6, 4), (6, 7), (3, 2), Window((2, 3), (2, 1), (2, 1), 2)),
    ((3, 3), (4, 3), (3, 1), Window((1, 2), (1, 0), (1, 1), 3)),
    ((17, 18), (3, 3), (1, 1), Window((1, 1), (0, 0), (1, 1), 1)),
]


def crossed(cases):
    """Every share with every case; every second pair is slow, as the interpreter is."""
    pairs = [(share, *case) for case in cases for share in SHARES]
    slow = [(i + i // len(SHARES)) % 2 for i in range(len(pairs))]
    return [pytest.param(*p, marks=pytest.mark.slow if s else ()) for p, s in zip(pairs, slow, strict=True)]


@needs_kernels
@pytest.mark.parametrize(("share", "channels", "size", "kernel", "window"), crossed(CASES))
def test_value_and_gradients_are_the_definition(share, channels, size, kernel, window):
    check(tensors(share, channels, size, kernel, window.groups), window)


@needs_kernels
@pytest.mark.parametrize("share", ["in", "out", *(pytest.param(s, marks=pytest.mark.slow) for s in ("taps", "none"))])
def test_gain_that_is_constant_over_the_taps(share):
    check(tensors(share, (4, 6), (5, 4), (2, 2), 2, by_tap=False), Window((2, 1), (1, 1), (1, 1), 2))


@needs_kernels
@pytest.mark.parametrize("share", ["in", *(pytest.param(s, marks=pytest.mark.slow) for s in SHARES[1:])])
def test_more_than_one_tile_in_every_direction(share, monkeypatch):
    for name in ("product_blocks", "weight_blocks"):
        monkeypatch.setattr(aw_triton, name, lambda *sizes: Blocks(16, 16, 16, 4, 2))
    monkeypatch.setattr(aw_triton, "PROGRAMS", 8)  # two samples a split
    check(tensors(share, (17, 19), (5, 4), (1, 2), 1, samples=3), Window((1, 1), (0, 1), (1, 1), 1))


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 2))
    kernel = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (3, 3)]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    window = Window(draw(pair), draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), draw(pair), groups)
    size = [draw(st.integers(d * (k - 1) + 1, 8)) for d, k in zip(window.dilation, kernel, strict=True)]
    channels = (groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5)))
    return tensors(draw(st.sampled_from(SHARES)), channels, size, kernel, groups, draw(st.integers(1, 2))), window


@needs_kernels
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_any_shape(case):
    check(*case)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share", ["in", "none"])
def test_16_bits(dtype, share):
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter doesn't multiply bfloat16")
    check(tensors(share, (4, 3), (4, 4), (2, 2), 1, dtype=dtype), Window(), 3e-3 if dtype == torch.float16 else 3e-2)


@needs_kernels
def test_autocast():
    x, weight, gain = tensors("in", (4, 3), (4, 4), (2, 2), 1)
    with torch.autocast(DEVICE, torch.float16):
        y = gated_conv2d_cuda(x, weight, gain, Window())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), definition(x, weight, gain, Window()), atol=0.02, rtol=0.02)
    grads = torch.autograd.grad(y.float().sum(), (x, weight, gain))
    assert [t.dtype for t in grads] == [torch.float32] * 3


@needs_kernels
def test_memory_format_and_strides():
    x, weight, gain = (t.detach() for t in tensors("in", (4, 3), (4, 5), (2, 2), 1))
    expected = definition(x, weight, gain, Window())
    last, cut = x.contiguous(memory_format=torch.channels_last), F.pad(x, (1, 2))[..., 1:-2]
    assert gated_conv2d_cuda(x, weight, gain, Window()).is_contiguous()
    apart = gain.permute(5, 4, 3, 2, 1, 0).contiguous().permute(5, 4, 3, 2, 1, 0)
    layout = weight.contiguous(memory_format=torch.channels_last)
    for a, w, g in ((x, layout, gain), (last, weight, apart), (cut, weight, gain.expand(-1, -1, -1, 4, -1, -1))):
        torch.testing.assert_close(gated_conv2d_cuda(a, w, g, Window()), expected, atol=1e-5, rtol=1e-5)
    assert gated_conv2d_cuda(last, weight, gain, Window()).is_contiguous(memory_format=torch.channels_last)


@needs_kernels
def test_equal_from_run_to_run():
    inputs = tensors("in", (5, 4), (5, 5), (2, 2), 1, samples=3)
    runs = []
    for _ in range(2):
        y = gated_conv2d_cuda(*inputs, Window())
        runs.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@needs_kernels
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone(wanted):
    inputs = [t.detach() for t in tensors("out", (3, 4), (3, 3), (2, 2), 1)]
    inputs[wanted].requires_grad_()
    (grad,) = torch.autograd.grad(gated_conv2d_cuda(*inputs, Window()).sum(), inputs[wanted])
    (truth,) = torch.autograd.grad(definition(*inputs, Window()).sum(), inputs[wanted])
    torch.testing.assert_close(grad, truth, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_no_samples():
    x, weight, gain = tensors("in", (4, 3), (4, 4), (2, 2), 1, samples=0)
    y = gated_conv2d_cuda(x, weight, gain, Window())
    assert y.shape == (0, 3, 3, 3)
    grads = torch.autograd.grad(y.sum(), (x, weight, gain))
    assert [t.shape for t in grads] == [x.shape, weight.shape, gain.shape] and not grads[1].any()


@needs_kernels
def test_operators_declare_what_they_do():
    x, weight, gain = tensors("in", (4, 6), (5, 4), (2, 2), 2)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    window = ([2, 1], [1, 0], [1, 1], 2)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.leanconv.aw_triton.default, (x, weight, gain, *window), test_utils=checks)
    y = torch.ops.leanconv.aw_triton(x, weight, gain, *window).detach()
    checks = ("test_schema", "test_faketensor")
    for operator, arguments in (
        (torch.ops.leanconv.aw_triton_grad_input.default, (y, weight, gain, [5, 4], *window)),
        (torch.ops.leanconv.aw_triton_grad_kernels.default, (y, x, weight, gain, *window)),
    ):
        torch.library.opcheck(
            operator, [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments], test_utils=checks
        )


@needs_kernels
def test_compiles_as_one_graph():
    inputs = tensors("in", (4, 3), (4, 4), (2, 2), 1)

    def of(x, weight, gain):
        with torch.autocast(DEVICE, torch.float16):
            return gated_conv2d_cuda(x, weight, gain, Window()).float()

    y, compiled = of(*inputs), torch.compile(of, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(compiled, y)
    ours, theirs = (torch.autograd.grad(t.square().sum(), inputs) for t in (compiled, y))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_errors(monkeypatch):
    x, weight, gain = torch.randn(2, 4, 4, 4), torch.randn(3, 4, 2, 2), torch.rand(2, 1, 3, 1, 2, 2)
    monkeypatch.setattr(aw_triton, "AVAILABLE", False)
    with pytest.raises(RuntimeError, match="need triton, not installed; use impl='per_sample'"):
        gated_conv2d_cuda(x, weight, gain, Window())
    monkeypatch.setattr(aw_triton, "AVAILABLE", True)
    if not INTERPRETED:
        with pytest.raises(RuntimeError, match="run on GPUs, the input is on cpu"):
            gated_conv2d_cuda(x, weight, gain, Window())
        return
    for a, w in ((x.double(), weight.double()), (x, weight.half())):
        with pytest.raises(RuntimeError, match="input and weight of one type, float32, float16 or bfloat16, not"):
            gated_conv2d_cuda(a, w, gain, Window())
    with pytest.raises(RuntimeError, match="interpreter doesn't multiply bfloat16"):
        gated_conv2d_cuda(x.bfloat16(), weight.bfloat16(), gain, Window())


@pytest.mark.skipif(INTERPRETED or not AVAILABLE, reason="runs the interpreter, or triton is not installed")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(which):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        which,
        __file__,
    ]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(INTERPRETED or not AVAILABLE, reason="Triton's compiler is not used, or triton is not installed")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kernels_compile_without_a_gpu(dtype, transposed):
    """For compute capability 9.0: Triton's compiler refuses what its interpreter runs."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from leanconv.nn import aw_triton_kernels as kernels

    def compiled(kernel, pointers, constants, blocks):
        signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, constants)
        options = {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
        return compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    kind, half = f"*{dtype}", torch.bfloat16 if dtype == "bf16" else torch.float32
    stride, precision = 1 + transposed, "ieee"
    geometry = {"HEIGHT": 3, "WIDTH": 3, "STRIDE_Y": stride, "STRIDE_X": stride, "PAD_Y": 1, "PAD_X": 1}
    geometry |= {"DILATION_Y": 1, "DILATION_X": 1, "PRECISION": precision}
    blocks = aw_triton.product_blocks(49, 64, 64, half, precision)
    tile = {"BLOCK_M": blocks.rows, "BLOCK_N": blocks.columns, "BLOCK_K": blocks.depth}
    for mode in (kernels.COLUMNS, kernels.SUMMED, kernels.BOTH):
        constants = {"TRANSPOSED": transposed, "STEP_Y": stride, "STEP_X": stride, "MODE": mode, "BY_TAP": True}
        pointers = dict.fromkeys(("source", "weight", "gain", "target"), kind)
        made = compiled(kernels.product, pointers, geometry | constants | tile, blocks)
        assert made.metadata.shared <= 227 * 1024
    blocks = aw_triton.weight_blocks(64, 64, 49, half, precision)
    constants = {"SUM_OUTPUTS": transposed, "SUM_INPUTS": not transposed}
    constants |= {"BLOCK_O": blocks.rows, "BLOCK_I": blocks.columns, "BLOCK_P": blocks.depth}
    pointers = dict.fromkeys(("grad", "x", "weight", "gain"), kind)
    pointers |= dict.fromkeys(("weight_parts", "gain_parts"), "*fp32")
    assert compiled(kernels.weight_gradient, pointers, geometry | constants, blocks).metadata.shared <= 227 * 1024
