"""`leanconv explain`: attention measured by hooks, told in numbers, and drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from leanconv.cli.app import app
from leanconv.cli.errors import guarded
from leanconv.cli.explain import explain
from leanconv.networks import from_checkpoint, from_name, settle
from leanconv.nn.aw_conv import AWConv2d
from leanconv.preprocess import normalize, read_pictures
from leanconv.report.attention import LayerAttention, measure, spread
from leanconv.report.attention_sheet import draw, render
from leanconv.train import checkpoint

NAME = "aw_resnet20_cifar"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nineteen pictures, more than a batch; the first has a name that a formula could be read into."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [folder / f"{'a$b$<&>花' if i == 0 else f'picture{i:02}'}.png" for i in range(19)]
    for path in paths:
        Image.fromarray(rng.integers(0, rng.integers(30, 256), (40, 36, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the network with batch norms that are not those it starts with."""
    network = from_name(NAME, num_classes=3)
    settle(network.model, network.example(count=4).numpy())
    path = tmp_path_factory.mktemp("trained") / "aw.safetensors"
    rules = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    checkpoint.save(path, network.model, name=NAME, model_args=network.arguments, preprocessing=rules)
    return path


@pytest.fixture
def call(capsys) -> Callable[..., tuple[int, str, str]]:
    """Calls `leanconv ARGUMENTS...` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = guarded(lambda: app(list(map(str, arguments))), debug=lambda: False)
        return code, *capsys.readouterr()

    return call


def words(svg: bytes) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def attention(name: str, values: np.ndarray) -> LayerAttention:
    return LayerAttention(name, "about", "output channels", values.astype(np.float32))


@pytest.mark.parametrize("share", ["in", "out", "taps", "none"])
@pytest.mark.parametrize("groups", [1, 2])
def test_measured_values_are_those_of_attention(share, groups):
    torch.manual_seed(0)
    layers = [AWConv2d(4, 6, (3, 2), share=share, groups=groups), AWConv2d(6, 8, 1, share=share, groups=groups)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval()
    x = torch.randn(5, 4, 9, 8)
    before = model(x)
    found = measure(model, [x[:3], x[3:]])
    assert torch.equal(model(x), before) and all(not layer.attn._forward_hooks for layer in layers)
    assert [layer.name for layer in found] == ["0", "2"]
    for layer, measured, given in zip(layers, found, [x, layers[0](x).relu()], strict=True):
        full = layer.attention(given).detach()  # [N, outputs, inputs / groups, h, w]
        if share == "out":
            expected = full[:, :: layer.out_channels // groups].flatten(1, 2)
            assert measured.axis == "input channels"
        else:
            expected = full.mean(2)[:, : 1 if share == "taps" else None]
            assert measured.axis == "output channels"
        torch.testing.assert_close(torch.from_numpy(measured.values), expected)


def test_order_of_calls_first_calls_and_layers_that_rest():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first, self.rests = (AWConv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(self.first(x)))

    model, x = Odd().eval(), torch.randn(2, 3, 4, 4)
    found = measure(model, [x])
    assert [layer.name for layer in found] == ["first", "second"]
    expected = model.first.attention(x).detach().mean(2)
    torch.testing.assert_close(torch.from_numpy(found[0].values), expected)


def test_summary_parts_the_variance():
    values = np.random.default_rng(0).random((4, 5, 3, 3))
    summary = attention("a", values).summary()
    assert summary["mean"] == pytest.approx(values.mean()) and summary["max"] == pytest.approx(values.max())
    assert summary["deviation"] ** 2 + summary["deviation_pictures"] ** 2 == pytest.approx(values.var())
    same = attention("a", np.repeat(values[:1], 3, axis=0)).summary()
    assert same["deviation_pictures"] == pytest.approx(0, abs=1e-7)
    assert attention("a", values[:1]).summary()["deviation_pictures"] is None


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (8, list(range(8))), (33, [0, 5, 9, 14, 18, 23, 27, 32])])
def test_spread(count, expected):
    layers = [attention(str(i), np.zeros((1, 1, 1, 1))) for i in range(count)]
    assert [layer.name for layer in spread(layers)] == [str(i) for i in expected]


@pytest.mark.parametrize("count", [1, 12])
def test_sheet(count):
    rng = np.random.default_rng(0)
    shapes = [(1, 3, 3), (16, 1, 1), (4, 7, 7)] + [(2, 3, 3)] * 9
    layers = [attention(f"layer{i}", rng.random((count, *shape))) for i, shape in enumerate(shapes)]
    pictures = [(f"p{i}.png", np.zeros((8, 8, 3), np.uint8)) for i in range(min(count, 8))]
    svg = render(draw(layers, layers[:3], pictures, "The title"), ".svg")
    texts = words(svg)
    assert "The title" in texts and all(name in texts for name, _ in pictures)
    # the name of a row is beside its ticks in the overview, twice
    assert [texts.count(f"layer{i}") for i in range(5)] == [3, 3, 3, 0, 0]
    assert texts.count("standard deviation over the pictures") == (3 if count > 1 else 0)
    assert any("3 of 12 layers" in text for text in texts)
    assert any("first 8 are shown" in text for text in texts) == (count == 12)
    assert any("With several pictures" in text for text in texts) == (count == 1)
    assert f"{layers[0].mean.mean(0)[0, 0]:.3f}" in texts


def test_many_rows_are_not_all_named_in_the_overview():
    layers = [attention(f"layer{i}", np.zeros((1, 1, 1, 1))) for i in range(13)]
    overview = draw(layers, layers, [("p.png", np.zeros((4, 4, 3), np.uint8))], "t").axes[1]
    assert [label.get_text() for label in overview.get_xticklabels()] == [f"layer{i}" for i in range(0, 13, 2)]


def test_constant_attention_can_be_drawn():
    layers = [attention("a", np.zeros((2, 4, 3, 3)))]
    svg, again = (render(draw(layers, layers, [("p", np.zeros((4, 4, 1), np.uint8))], "t"), ".svg") for _ in range(2))
    assert svg == again
    texts = words(svg)
    assert texts.count("0.000") >= 9 and any("all layers" in text for text in texts)


def test_json_has_the_numbers_of_a_checkpoint(trained, images, capsys):
    capsys.readouterr()
    explain(str(trained), images, None, [], True)
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == str(trained) and told["trained"] and told["pictures"] == list(map(str, images))
    assert len(told["layers"]) == 18
    network = from_checkpoint(trained)
    layer, row, inputs = network.model.layer1[0].conv1, told["layers"][0], []
    layer.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        network.model(torch.from_numpy(normalize(read_pictures(images, network.rules), network.rules)))
        full = layer.attention(inputs[0])
    assert row["name"] == "layer1.0.conv1" and row["shape"] == [16, 3, 3] and row["channels"] == "output channels"
    assert row["mean"] == pytest.approx(float(full.mean()), abs=1e-5)
    assert (row["min"], row["max"]) == pytest.approx((float(full.min()), float(full.max())), abs=1e-5)
    over_pictures = full.std(0, correction=0).square().mean().sqrt()
    assert row["deviation_pictures"] == pytest.approx(float(over_pictures), abs=1e-5) and over_pictures > 0


def test_command_draws_and_tells(call, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("explain", NAME, *images[:2])
    assert (
        code == 0
        and "wrote attention.svg" in out
        and sum(line.strip().startswith("layer") for line in out.splitlines()) == 18
    )
    texts = words((tmp_path / "attention.svg").read_bytes())
    assert f"Weight attention of {NAME}, untrained" in texts and images[0].name in texts
    assert any("8 of 18 layers" in text for text in texts)


def test_command_with_chosen_layers(call, trained, images, tmp_path):
    target = tmp_path / "one.png"
    code, out, _ = call(
        "explain", trained, images[1], "-o", target, "--layers", "layer2", "--layers", "*.2.conv?", "--json"
    )
    rows = json.loads(out)["layers"]
    assert code == 0 and {row["deviation_pictures"] for row in rows} == {None}
    assert {row["name"] for row in rows} == {
        f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2) if i == 2 or j == 2
    }
    with Image.open(target) as drawn:
        assert drawn.format == "PNG" and drawn.height > drawn.width


def test_json_alone_writes_nothing(call, trained, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("explain", trained, images[1], "--json")[0] == 0 and not list(tmp_path.iterdir())


def test_errors_are_one_line_and_nothing_is_written(call, trained, images, tmp_path):
    text, folder = tmp_path / "text.png", tmp_path / "folder.svg"
    text.write_text("no picture")
    folder.mkdir()
    target = tmp_path / "x.svg"
    for arguments, expected in (
        ((trained, images[0], "-o", tmp_path / "x.html"), "must end in .svg or .png"),
        ((trained, images[0], "-o", tmp_path / "absent" / "x.svg"), "no such folder"),
        ((trained, images[0], "-o", folder, "--layers", "layer1.0.conv1"), "folder.svg"),
        ((trained, tmp_path / "absent.png", "-o", target), "absent.png: no such file"),
        ((trained, images[0], text, "-o", target), "text.png: not a picture"),
        ((trained, folder, "-o", target), "no pictures in this folder"),
        ((trained, images[0], "-o", target, "--layers", "layer9"), "--layers layer9 fits no AW-convolution"),
        (("resnet20_cifar", images[0], "-o", target), "aw_resnet18 is a model that has"),
        (("aw_resnet20_cifer", images[0], "-o", target), "did you mean 'aw_resnet20_cifar'?"),
        (("x.lconv", images[0], "-o", target), "packed file"),
        (("absent.safetensors", images[0], "-o", target), "absent.safetensors: no such file"),
    ):
        code, out, err = call("explain", *arguments)
        assert code == 1 and out == "" and len(err.splitlines()) == 1 and expected in err, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.svg", "text.png"] and not list(folder.iterdir())


@pytest.mark.parametrize(("missing", "extra"), [("torch", "train"), ("matplotlib", "demo")])
def test_missing_extras(missing, extra, images, tmp_path):
    code = (
        f"import sys; sys.argv[1:] = ['explain', 'x', {str(images[0])!r}]; sys.modules[{missing!r}] = None\n"
        "from leanconv.cli import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and f'pip install "leanconv[{extra}]"' in done.stderr and missing in done.stderr


def test_the_module_is_light():
    code = "import sys, leanconv.cli.explain; sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'matplotlib')))"
    subprocess.run([sys.executable, "-c", code], check=True)
