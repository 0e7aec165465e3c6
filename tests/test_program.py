"""The packed file as Python writes it: reproducible, readable by the safetensors library, atomic."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from leanconv.program import Program, pack_bits, unpack_bits, write_atomic
from tests.engine.builder import Builder


def network() -> Program:
    b = Builder(3, seed=1)
    bits = b.bits(b.conv(b.input, 20))
    b.output(b.binary_conv(bits, 33))
    return b.program()


def test_equal_programs_give_equal_bytes(tmp_path):
    assert network().to_bytes() == network().to_bytes()
    size = network().save(tmp_path / "a.lconv")
    assert (tmp_path / "a.lconv").read_bytes() == network().to_bytes()
    assert size == len(network().to_bytes())


def test_the_safetensors_library_reads_it(tmp_path):
    program = network()
    program.save(tmp_path / "a.lconv")
    tensors = load_file(tmp_path / "a.lconv")
    assert tensors.keys() == program.tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, program.tensors[name])
    with safe_open(tmp_path / "a.lconv", "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "leanconv" and metadata["sha256"] == program.digest()
    assert json.loads(metadata["program"])["inputs"][0]["channels"] == 3


def test_load_returns_what_was_saved(tmp_path):
    program = network()
    program.save(tmp_path / "a.lconv")
    again = Program.load(tmp_path / "a.lconv")
    assert again.to_bytes() == program.to_bytes()


@given(st.integers(1, 70), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_bits_round_trip(channels, rows, seed):
    signs = np.random.default_rng(seed).integers(0, 2, (rows, channels)) * 2 - 1
    packed = pack_bits(signs)
    assert packed.shape == (rows, -(-channels // 8))
    np.testing.assert_array_equal(unpack_bits(packed, channels), signs)
    for c in range(channels):  # channel c is bit c % 8 of byte c // 8
        np.testing.assert_array_equal((packed[:, c // 8] >> (c % 8)) & 1, signs[:, c] > 0)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.lconv"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.lconv"]
