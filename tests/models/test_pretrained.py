import json

import numpy as np
import pytest
import torch
from torch import nn

import leanconv
from benchmarks import ship_weights
from leanconv import engine, models, shipped
from leanconv.models import WeightsError, list_models, weights_path
from leanconv.models.packed_state import PREFIX, read_state, store_state, without_state
from leanconv.networks import Network, find_network, from_checkpoint, settle
from leanconv.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLinear,
    MagnitudeWeight,
    RPReLU,
    RSign,
)
from leanconv.preprocess import Preprocessing
from leanconv.program import Program, ProgramError
from leanconv.train.data import load_data
from leanconv.train.evaluate import evaluate
from leanconv.train.loop import train
from leanconv.train.recipe import make_recipe

import timm  # isort: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """bireal_digits, trained for two epochs."""
    entries = {"model": "bireal_digits", "data": "digits", "epochs": 2, "learning_rate": 0.003}
    return train(make_recipe(entries), tmp_path_factory.mktemp("run"), progress=False).checkpoint


@pytest.fixture(scope="module")
def trained(checkpoint):
    return from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    """Its packed file, with the state for PyTorch."""
    path = tmp_path_factory.mktemp("packed") / "bireal_digits.lconv"
    store_state(trained.model, trained.compile(verify=False)[0]).save(path)
    return path


def restored(file, **arguments):
    return timm.create_model("bireal_digits", pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments)


def same_programs(a: Program, b: Program) -> None:
    """The same operators and bits; real numbers as close as a mean over equal magnitudes is."""
    assert [(op.kind, op.name, op.attrs, op.steps) for op in a.ops] == [
        (op.kind, op.name, op.attrs, op.steps) for op in b.ops
    ]
    assert a.tensors.keys() == b.tensors.keys()
    for key, tensor in a.tensors.items():
        np.testing.assert_allclose(b.tensors[key], tensor, rtol=1e-6, atol=0, err_msg=key)


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_shipped_weights(name):
    """The file is small and says where it comes from; PyTorch gets the network that the engine runs."""
    path = weights_path(name)
    program = Program.load(path)
    assert path.stat().st_size < 1_000_000
    about = program.provenance
    assert about["model"] == name and about["split"] == "test" and about["recipe"]["model"] == name
    assert 0 < about["top1"] <= 1 and "/" not in about["recipe"]["data"].replace("data/", "")
    network = find_network(name)
    assert network.training["top1"] == about["top1"]
    same_programs(without_state(program), network.compile(verify=False)[0])
    x = network.example(count=4)
    with torch.inference_mode():
        expected = network.model(x).numpy()
    scale = np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(engine.load(path)(x.numpy()), expected, rtol=1e-4, atol=1e-4 * scale)
    assert name in timm.list_models(pretrained=True)


def test_shipped_digits_measure_as_stated():
    about = Program.load(weights_path("bireal_digits")).provenance
    model = timm.create_model("bireal_digits", pretrained=True)
    rules = Preprocessing.from_dict(model.pretrained_cfg)
    assert evaluate(model, load_data("digits").test, rules)["top1"] == about["top1"]


def test_a_trained_network_comes_back(trained, file):
    model = restored(file).eval()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32))
    torch.testing.assert_close(model(x), trained.model(x))
    state, original = model.state_dict(), trained.model.state_dict()
    binary = {f"{k}.weight" for k, m in trained.model.named_modules() if isinstance(m, BinaryConv2d)}
    assert list(state) == list(original)
    for key, value in original.items():
        if key in binary:
            assert torch.equal(state[key] >= 0, value >= 0)
            torch.testing.assert_close(state[key].abs().mean((1, 2, 3)), value.abs().mean((1, 2, 3)))
        elif not key.endswith("num_batches_tracked"):
            assert torch.equal(state[key], value)
    made = Network(model, "bireal_digits", {}, trained.rules).compile()[0]
    same_programs(trained.compile(verify=False)[0], made)


def test_it_learns_on_from_there(trained, file):
    """In training mode too it computes what was trained, and gradients reach every latent weight."""
    model, original = restored(file).train(), from_copy(trained.model).train()
    x = torch.randn(16, 1, 8, 8)
    torch.testing.assert_close(model(x), original(x))
    model(x).logsumexp(1).sum().backward()
    for m in model.modules():
        if isinstance(m, BinaryConv2d):
            assert (m.weight.grad != 0).float().mean() > 0.9


def from_copy(model: nn.Module) -> nn.Module:
    copy = timm.create_model("bireal_digits")
    copy.load_state_dict(model.state_dict())
    return copy


