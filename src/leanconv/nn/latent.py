"""The latent weights of binary layers, used as real ones: the first of the two steps of two-step training."""

from __future__ import annotations

from torch import nn

from leanconv.nn.binarize import WeightBinarizer


def real_weights(model: nn.Module, enabled: bool) -> int:
    """Let every binary layer of `model` use its latent weights as they are, or binary again; returns how many layers.

    While on, the weights are neither replaced by their signs nor scaled, and their gradient is the true one; the
    activations stay binary. The switch is no part of the state dict, and the network cannot be exported or compiled
    to a packed file while it is on.

    >>> import torch
    >>> from leanconv.nn import BinaryLinear
    >>> layer = BinaryLinear(2, 1)
    >>> _ = nn.init.constant_(layer.weight, 0.25)
    >>> x = torch.ones(1, 2)
    >>> layer(x).item(), real_weights(layer, True), layer(x).item(), real_weights(layer, False), layer(x).item()
    (2.0, 1, 0.5, 1, 2.0)
    """
    binarizers = [getattr(module, "binarize_weight", None) for module in model.modules()]
    found = [binarizer for binarizer in binarizers if isinstance(binarizer, WeightBinarizer)]
    for binarizer in found:
        binarizer.real = bool(enabled)
    return len(found)
