"""Binarisers: what turns real activations and real latent weights into +-1, and what gradient they pass back.

The forward of every activation binariser is the same sign, with **sign(0) = sign(-0.0) = +1** and sign(NaN) = -1;
they differ in the gradient, since the true one is zero almost everywhere. Under ``torch.export`` each emits the
marker operator ``leanconv::sign``; in training they are plain PyTorch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.nn.exporting import is_exporting

WeightKind = Literal["sign", "magnitude"]


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0 (so for 0 and -0.0 too), else -1, in x's dtype. No gradient.

    >>> sign(torch.tensor([-0.5, -0.0, 0.0, 2.0])).tolist()
    [-1.0, 1.0, 1.0, 1.0]
    """
    return (x >= 0).to(x.dtype).mul_(2).sub_(1)  # on a CPU twice as fast as torch.where


def weight_scale(weight: Tensor, kind: str, transposed: bool = False, groups: int = 1) -> Tensor | None:
    """The factor of each output channel that goes with a weight binariser: the one place where it is computed.

    ``"sign"``: None. ``"magnitude"``: ``scale[c] = mean |w|`` over the filter of output channel c (XNOR-Net, arXiv
    1603.05279, section 3.1; cited from memory). Differentiable; detach the weight for a constant scale.

    Args:
        weight: ``[O, I / groups, *kernel]`` (convolution), ``[O, I]`` (linear) or, with `transposed`,
            ``[I, O / groups, *kernel]``.
        kind: ``"sign"`` or ``"magnitude"``.
    Returns: ``[O]`` or None.
    Raises: ValueError for another kind.

    >>> weight_scale(torch.tensor([[1.0, -3.0], [0.5, 0.5]]), "magnitude").tolist()
    [2.0, 0.5]
    """
    if kind == "sign":
        return None
    if kind != "magnitude":
        raise ValueError(f"unknown weight binariser {kind!r}: expected 'sign' or 'magnitude'")
    magnitude = weight.abs()
    if not transposed:
        return magnitude.flatten(1).mean(1)
    per_group = magnitude.unflatten(0, (groups, -1))  # g, I/g, O/g, *kernel
    return per_group.transpose(1, 2).flatten(2).mean(2).flatten()


# ---------------------------------------------------------------------------------------------- gradients of the sign


def _linked_sign(x: Tensor) -> Tensor:
    """sign(x) for use inside an autograd function.

    torch.compile of torch 2.11 drops the gradient of such a function without a word where its result doesn't depend
    on x by differentiable operators, so while it traces the result is linked to x by a selection that never selects
    x.
    """
    signs = sign(x)
    if torch.compiler.is_dynamo_compiling():
        signs = torch.where(torch.zeros_like(x, dtype=torch.bool), x, signs)
    return signs


class _ClippedSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, clip: float) -> Tensor:
        return _linked_sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, clip = inputs
        ctx.save_for_backward(x.abs() <= clip)  # one byte an element is kept for backward, not four

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (passes,) = ctx.saved_tensors
        return grads[0] * passes, None


class _ApproxSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _linked_sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (2 - 2 * x.abs()).clamp_(min=0) * grads[0]


class _SwishSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, beta: float) -> Tensor:
        return _linked_sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.beta = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        z = ctx.beta * x
        return grads[0] * (ctx.beta * (2 - z * torch.tanh(z / 2)) / (1 + torch.cosh(z))), None


