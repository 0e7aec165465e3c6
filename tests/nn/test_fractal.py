import pytest
import torch
from torch import nn

from leanconv.nn import BinaryConv2d
from leanconv.nn.fractal import BinaryDenseLayer, BinaryResidualLayer, FractalUnit, join_weights


class Named(nn.Module):
    """Multiplies by a prime of its own, so that a result tells which layers it went through."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def unit(columns, **args):
    primes = iter((2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47))
    return FractalUnit(columns, lambda first: Named(next(primes)), **args).double().eval()


def one(columns, **args):
    return float(unit(columns, **args)(torch.ones(1, 1, 1, 1, dtype=torch.float64)))


def test_the_rule_by_hand():
    # layers in order of position: c2: p1 column 2 (2); p2 columns 1 (3), 2 (5)
    assert one(1) == 2
    assert one(2) == (3 + 2 * 5) / 2
    assert one(2, join="sum") == 3 + 2 * 5
    # c3: p1 c3(2); p2 c2(3) c3(5); p3 c3(7); p4 c1(11) c2(13) c3(17)
    half = (3 + 2 * 5) / 2
    assert one(3) == pytest.approx((11 + half * 13 + half * 7 * 17) / 3)
    assert one(3, merged=False) == pytest.approx((11 + (half * (13 + 7 * 17) / 2)) / 2)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_depth_count_and_identity(columns, merged):
    made = []

    def layer(first):
        made.append(first)
        return nn.Identity()

    fractal = FractalUnit(columns, layer, merged=merged)
    assert len(fractal.layers) == 2**columns - 1 == len(made) and fractal.depth == 2 ** (columns - 1)
    assert sum(made) == columns  # each column begins at the input once
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(fractal(x), x)


def test_merged_and_nested_use_every_layer_once():
    for merged in (True, False):
        calls = []
        fractal = FractalUnit(4, lambda first: nn.Identity(), merged=merged)
        for name, layer in fractal.layers.items():
            layer.register_forward_hook(lambda m, i, o, name=name, calls=calls: calls.append(name))
        fractal(torch.zeros(1, 1, 1, 1))
        assert sorted(calls) == sorted(fractal.layers)


def test_one_column_is_the_plain_layer():
    torch.manual_seed(0)
    layer = BinaryResidualLayer(4)
    fractal = FractalUnit(1, lambda first: layer)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(fractal.eval()(x), layer(x))


def test_without_binary_outputs_the_input_comes_back():
    """Acceptance check 3 of the specification."""
    fractal = FractalUnit(4, lambda first: BinaryResidualLayer(8, binarize_weight="magnitude")).eval()
    for module in fractal.modules():
        if isinstance(module, BinaryConv2d):
            module.register_forward_hook(lambda m, i, o: torch.zeros_like(o))
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(fractal(x), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_global_drop_path_goes_through_one_column(chosen, merged):
    fractal = unit(3, merged=merged).train()
    column = torch.tensor([chosen, 0])
    got = fractal(torch.ones(2, 1, 1, 1, dtype=torch.float64), column).flatten()
    by_column = {1: 11, 2: 3 * 13, 3: 2 * 5 * 7 * 17}
    if merged:
        assert got[0] == by_column[chosen]
    else:  # the nested form makes its layers in another order, and the same column in it
        factors = {name: layer.factor for name, layer in fractal.layers.items()}
        expected = 1.0
        for name, factor in factors.items():
            expected *= factor if name.startswith(f"c{chosen}p") else 1
        assert got[0] == expected
    assert got[1] == pytest.approx(one(3, merged=merged))


def test_local_drop_path_keeps_at_least_one_input():
    torch.manual_seed(0)
    fractal = unit(2, drop_path=0.6).train()
    got = set(fractal(torch.ones(400, 1, 1, 1, dtype=torch.float64)).flatten().tolist())
    assert got == {3.0, 10.0, 6.5}  # one column, the other, both
    summed = unit(2, drop_path=0.6, join="sum").train()
    assert set(summed(torch.ones(400, 1, 1, 1, dtype=torch.float64)).flatten().tolist()) == {3.0, 10.0, 13.0}
    assert len(set(fractal.eval()(torch.ones(50, 1, 1, 1, dtype=torch.float64)).flatten().tolist())) == 1


def test_local_drop_path_drops_as_often_as_it_says():
    torch.manual_seed(0)
    weights = join_weights(torch.zeros(20000, 1, 1, 1), (1, 2, 3), None, drop_path=0.3, join="sum")
    expected = 0.7 + 0.3**3 / 3  # kept, or the spare one where all were dropped
    torch.testing.assert_close(weights.mean(1), torch.full((3,), expected), atol=0.02, rtol=0)


def test_dense_unit_of_the_specification():
    """u1 = a(x), u2 = u1 + b(u1), v = c(x), mean of u2 and v."""
    torch.manual_seed(0)

    def layer(first):
        return BinaryDenseLayer(6, 4) if first else BinaryDenseLayer(4, 4, shortcut=True)

    fractal = FractalUnit(2, layer).eval()
    x = torch.randn(2, 6, 5, 5)
    a, c, b = fractal.layers["c2p1"], fractal.layers["c1p2"], fractal.layers["c2p2"]
    u1 = a.conv(a.bn(x))
    u2 = u1 + b.conv(b.bn(u1))
    torch.testing.assert_close(fractal(x), (u2 + c.conv(c.bn(x))) / 2)


def test_gradients_reach_every_layer():
    fractal = FractalUnit(3, lambda first: BinaryResidualLayer(4), drop_path=0.2)
    fractal(torch.randn(4, 4, 5, 5), torch.tensor([0, 1, 2, 3])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in fractal.named_parameters() if "conv" in n)


@pytest.mark.parametrize("bad", [{"columns": 0}, {"join": "max"}, {"drop_path": 1.0}])
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        FractalUnit(**{"columns": 2, "layer": lambda first: nn.Identity()} | bad)
    with pytest.raises(ValueError, match="equal widths"):
        BinaryDenseLayer(3, 4, shortcut=True)
