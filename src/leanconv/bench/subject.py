"""What is measured: a packed file, and the networks that its rivals run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leanconv import engine
from leanconv.bench.rivals import BenchError, Rival
from leanconv.pictures import smooth_pictures
from leanconv.preprocess import Preprocessing, normalize

if TYPE_CHECKING:
    from leanconv.networks import Network

CHECKED = 4  # pictures on which agreement is checked, at least


@dataclass
class Subject:
    """A packed file with the pictures to run it on."""

    packed: Path
    name: str | None  # of the model, for its float twin
    pictures: np.ndarray  # what our engine gets: uint8 NHWC, or float NCHW for a file without preprocessing
    floats: np.ndarray  # the same pictures for rivals, float NCHW
    outputs: int  # channels of the first output
    network: Network | None = None  # torch's network of the same weights, where it is known
    real_layers: str = "fp32"

    @property
    def size(self) -> list[int]:
        return list(self.floats.shape[2:])


def from_file(path: Path, size: int | None, batch: int) -> Subject:
    """A packed file as it is. Needs no torch. Raises BenchError, ProgramError."""
    model = engine.load(path, threads=1)
    if len(model.inputs) != 1 or model.inputs[0].dims != 4:
        raise BenchError(f"{path}: bench runs networks with one picture input; this one has other inputs")
    entry, about = model.inputs[0], model.program_info
    rules = about["preprocessing"]
    declared = rules["input_size"][1:] if rules else (None, None)
    height, width = (size, size) if size else (entry.height or declared[0], entry.width or declared[1])
    if height is None or width is None:
        raise BenchError(f"{path}: this network takes pictures of any size; say one with --size")
    pictures = smooth_pictures(batch * -(-CHECKED // batch), height, width, entry.channels)
    if rules:
        shown, floats = pictures, normalize(pictures, Preprocessing.from_dict(rules))
    else:
        floats = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1)
        shown = floats
    result = model(shown[:1])
    first = next(iter(result.values())) if isinstance(result, dict) else result
    name = (about["provenance"] or {}).get("model")
    layers = (about["provenance"] or {}).get("real_layers", "fp32")
    return Subject(path, name, shown, floats, int(first.shape[1]), real_layers=layers)


def from_network(text: str, size: int | None, batch: int, folder: Path, int8: bool = False) -> Subject:
    """A checkpoint, or an untrained network by name, compiled into `folder`. Needs torch.

    `int8`: with real-valued layers in int8, calibrated on made-up pictures, which is enough to measure time.

    Raises NetworkError, CheckpointError, CompileError.
    """
    from leanconv.networks import find_network, settle

    network = find_network(text)
    if not network.training:
        settle(network.model, network.example(size, count=8).numpy())
    packed = folder / "engine.lconv"
    channels, height, width = network.rules.input_size
    height, width = (size, size) if size else (height, width)
    pictures = smooth_pictures(8, height, width, channels) if int8 else None
    network.compile(size, calibration=pictures)[0].save(packed)
    subject = from_file(packed, size, batch)
    subject.network = network
    return subject


def twin_of(subject: Subject) -> Network:
    """The float twin, untrained, of the same inputs and outputs. Needs torch. Raises BenchError."""
    from leanconv.models import float_twin
    from leanconv.networks import from_name, settle

    if subject.name is None:
        raise BenchError(f"{subject.packed}: the file does not say which model it holds, so it has no float twin")
    try:
        name = float_twin(subject.name)
    except ValueError:
        if subject.network is None or any(hasattr(m, "binarize_weight") for m in subject.network.model.modules()):
            raise BenchError(f"{subject.name!r} has no float twin; compare with X:binary rivals or none") from None
        return subject.network  # a float network is its own twin
    twin = from_name(name, num_classes=subject.outputs, in_chans=int(subject.floats.shape[1]))
    settle(twin.model, np.concatenate([subject.floats] * 2))
    return twin


def network_for(rival: Rival, subject: Subject, twin: Network | None) -> Network:
    """What a rival runs. Raises BenchError."""
    network = subject.network if rival.binary else twin
    if network is None:
        raise BenchError(f"{rival.name}: a packed file has no torch weights; give the checkpoint or the model's name")
    return network
