"""The counts, against published figures and against sums written out."""

import numpy as np
import pytest
import torch
from torch import nn

import leanconv.nn as lnn
from leanconv.compiler import compile
from leanconv.complexity import complexity
from leanconv.program import ProgramError

torch.set_num_threads(1)


# name: depth, OPs without and with the stem (millions at 224x224), megabytes of memory; sections 4 and 11 of the notes
# on SoFAr, which reproduce the published budgets.
PUBLISHED = {
    "bireal_resnet18": (18, 45.971, 163.985, 4.19),
    "rf_c4d8_resnet37": (37, 45.919, 121.52, 3.91),
    "drf_c2d2_densenet51": (51, 143.432, 241.16, None),
    "binary_densenet51": (51, 144.115, 262.13, None),
    "binary_densenet28": (28, 140.52, 258.54, None),
}


QUICK = ("bireal_resnet18", "rf_c4d8_resnet37", "drf_c2d2_densenet51")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED])
def test_published_networks(name):
    import leanconv.models  # noqa: F401

    import timm  # isort: skip

    depth, without_stem, with_stem, megabytes = PUBLISHED[name]
    model = timm.create_model(name).eval()
    program = compile(model, torch.zeros(1, 3, 64, 64), verify=False)
    counts = complexity(program, (224, 224))
    assert counts["depth"] == depth
    assert counts["ops_without_stem"] / 1e6 == pytest.approx(without_stem, rel=1e-4)
    assert counts["ops"] / 1e6 == pytest.approx(with_stem, rel=1e-4)
    assert counts["stem"] == program.ops[0].name
    if megabytes is not None:
        assert round(counts["bytes_memory"] / 1e6, 2) == megabytes
    binary = {m.weight for m in model.modules() if isinstance(m, lnn.BinaryConv2d)}
    assert counts["parameters_binary"] == sum(w.numel() for w in binary)
    assert counts["parameters_real"] == sum(p.numel() for p in model.parameters() if p not in binary)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.binary = lnn.BinaryConv2d(8, 16, 3, padding=1, groups=2, binarize_weight="magnitude", bias=True)
        self.shortcut = nn.Conv2d(8, 16, 1, bias=False)
        self.up = lnn.BinaryConvTranspose2d(16, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.bn(self.stem(x))
        x = self.binary(x) + self.shortcut(x)
        return self.head(self.up(x).mean((2, 3)))


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return compile(Small(), torch.zeros(1, 3, 16, 12), verify=False)


def test_counts_written_out(program, tmp_path):
    counts = complexity(program, (16, 12))
    pixels = 8 * 6
    assert counts["parameters_binary"] == 16 * 4 * 9 + 16 * 4 * 4
    assert counts["parameters_real"] == sum(
        p.numel() for n, p in Small().named_parameters() if n not in ("binary.weight", "up.weight")
    )
    assert counts["macs_binary"] == pixels * (16 * 4 * 9 + 16 * 4 * 4)
    assert counts["macs_real"] == pixels * (8 * 27 + 16 * 8) + 4 * 5
    assert counts["ops"] == counts["macs_real"] + counts["macs_binary"] / 64
    assert counts["ops_without_stem"] == counts["ops"] - pixels * 8 * 27
    assert counts["depth"] == 4  # stem, binary beside its shortcut, transposed, head
    assert counts["bytes_memory"] == counts["parameters_binary"] / 8 + 4 * counts["parameters_real"]
    assert counts["bytes_packed"] == program.save(tmp_path / "x.lconv") == (tmp_path / "x.lconv").stat().st_size
    assert counts["size"] == [16, 12]


def test_layer_rows_add_up(program):
    counts = complexity(program, (16, 12))
    for key in ("parameters_binary", "parameters_real", "macs_binary", "macs_real"):
        assert sum(row[key] for row in counts["layers"]) == counts[key]
    rows = {row["name"]: row for row in counts["layers"]}
    assert rows["stem"]["input"] == [16, 12, 3] and rows["stem"]["output"] == [8, 6, 8]
    assert rows["up"]["input"] == [8, 6, 16] and rows["up"]["output"] == [16, 12, 4]
    assert sum(row["ops"] for row in counts["layers"]) == counts["ops"]
    assert 0 <= sum(row["bytes_memory"] for row in counts["layers"]) - counts["bytes_memory"] < len(counts["layers"])
    assert [row["name"] for row in counts["layers"]] == [op.name for op in program.ops]


def test_bytes_of_the_layers_in_the_file(program):
    rows = {row["name"]: row for row in complexity(program, (16, 12))["layers"]}
    assert rows["stem"]["bytes_packed"] >= 4 * (8 * 27 + 8)  # weights, and a bias with batch norm in it
    assert rows["up"]["bytes_packed"] == 4 * 4 * 16 // 8
    total = complexity(program, (16, 12))["bytes_packed"]
    tensors = sum(tensor.nbytes for tensor in program.tensors.values())
    assert sum(row["bytes_packed"] for row in rows.values()) == tensors < total


def test_a_concatenation_reads_all_of_its_inputs():
    class Dense(nn.Module):
        def forward(self, x):
            return torch.cat([x, x.relu()], 1)

    (row,) = (
        row
        for row in complexity(compile(Dense(), torch.zeros(1, 3, 4, 4), verify=False), (4, 4))["layers"]
        if row["kind"] == "concat"
    )
    assert row["input"] == row["output"] == [4, 4, 6]


def test_the_size_scales_the_work_and_not_the_weights(program):
    small, large = complexity(program, (16, 16)), complexity(program, (32, 32))
    head = 4 * 5
    assert large["macs_binary"] == 4 * small["macs_binary"]
    assert large["macs_real"] - head == 4 * (small["macs_real"] - head)
    assert large["bytes_memory"] == small["bytes_memory"]


def test_the_size_comes_from_the_preprocessing_or_must_be_said(program):
    with pytest.raises(ProgramError, match="height and width"):
        complexity(program)
    rules = {"input_size": [3, 16, 12], "mean": [0.0] * 3, "std": [1.0] * 3}
    named = compile(Small(), torch.zeros(1, 3, 8, 8), verify=False, preprocessing=rules)
    assert complexity(named)["macs_binary"] == complexity(program, (16, 12))["macs_binary"]
    fixed = compile(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2), verify=False)
    assert complexity(fixed)["macs_real"] == 24
    with pytest.raises(ProgramError, match="2x2"):
        complexity(fixed, (4, 4))


def test_networks_without_convolution_have_no_stem():
    program = compile(nn.Linear(6, 3), torch.zeros(1, 6), verify=False)
    counts = complexity(program)
    assert counts["ops"] == counts["ops_without_stem"] == 18 and counts["depth"] == 1
    assert np.isclose(counts["bytes_memory"], 4 * 21)
