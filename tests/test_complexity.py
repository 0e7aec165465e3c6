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


def test_bireal_resnet18_matches_the_literature():
    """163.985 M OPs, 45.971 M without the stem, at 224x224; depth 18 by its name; 4.19 MB."""
    import leanconv.models  # noqa: F401

    import timm  # isort: skip

    program = compile(timm.create_model("bireal_resnet18").eval(), torch.zeros(1, 3, 64, 64), verify=False)
    counts = complexity(program, (224, 224))
    assert round(counts["ops"] / 1e6, 3) == 163.985
    assert round(counts["ops_without_stem"] / 1e6, 3) == 45.971
    assert counts["depth"] == 18
    assert round(counts["macs_binary"] / 1e6, 1) == 1676.3
    assert round(counts["bytes_memory"] / 1e6, 2) == 4.19
    assert counts["parameters_binary"] == 10_985_472


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
    assert rows["stem"]["output"] == [8, 6, 8] and rows["up"]["output"] == [16, 12, 4]
    assert [row["name"] for row in counts["layers"]] == [op.name for op in program.ops]


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
