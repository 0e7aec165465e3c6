import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from leanconv import models  # noqa: F401
from leanconv.train import checkpoint
from leanconv.train.checkpoint import CheckpointError

import timm  # isort: skip


@pytest.fixture
def saved(tmp_path):
    model = timm.create_model("bireal_digits", num_classes=4).eval()
    path = tmp_path / "a.safetensors"
    size = checkpoint.save(path, model, name="bireal_digits", model_args={"num_classes": 4}, classes=list("abcd"))
    assert size == path.stat().st_size
    return model, path


def test_round_trip(saved):
    model, path = saved
    other, info = checkpoint.load(path)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert info["classes"] == list("abcd") and info["preprocessing"] is None
    assert checkpoint.read_info(path) == info


def test_any_safetensors_reader_can_read_it(saved):
    model, path = saved
    assert load_file(path).keys() == model.state_dict().keys()


def test_network_of_ones_own(tmp_path):
    path = tmp_path / "own.safetensors"
    net = nn.Linear(3, 2)
    checkpoint.save(path, net)
    with pytest.raises(CheckpointError, match="pass the network as `model`"):
        checkpoint.load(path)
    other, _ = checkpoint.load(path, nn.Linear(3, 2))
    assert torch.equal(other.weight, net.weight)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \[2, 3\], the network \[5, 3\]"):
        checkpoint.load(path, nn.Linear(3, 5))
    with pytest.raises(CheckpointError, match="not a checkpoint of this network"):
        checkpoint.load(path, nn.Linear(3, 2, bias=False))


def test_damaged_foreign_and_missing_files(saved, tmp_path):
    _, path = saved
    data = path.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for content in (b"", b"hello", data[:100], data[:-10]):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad.safetensors: not a checkpoint, or damaged") as error:
            checkpoint.load(bad)
        assert "\n" not in str(error.value)
    save_file({"w": torch.ones(1)}, bad)
    with pytest.raises(CheckpointError, match="not one of leanconv's"):
        checkpoint.load(bad)
    save_file({"w": torch.ones(1)}, bad, metadata={"format": "leanconv"})
    with pytest.raises(CheckpointError, match="a packed network, but a checkpoint"):
        checkpoint.load(bad)
    save_file({"w": torch.ones(1)}, bad, metadata={"leanconv": "{}"})
    with pytest.raises(CheckpointError, match="incomplete"):
        checkpoint.load(bad)
    info = {"model": "no_such_net", "model_args": {}, "preprocessing": None, "classes": None}
    save_file({"w": torch.ones(1)}, bad, metadata={"leanconv": json.dumps(info)})
    with pytest.raises(CheckpointError, match="cannot make its network 'no_such_net'"):
        checkpoint.load(bad)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "none.safetensors")