def test_heads_channels_and_features(trained, file):
    x = torch.randn(2, 1, 8, 8)
    body = trained.model.forward_features(x)
    five = restored(file, num_classes=5).eval()
    assert five(x).shape == (2, 5) and torch.allclose(five.forward_features(x), body, rtol=1e-4, atol=1e-5)
    assert restored(file, num_classes=0).eval()(x).shape == (2, 128)
    maps = restored(file, features_only=True, out_indices=(3,)).eval()(x)
    torch.testing.assert_close(maps[0], body)
    colour = restored(file, in_chans=3)
    torch.testing.assert_close(colour.conv1.weight.sum(1), trained.model.conv1.weight[:, 0])


def test_the_configuration_tells_what_was_trained(trained, file):
    model = restored(file)
    assert model.pretrained_cfg["label_names"] == tuple(trained.classes) and "state_dict" not in model.pretrained_cfg
    assert Preprocessing.from_dict(model.pretrained_cfg) == trained.rules
    wide = restored(file, features_only=True, feature_cls="hook")
    assert not [m for m in wide.modules() if "state_dict" in getattr(m, "pretrained_cfg", {})]


def test_weights_of_another_kind_are_left_to_timm(trained, tmp_path):
    state = trained.model.state_dict()
    model = timm.create_model("bireal_digits", pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    torch.save(state, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = timm.create_model("bireal_digits", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    model = timm.create_model("bireal_digits", pretrained=True, pretrained_cfg=timm.get_pretrained_cfg("bireal_digits"))
    assert model.pretrained_cfg["file"] == str(weights_path("bireal_digits"))


def test_what_does_not_fit_is_refused(file, trained, tmp_path):
    with pytest.raises(WeightsError, match=r"of 'bireal_digits' do not fit this network .*size mismatch") as error:
        restored(file, stem="imagenet")
    assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match=r"no pretrained weights ship for 'resnet_digits' .*bireal_digits") as error:
        timm.create_model("resnet_digits", pretrained=True)
    assert "\n" not in str(error.value)
    plain = tmp_path / "plain.lconv"
    trained.compile(verify=False)[0].save(plain)
    with pytest.raises(ProgramError, match="no state for PyTorch; start from the checkpoint"):
        restored(plain)
    program = Program.load(file)
    del program.tensors[f"{PREFIX}layer2.0.bn1.weight"]
    program.save(plain)
    with pytest.raises(WeightsError, match=r"do not fit this network .*layer2\.0\.bn1\.weight"):
        restored(plain)
    with pytest.raises(WeightsError, match=r"layer2\.0\.bn1\.weight is on one side only"):
        restored(plain, num_classes=3)  # where timm itself would only log it
    with pytest.raises(FileNotFoundError):
        restored(tmp_path / "missing.lconv")


def test_listing_reads_no_file(tmp_path, monkeypatch):
    (tmp_path / "bireal_resnet34.lconv").write_bytes(b"garbage")
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    assert list_models(pretrained=True) == list_models(pretrained=True, binary=True) == ["bireal_resnet34"]
    assert list_models(pretrained=True, binary=False) == []
    with pytest.raises(ProgramError, match="not a leanconv file"):
        timm.create_model("bireal_resnet34", pretrained=True)
    with pytest.raises(WeightsError, match="no pretrained weights ship for 'bireal_digits'"):
        weights_path("bireal_digits")


class Mixed(nn.Module):
    """Every binary layer, both kinds of weights, groups, a layer used twice, parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 12, 3, padding=1)
        self.grouped = BinaryConv2d(12, 8, (3, 1), groups=4, binarize_weight="magnitude", binarize_input=RSign(12))
        self.act = RPReLU(8)
        self.up = BinaryConvTranspose2d(8, 6, 3, stride=2, groups=2, bias=True, binarize_weight="magnitude")
        self.twice = BinaryConv2d(6, 6, 1, binarize_weight=MagnitudeWeight(detach=False))
        self.bn = nn.BatchNorm2d(6, affine=False)
        self.gain = nn.Parameter(torch.rand(1, 6, 1, 1) + 0.5)
        self.dense = BinaryLinear(6, 10, bias=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = self.up(self.act(self.grouped(self.stem(x))))
        x = self.bn(self.twice(self.twice(x))) * self.gain
        return self.head(self.dense(x.mean((2, 3))))


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(BinaryConv1d(3, 9, 3, dilation=2), nn.BatchNorm1d(9), BinaryConv1d(9, 2, 1))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(("make", "shape"), [(Mixed, (4, 2, 9, 7)), (Sequence, (4, 3, 12))])
def test_every_kind_of_layer_comes_back(make, shape):
    torch.manual_seed(1)
    x = torch.randn(shape)
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    settle(model, x.numpy())
    program = leanconv.compile(model, x, verify=False)
    full = store_state(model, program)
    latent = {f"{k}.weight" for k, m in model.named_modules() if hasattr(m, "binarize_weight")}
    assert all(full.tensors[PREFIX + key].ndim == 1 for key in latent)  # a magnitude a filter, not the weights
    again = make()
    missing, unexpected = again.load_state_dict(read_state(full), strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    same_programs(program, leanconv.compile(again.eval(), x, verify=False))
    torch.testing.assert_close(again.eval()(x), model.eval()(x))
    same_programs(program, without_state(full))
    assert without_state(full).provenance == program.provenance


def test_filters_at_the_edge():
    """Latent weights of exactly zero count as +1; those of an unscaled layer beyond the clip could never learn."""
    model = nn.Sequential(BinaryConv2d(2, 3, 1, binarize_weight="sign"))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [-5.0, 3.0], [-0.0, -1e-3]]).view(3, 2, 1, 1))
    x = torch.randn(2, 2, 4, 4)
    state = read_state(store_state(model, leanconv.compile(model, x, verify=False)))
    weight = state["0.weight"].flatten(1)
    assert (weight >= 0).tolist() == [[True, True], [False, True], [True, False]]
    assert weight[1].tolist() == [-1.0, 1.0] and (weight[0] > 0).all()


def test_only_float32_can_be_kept():
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    program = leanconv.compile(model, torch.zeros(1, 1, 2, 2), verify=False)
    with pytest.raises(ProgramError, match=r"0\.weight is torch.float64: .* call model.float"):
        store_state(model.double(), program)


def test_shipping_a_checkpoint(checkpoint, tmp_path, capsys):
    assert ship_weights.main([str(checkpoint), "--out", str(tmp_path)]) == 0
    (made,) = tmp_path.iterdir()
    assert made.name == "bireal_digits.lconv" and str(made.stat().st_size)[:3] in capsys.readouterr().out
    program = Program.load(made)
    assert program.provenance["recipe"]["epochs"] == 2 and read_state(program)


def test_what_cannot_ship(checkpoint, tmp_path, capsys, monkeypatch):
    from leanconv.train import checkpoint as files

    model, info = files.load(checkpoint)
    entries = {"preprocessing": info["preprocessing"], "classes": info["classes"]}

    def refused(message, **changes):
        path = tmp_path / "other.safetensors"
        files.save(path, changes.pop("model", model), **entries, **changes)
        assert ship_weights.main([str(path), "--out", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err

    (tmp_path / "out").mkdir()
    name, training = {"name": "bireal_digits"}, info["training"]
    refused("has no top-1 on the test split", **name, training=training | {"split": "validation"})
    three = timm.create_model("bireal_digits", in_chans=3)
    refused("made with {'in_chans': 3}", model=three, model_args={"in_chans": 3}, **name, training=training)
    other = timm.create_model("test_resnet", num_classes=10)
    refused("'test_resnet' is not one of", model=other, name="test_resnet", model_args={"num_classes": 10})
    monkeypatch.setattr(ship_weights, "LIMIT", 10_000)
    refused("more than the 10,000 that may ship", **name, training=training)
    assert not list((tmp_path / "out").iterdir())


def test_folders_are_left_out_of_recipes():
    recipe = {"data": "torchvision:CIFAR10:/home/me/data", "teacher": {"checkpoint": "/a/b.safetensors"}, "epochs": 3}
    assert ship_weights.without_folders(recipe) == {
        "data": "torchvision:CIFAR10:data",
        "teacher": {"checkpoint": "b.safetensors"},
        "epochs": 3,
    }


def test_names_stand_for_files_on_the_command_line(tmp_path, capsys):
    from PIL import Image

    from leanconv.cli.evaluate import evaluate as cli_evaluate
    from leanconv.cli.run import run

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    run(shipped.Path("bireal_digits"), [tmp_path / "black.png"], 3, True, 1)
    (row,) = json.loads(capsys.readouterr().out)
    assert len(row["top"]) == 3
    cli_evaluate(shipped.Path("bireal_digits"), "digits", 1, True)
    measured = json.loads(capsys.readouterr().out)
    assert measured["top1"] == Program.load(weights_path("bireal_digits")).provenance["top1"]
    assert shipped.packed_path("nothing") == shipped.Path("nothing")
    assert models.weights_path("bireal_digits") == shipped.packed_path("bireal_digits")
