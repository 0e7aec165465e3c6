"""What the attention of AW-convolutions does on given pictures, measured in a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leanconv.nn.aw_conv import AWConv2d


@dataclass(frozen=True)
class LayerAttention:
    """The attention A of one layer on N pictures.

    Args:
        name: the layer's name in its network.
        about: its channels, kernel and formula, for people.
        axis: what `values` has C of: "output channels", or "input channels" where A is constant along the outputs.
        values: [N, C, h, w]; where A has maps for pairs of channels, their mean over the inputs.

    >>> layer = LayerAttention("conv", "", "output channels", np.array([[[[0.2]], [[0.4]]], [[[0.4]], [[0.8]]]]))
    >>> {key: value if value is None else round(value, 3) for key, value in layer.summary().items()}
    {'mean': 0.45, 'min': 0.2, 'max': 0.8, 'deviation': 0.15, 'deviation_pictures': 0.158}
    """

    name: str
    about: str
    axis: str
    values: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """[C, h, w]: over the pictures."""
        return self.values.mean(0, dtype=np.float64)

    @cached_property
    def change(self) -> np.ndarray | None:
        """[C, h, w]: the standard deviation over the pictures, None for a single one."""
        return self.values.std(0, dtype=np.float64) if len(self.values) > 1 else None

    def summary(self) -> dict[str, float | None]:
        """Mean, min, max, and the two parts of the spread: their squares add up to the variance of all values.

        `deviation` is that of :attr:`mean` over channels and taps, `deviation_pictures` the root mean square of
        :attr:`change`.
        """
        return {
            "mean": float(self.mean.mean()),
            "min": float(self.values.min()),
            "max": float(self.values.max()),
            "deviation": float(self.mean.std()),
            "deviation_pictures": None if self.change is None else float(np.sqrt((self.change**2).mean())),
        }


def measure(model: nn.Module, batches: Iterable[Tensor]) -> list[LayerAttention]:
    """Run `model` as it is on batches of prepared pictures, [N, C, H, W]: its AWConv2d layers in the order of calls.

    A layer that is called several times counts with its first call.
    Raises: ValueError for a network without AWConv2d.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, AWConv2d)}
    if not layers:
        raise ValueError(
            "this network has no AW-convolution, the attention that is shown here: aw_resnet18 is a model that has "
            "(`leanconv list` shows more), and leanconv.nn.convert(model, AWConv2d) gives them to others"
        )
    found: dict[str, list[np.ndarray]] = {}
    called: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, arguments: Any, maps: Tensor) -> None:
            along = 2 if layers[name].share == "out" else 3
            called.setdefault(name, maps.mean(along).flatten(1, 2).float().numpy())

        return hook

    handles = [layer.attn.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            for batch in batches:
                called.clear()
                model(batch)
                for name, values in called.items():
                    found.setdefault(name, []).append(values)
    finally:
        for handle in handles:
            handle.remove()
    return [_attention(name, layers[name], np.concatenate(values)) for name, values in found.items()]


def _attention(name: str, layer: AWConv2d, values: np.ndarray) -> LayerAttention:
    kernel = "×".join(map(str, layer.kernel_size))
    gain = "(1 + A)" if layer.residual else "A"
    about = f"{layer.in_channels} → {layer.out_channels} channels, {kernel}, weight × {gain}"
    if layer.share == "none":
        about += ", A averaged over the input channels"
    return LayerAttention(name, about, "input channels" if layer.share == "out" else "output channels", values)


def spread(layers: Sequence[LayerAttention], count: int = 8) -> list[LayerAttention]:
    """At most `count` layers, evenly from the first to the last."""
    chosen = np.linspace(0, len(layers) - 1, min(count, len(layers))).round().astype(int)
    return [layers[i] for i in chosen]
