"""Short chains of equal convolutions, from which the time of one of them is found by difference.

An engine lays a map out in its own way at the edges of a network and spends a fixed time a call. In the difference of a
chain of 6 equal convolutions and a chain of 2 both cancel: four convolutions remain. A convolution with stride 2 cannot
follow itself: it stands between one convolution at its input's size and one at its output's size, whose times are known
then; half the edges of either chain are taken off too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

SHORT, LONG = 2, 6


@dataclass(frozen=True)
class Layer:
    """A square convolution with padding kernel // 2 on a map of size x size pixels."""

    in_channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        """
        >>> Layer(64, 64, 56).name, Layer(64, 128, 56, stride=2).name, Layer(64, 64, 56, kernel=1).name
        ('3x3, 64 @56', '3x3, 64 -> 128 @56, stride 2', '1x1, 64 @56')
        """
        wide = str(self.in_channels)
        if self.out_channels != self.in_channels:
            wide += f" -> {self.out_channels}"
        return f"{self.kernel}x{self.kernel}, {wide} @{self.size}" + (
            f", stride {self.stride}" if self.stride > 1 else ""
        )

    @property
    def out_size(self) -> int:
        return -(-self.size // self.stride)

    @property
    def macs(self) -> int:
        """Multiply-adds of one picture."""
        return self.out_size**2 * self.kernel**2 * self.in_channels * self.out_channels

    def before(self) -> Layer:
        """The convolution with stride 1 that keeps this one's input."""
        return Layer(self.in_channels, self.in_channels, self.size, self.kernel)

    def after(self) -> Layer:
        """The convolution with stride 1 that keeps this one's output."""
        return Layer(self.out_channels, self.out_channels, self.out_size, self.kernel)


def chains(layer: Layer) -> list[tuple[Layer, ...]]:
    """What must be timed to know `layer`; see :func:`layer_time`."""
    if layer.before() == layer:
        return [(layer,) * SHORT, (layer,) * LONG]
    ends = [layer.before(), layer.after()]
    return [(ends[0], layer, ends[1]), *dict.fromkeys(chain for end in ends for chain in chains(end))]


def layer_time(layer: Layer, times: dict[tuple[Layer, ...], float]) -> float:
    """The time of one layer from those of its :func:`chains`.

    >>> a, b, s = Layer(64, 64, 56), Layer(128, 128, 28), Layer(64, 128, 56, stride=2)
    >>> times = {(a,) * 2: 3.0, (a,) * 6: 7.0, (b,) * 2: 5.0, (b,) * 6: 13.0, (a, s, b): 5.5}
    >>> layer_time(a, times), layer_time(b, times), layer_time(s, times)  # edges: 1 each
    (1.0, 2.0, 1.5)
    """
    if layer.before() == layer:
        return (times[(layer,) * LONG] - times[(layer,) * SHORT]) / (LONG - SHORT)
    ends = [layer.before(), layer.after()]
    whole = times[ends[0], layer, ends[1]]
    for end in ends:
        one = layer_time(end, times)
        whole -= one + (times[(end,) * SHORT] - SHORT * one) / 2
    return whole


def weights(chain: tuple[Layer, ...]) -> list[np.ndarray]:
    """Weights [out, in, kernel, kernel] of each convolution: always the same, and such that maps keep their spread."""
    random = np.random.default_rng(0)
    made = []
    for layer in chain:
        shape = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
        made.append(random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]), dtype=np.float32))
    return made


def maps(chain: tuple[Layer, ...], batch: int) -> np.ndarray:
    """An input [batch, channels, size, size]."""
    shape = (batch, chain[0].in_channels, chain[0].size, chain[0].size)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def save(chain: tuple[Layer, ...], path: Path) -> None:
    """Write a chain for :func:`load`."""
    path.write_text(json.dumps([asdict(layer) for layer in chain]))


def load(path: Path) -> nn.Module:
    """The chain as a torch module. Needs torch."""
    import torch
    from torch import nn

    chain = tuple(Layer(**entry) for entry in json.loads(path.read_text()))
    made = []
    for layer, weight in zip(chain, weights(chain), strict=True):
        conv = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.kernel // 2, bias=False
        )
        conv.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
        made.append(conv)
    return nn.Sequential(*made).eval()


def save_onnx(chain: tuple[Layer, ...], batch: int, path: Path) -> None:
    """Write the chain as ONNX with a fixed batch. Needs onnx."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, initial = [], []
    for i, (layer, weight) in enumerate(zip(chain, weights(chain), strict=True)):
        initial.append(numpy_helper.from_array(weight, f"weight{i}"))
        nodes.append(
            helper.make_node(
                "Conv",
                [f"map{i}", f"weight{i}"],
                [f"map{i + 1}"],
                kernel_shape=[layer.kernel] * 2,
                pads=[layer.kernel // 2] * 4,
                strides=[layer.stride] * 2,
            )
        )
    first, last = chain[0], chain[-1]
    before = [batch, first.in_channels, first.size, first.size]
    after = [batch, last.out_channels, last.out_size, last.out_size]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("map0", TensorProto.FLOAT, before)],
        [helper.make_tensor_value_info(f"map{len(chain)}", TensorProto.FLOAT, after)],
        initial,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def binary_network(chain: tuple[Layer, ...]) -> nn.Module:
    """The chain with binary convolutions as a residual network has them: sign, convolution, batch norm, plus the input.

    The shortcut is left out where the shape changes. Needs torch.
    """
    import torch
    from torch import Tensor, nn

    from leanconv.nn import BinaryConv2d

    class Block(nn.Module):
        def __init__(self, layer: Layer) -> None:
            super().__init__()
            self.conv = BinaryConv2d(
                layer.in_channels, layer.out_channels, layer.kernel, stride=layer.stride, padding=layer.kernel // 2
            )
            self.bn = nn.BatchNorm2d(layer.out_channels)
            self.shortcut = layer.before() == layer

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bn(self.conv(x))
            return y + x if self.shortcut else y

    torch.manual_seed(0)
    return nn.Sequential(*(Block(layer) for layer in chain)).eval()
