"""AW-convolution and REAF through the compiler: verified against PyTorch operator by operator, in the engine too."""

import pytest
import torch
from torch import nn

import leanconv
from leanconv import models  # noqa: F401  (before timm)
from leanconv.compiler import CompileError
from leanconv.nn.aw_conv import AWConv2d
from leanconv.nn.bam import BAM
from leanconv.nn.reaf_conv import ReafConv2d
from tests.compiler.checks import check

from timm.layers import SEModule  # isort: skip


def kinds(program):
    return [op.kind for op in program.ops]


@pytest.mark.parametrize("share", ["in", "out", "taps", "none"])
@pytest.mark.parametrize("pool", ["kernel", "one"])
@pytest.mark.parametrize(
    "layer",
    [
        {"in_channels": 6, "out_channels": 10, "kernel_size": 3, "padding": 1, "bias": True},
        {"in_channels": 8, "out_channels": 12, "kernel_size": (3, 2), "stride": 2, "groups": 4, "bias": False},
        {"in_channels": 9, "out_channels": 9, "kernel_size": 3, "padding": "same", "dilation": 2, "groups": 9},
    ],
)
def test_aw_conv(layer, share, pool):
    torch.manual_seed(0)
    aw = AWConv2d(**layer, rd_ratio=2, share=share, pool=pool)
    model = nn.Sequential(aw, nn.BatchNorm2d(aw.out_channels), nn.ReLU())
    program = check(model, torch.randn(3, aw.in_channels, 8, 7))
    assert kinds(program).count("gated_conv") == 1
    assert kinds(program).count("conv") == 2  # the attention's
    assert program.inputs[0].height is None


@pytest.mark.parametrize("options", [{"residual": False}, {"start": "identity"}, {"norm_layer": nn.Identity}])
def test_forms_of_the_attention(options):
    torch.manual_seed(0)
    check(nn.Sequential(AWConv2d(4, 8, 3, rd_ratio=2, **options)), torch.randn(2, 4, 7, 7))


def test_a_gate_that_the_engine_lacks_is_refused():
    with pytest.raises(CompileError, match="tanh"):
        leanconv.compile(nn.Sequential(AWConv2d(4, 8, 3, gate="tanh")).eval(), torch.randn(2, 4, 7, 7))


@pytest.mark.parametrize(
    ("sets", "window", "shift", "kind"), [(4, 4, 2, "windowed_conv"), (4, 2, 2, "conv"), (2, 8, 3, "windowed_conv")]
)
def test_reaf_conv(sets, window, shift, kind):
    torch.manual_seed(0)
    layer = ReafConv2d(8, 12, 3, stride=2, padding=1, sets=sets, window=window, shift=shift)
    program = check(nn.Sequential(layer, nn.BatchNorm2d(12)), torch.randn(2, 8, 9, 8))
    assert kinds(program) == [kind]


def test_squeeze_and_excitation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), SEModule(8, rd_channels=4))
    check(model, torch.randn(2, 3, 9, 8))


def test_activation_attention_that_the_engine_lacks_is_refused():
    with pytest.raises(CompileError, match=r"layer .*(spatial|channel|gate)"):
        leanconv.compile(nn.Sequential(BAM(16)).eval(), torch.randn(2, 16, 8, 8))