class ActivationBinarizer(nn.Module):
    """Base of the activation binarisers: +-1 in x's dtype, any shape; subclasses choose the gradient.

    A subclass overrides :meth:`surrogate`; it must return exactly +-1.
    """

    def surrogate(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if is_exporting():
            return torch.ops.leanconv.sign(x)
        return self.surrogate(x)


class STESign(ActivationBinarizer):
    """Sign with a clipped straight-through gradient.

    Forward ``sign(x)``; gradient ``1 if |x| <= clip else 0``. `clip` 1.0 is the usual choice (arXiv 1602.02830; cited
    from memory), 1.3 that of BinaryDenseNet.

    Shapes: any -> same.

    >>> x = torch.tensor([-2.0, -0.5, 0.0, 1.2], requires_grad=True)
    >>> STESign(clip=1.3)(x).sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, clip: float = 1.0) -> None:
        super().__init__()
        if not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        self.clip = float(clip)

    def surrogate(self, x: Tensor) -> Tensor:
        return _ClippedSign.apply(x, self.clip)

    def extra_repr(self) -> str:
        return f"clip={self.clip}"


class ApproxSign(ActivationBinarizer):
    """Bi-Real's approximate sign: the gradient is that of a piecewise quadratic approximation of the sign.

    Forward ``sign(x)``; gradient ``2 + 2x`` on [-1, 0), ``2 - 2x`` on [0, 1), 0 elsewhere (Bi-Real Net, arXiv
    1808.00278; the formula as in its official code).

    Shapes: any -> same.

    >>> x = torch.tensor([-1.5, -0.5, 0.0, 0.75], requires_grad=True)
    >>> ApproxSign()(x).sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 2.0, 0.5]
    """

    def surrogate(self, x: Tensor) -> Tensor:
        return _ApproxSign.apply(x)


class SwishSign(ActivationBinarizer):
    """Sign whose gradient is that of the SignSwish function of BNN+ (arXiv 1812.11800; formula cited from memory).

    Forward ``sign(x)``; gradient ``beta * (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x))``, the derivative of
    ``2 s(beta x) (1 + beta x (1 - s(beta x))) - 1`` with s the logistic function. It is slightly negative for large
    |x|.

    Shapes: any -> same.

    >>> x = torch.zeros(1, requires_grad=True)
    >>> SwishSign(beta=5.0)(x).backward()
    >>> x.grad.item()
    5.0
    """

    def __init__(self, beta: float = 5.0) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta must be positive, got {beta}")
        self.beta = float(beta)

    def surrogate(self, x: Tensor) -> Tensor:
        return _SwishSign.apply(x, self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta}"


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """View a [C] parameter so that it broadcasts over x of [N, C, ...]."""
    return parameter.view(1, -1, *[1] * (x.dim() - 2))


class RSign(nn.Module):
    """ReActNet's sign with a learnable shift for each channel (arXiv 2003.03488, section 4.2; cited from memory).

    Forward ``sign(x + shift[c])``, where the shift is minus the paper's threshold alpha and starts at 0. The gradient
    is that of `binarizer` (default: :class:`ApproxSign`), for x and shift alike.

    Shapes: [N, C, ...] -> same.

    >>> layer = RSign(2)
    >>> with torch.no_grad():
    ...     _ = layer.shift.copy_(torch.tensor([1.0, -1.0]))
    >>> layer(torch.full((1, 2), 0.5)).tolist()
    [[1.0, -1.0]]
    """

    def __init__(self, channels: int, binarizer: ActivationBinarizer | None = None) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.binarizer = binarizer if binarizer is not None else ApproxSign()

    def forward(self, x: Tensor) -> Tensor:
        return self.binarizer(x + _per_channel(self.shift, x))


class RPReLU(nn.Module):
    """ReActNet's PReLU with a learnable shift before and after it, each per channel (arXiv 2003.03488, section 4.2;
    cited from memory).

    ``y = prelu(x + shift_in[c], slope[c]) + shift_out[c]``; in the paper's letters shift_in = -gamma, slope = beta,
    shift_out = zeta. The slope starts at `init` (0.25, PyTorch's), the shifts at 0.

    Shapes: [N, C, ...] -> same.

    >>> RPReLU(1)(torch.tensor([[-4.0], [2.0]])).tolist()
    [[-1.0], [2.0]]
    """

    def __init__(self, channels: int, init: float = 0.25) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), float(init)))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.prelu(x + _per_channel(self.shift_in, x), self.slope)
        return x + _per_channel(self.shift_out, x)


# ------------------------------------------------------------------------------------------------------------ weights


class RealWeightsError(ValueError):
    """A network is exported while its layers use their latent weights as real ones."""


class WeightBinarizer(nn.Module):
    """Base of the weight binarisers: latent real weights -> exact +-1 signs and, apart from them, a scale for each
    output channel.

    The two stay apart because a binary convolution first sums +-1 products and scales afterwards. Gradient of the
    signs: straight-through, ``1 if |w| <= clip else 0``. `kind` is the name that marker operators and compiler know:
    ``"sign"`` or ``"magnitude"``. A subclass overrides :meth:`signs` and :meth:`factor`. While `real` is set (see
    :func:`leanconv.nn.real_weights`) the latent weights come back as they are, without a scale.
    """

    kind: WeightKind = "sign"
    real: bool = False

    def __init__(self, clip: float = 1.0) -> None:
        super().__init__()
        if not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        self.clip = float(clip)

    def signs(self, weight: Tensor) -> Tensor:
        return _ClippedSign.apply(weight, self.clip)

    def factor(self, weight: Tensor, transposed: bool = False, groups: int = 1) -> Tensor | None:
        return weight_scale(weight, self.kind, transposed, groups)

    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.real else self.signs(weight)

    def scale(self, weight: Tensor, transposed: bool = False, groups: int = 1) -> Tensor | None:
        return None if self.real else self.factor(weight, transposed, groups)

    def marker_kind(self) -> WeightKind:
        """`kind`, for a marker operator. Raises RealWeightsError while the weights are used as real ones."""
        if self.real:
            raise RealWeightsError(
                "the binary layers use their latent weights as real ones, which a packed file cannot hold; "
                "switch back by leanconv.nn.real_weights(model, False)"
            )
        return self.kind

    def extra_repr(self) -> str:
        return f"clip={self.clip}"


class SignWeight(WeightBinarizer):
    """sign(w) without a scale; gradient ``1 if |w| <= clip else 0``.

    >>> SignWeight()(torch.tensor([-0.1, 0.0])).tolist()
    [-1.0, 1.0]
    """


class MagnitudeWeight(WeightBinarizer):
    """sign(w) times the mean |w| of each output filter, as signs and scale apart (XNOR-Net; Bi-Real Net, arXiv
    1808.00278).

    Effective weight ``s[c] * sign(w)`` with ``s[c] = mean |w[c]|``. Gradient with `detach` (Bi-Real's official code
    detaches the scale): ``s[c] * (|w| <= clip)``; that code itself passes ``(|w| <= clip)`` without the factor s[c],
    which an optimizer of Adam's kind does not see. Without `detach` the scale's own gradient ``sign(w) / n`` is
    added.

    >>> binarizer, w = MagnitudeWeight(), torch.tensor([[0.5, -1.5]])
    >>> binarizer(w).tolist(), binarizer.scale(w).tolist()
    ([[1.0, -1.0]], [1.0])
    """

    kind: WeightKind = "magnitude"

    def __init__(self, clip: float = 1.0, detach: bool = True) -> None:
        super().__init__(clip)
        self.detach = detach

    def factor(self, weight: Tensor, transposed: bool = False, groups: int = 1) -> Tensor | None:
        return weight_scale(weight.detach() if self.detach else weight, self.kind, transposed, groups)

    def extra_repr(self) -> str:
        return f"clip={self.clip}, detach={self.detach}"


# -------------------------------------------------------------------------------------------------------------- names

ACTIVATION_BINARIZERS: dict[str, Callable[[int], nn.Module]] = {
    "ste_sign": lambda channels: STESign(),
    "approx_sign": lambda channels: ApproxSign(),
    "swish_sign": lambda channels: SwishSign(),
    "rsign": RSign,
}
WEIGHT_BINARIZERS: dict[str, Callable[[], WeightBinarizer]] = {
    "sign": SignWeight,
    "magnitude": MagnitudeWeight,
    "magnitude_trained": lambda: MagnitudeWeight(detach=False),
}


def _unknown(what: str, name: object, known: dict[str, Any]) -> ValueError:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {name!r}: expected one of {', '.join(known)}, or a module{hint}")


def create_activation_binarizer(spec: str | nn.Module | None, channels: int) -> nn.Module | None:
    """A module from its name (``ste_sign approx_sign swish_sign rsign``); modules and None pass through.

    Raises: ValueError for an unknown name.

    >>> create_activation_binarizer("approx_sign", 8)
    ApproxSign()
    """
    if spec is None or isinstance(spec, nn.Module):
        return spec
    if spec not in ACTIVATION_BINARIZERS:
        raise _unknown("activation binariser", spec, ACTIVATION_BINARIZERS)
    return ACTIVATION_BINARIZERS[spec](channels)


def create_weight_binarizer(spec: str | WeightBinarizer) -> WeightBinarizer:
    """A weight binariser from its name (``sign magnitude magnitude_trained``); a binariser passes through.

    Raises: ValueError for an unknown name.

    >>> create_weight_binarizer("magnitude")
    MagnitudeWeight(clip=1.0, detach=True)
    """
    if isinstance(spec, WeightBinarizer):
        return spec
    if spec not in WEIGHT_BINARIZERS:
        raise _unknown("weight binariser", spec, WEIGHT_BINARIZERS)
    return WEIGHT_BINARIZERS[spec]()
