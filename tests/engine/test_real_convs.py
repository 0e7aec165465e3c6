"""The real-valued convolutions of AW and REAF networks and their pooling against the numpy oracle, and that oracle
against PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from leanconv import _core
from leanconv.engine import reference
from leanconv.program import ProgramError
from tests.engine.builder import Builder, check, pictures

GAINS = ["output", "input", "tap", "weight"]


def gain_channels(gain, channels, out, groups):
    return {"output": out, "input": channels, "tap": 1, "weight": out * channels // groups}[gain]


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize(
    ("channels", "out", "groups"), [(5, 7, 1), (16, 130, 1), (12, 24, 3), (70, 70, 70), (8, 64, 8)]
)
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [((3, 3), (1, 1), (1, 1)), ((2, 3), (2, 1), (1, 2))])
def test_gated_conv(gain, channels, out, groups, kernel, stride, dilation):
    b = Builder(channels, seed=out)
    gains = b.add_input(gain_channels(gain, channels, out, groups))
    steps = [b.affine(out), b.store(out)]
    window = {"kernel": kernel, "stride": stride, "dilation": dilation, "groups": groups}
    b.output(b.gated_conv(b.input, gains, out, gain=gain, steps=steps, **window))
    x = pictures(channels, 7, 6)
    check(b.program(), x, pictures(b.channels(gains), *kernel, seed=2), exact=False)
    check(b.program(), x, pictures(b.channels(gains), 1, 1, seed=3), exact=False)  # one gain for all taps


@pytest.mark.parametrize("gain", GAINS)
def test_gated_conv_is_a_convolution_of_scaled_weights(gain):
    channels, out, groups = 6, 8, 2
    b = Builder(channels)
    gains = b.add_input(gain_channels(gain, channels, out, groups))
    b.output(b.gated_conv(b.input, gains, out, gain=gain, groups=groups))
    x, g = pictures(channels, 5, 6), pictures(b.channels(gains), 3, 3, seed=2)
    (y,) = reference.run(b.program(), [x, g])
    weight = torch.from_numpy(b.tensors["t0"]).permute(0, 3, 1, 2)
    for picture, maps, found in zip(*map(torch.from_numpy, (x, g, y)), strict=True):
        axes = {"output": (groups, 4, 1), "input": (groups, 1, 3), "tap": (1, 1, 1), "weight": (groups, 4, 3)}[gain]
        full = maps.view(*axes, 3, 3).expand(groups, 4, 3, 3, 3).reshape(weight.shape)
        expected = F.conv2d(picture[None], weight * full, padding=1, groups=groups)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 70),
    groups=st.integers(1, 9),
    outs=st.integers(1, 40),
    window=st.integers(1, 70),
    shift=st.integers(1, 80),
    padding=st.integers(0, 2),
    stride=st.integers(1, 2),
)
def test_windowed_conv(channels, groups, outs, window, shift, padding, stride):
    window = min(window, channels)
    b = Builder(channels, seed=shift)
    size = {"groups": groups, "window": window, "shift": shift, "padding": (padding,) * 4, "stride": (stride, stride)}
    weight = b.rng.integers(-2, 3, (groups * outs, 3, 3, window)).astype(np.float32)
    b.output(b.windowed_conv(b.input, groups * outs, weight=weight, **size))
    x = np.random.default_rng(0).integers(-3, 4, (2, channels, 5, 6)).astype(np.float32)
    program = b.program()
    check(program, x, exact=True)
    sets = [[(g * shift + j) % channels for j in range(window)] for g in range(groups)]
    gathered = torch.from_numpy(x)[:, [c for one in sets for c in one]]
    filters = torch.from_numpy(weight).permute(0, 3, 1, 2)
    expected = F.conv2d(gathered, filters, padding=padding, stride=stride, groups=groups)
    np.testing.assert_array_equal(reference.run(program, [x])[0], expected.numpy())


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(*[st.integers(1, 20)] * 2), out=st.tuples(*[st.integers(1, 8)] * 2), channels=st.integers(1, 140))
def test_adaptive_avg_pool(size, out, channels):
    b = Builder(channels)
    b.output(b.adaptive_avg_pool(b.input, *out, steps=[b.affine(channels), b.store(channels)]))
    b.output(b.adaptive_avg_pool(b.input, *out))
    x = pictures(channels, *size)
    check(b.program(), x, exact=False)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(x), out).numpy()
    np.testing.assert_allclose(reference.run(b.program(), [x])[1], expected, rtol=1e-5, atol=1e-6)


def test_gains_of_another_size_are_refused():
    b = Builder(4)
    gains = b.add_input(8)
    b.output(b.gated_conv(b.input, gains, 8, gain="output"))
    given = [pictures(4, 5, 5), pictures(8, 2, 3)]
    with pytest.raises(ProgramError, match="gains of"):
        reference.run(b.program(), given)
    with pytest.raises(ValueError, match="gains of 2x3 for a kernel of 3x3"):
        _core.Model(b.program().to_bytes()).run(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": "all"}, "unknown kind 'all'"),
        ({"gain": "input"}, "need a map of 4 gains"),
        ({"groups": 3}, "groups do not divide"),
        ({"window": 2}, "unknown field 'window'"),
    ],
)
def test_damaged_gated_conv(change, message):
    b = Builder(4)
    b.output(b.gated_conv(b.input, b.add_input(8), 8, gain="output"))
    b.ops[0].attrs.update(change)
    with pytest.raises(ValueError, match=message):
        _core.Model(b.program().to_bytes())


@pytest.mark.parametrize("change", [{"window": 5}, {"window": 0}, {"shift": 0}, {"groups": 3}])
def test_damaged_windowed_conv(change):
    b = Builder(4)
    b.output(b.windowed_conv(b.input, 8, groups=2, window=3, shift=2))
    b.ops[0].attrs.update(change)
    with pytest.raises(ValueError, match="damaged program"):
        _core.Model(b.program().to_bytes())
