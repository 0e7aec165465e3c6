"""Files that are not what they should be: one line of text each, never a crash, never a wrong result."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from leanconv import _core, engine
from leanconv.program import Program, ProgramError
from tests.engine.builder import Builder


def network() -> Program:
    b = Builder(5, seed=1)
    real = b.conv(b.input, 20, (3, 3), [b.affine(20), b.store(20), b.sign(20)])
    out = b.binary_conv(real, 33, steps=[b.affine(33), b.prelu(33), b.store(33)])
    b.output(b.linear(b.global_avg_pool(out), 7), 2)
    b.output(b.int8_conv(b.bytes(out, 3.0, 100), 6))
    b.preprocessing = {"mean": [0.5] * 5, "std": [0.25] * 5}
    return b.program()


@pytest.fixture(scope="module")
def packed() -> bytes:
    return network().to_bytes()


def refused(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        _core.read(data)
    message = str(caught.value)
    assert message and "\n" not in message
    with pytest.raises(ProgramError):
        engine.Model(data)
    return message


def header_of(data: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header: dict, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def resealed(change) -> bytes:
    """A file with a right checksum around a changed program."""
    program = network()
    body = json.loads(program.to_json())
    change(body)
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    program.to_json = lambda: text  # type: ignore[method-assign]
    return program.to_bytes()


def test_whole_file_is_read(packed):
    text, tensors = _core.read(packed)
    program = network()
    assert text == program.to_json()
    assert tensors.keys() == program.tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == program.tensors[name].dtype
        np.testing.assert_array_equal(tensor, program.tensors[name])


def test_every_truncation_is_refused(packed):
    for size in [*range(0, 200), *range(200, len(packed), 97), len(packed) - 4, len(packed) - 1]:
        message = refused(packed[:size])
        assert "truncated" in message or "not a leanconv file" in message, (size, message)
    assert "truncated" in refused(packed[: len(packed) // 2])


def test_bytes_after_the_end_are_refused(packed):
    assert "damaged" in refused(packed + b"\0")


def test_every_flipped_bit_is_refused(packed):
    """All bits of the 8-byte length, every byte of the header, every seventh byte of the tensors."""
    (header,) = struct.unpack("<Q", packed[:8])
    positions = [(at, bit) for at in range(8) for bit in range(8)]
    positions += [(at, (at * 5 + k) % 8) for at in range(8, 8 + header) for k in (0, 3)]
    positions += [(at, at % 8) for at in range(8 + header, len(packed), 7)]
    for at, bit in positions:
        data = bytearray(packed)
        data[at] ^= 1 << bit
        try:
            _core.read(bytes(data))
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            pytest.fail(f"bit {bit} of byte {at} was not noticed: {packed[max(0, at - 20) : at + 20]!r}")


def test_checksum_message(packed):
    data = bytearray(packed)
    data[-1] ^= 1
    assert refused(bytes(data)) == "damaged (checksum does not match); copy or download it again"


def test_message_names_the_file(packed, tmp_path):
    path = tmp_path / "model.lconv"
    path.write_bytes(packed[:-3])
    with pytest.raises(ProgramError, match=r"model\.lconv: truncated \(\d+ bytes of tensors, at least \d+ expected\)"):
        engine.load(path)
    with pytest.raises(ProgramError, match=r"model\.lconv: truncated"):
        Program.load(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        engine.load(tmp_path / "nowhere.lconv")
    with pytest.raises(IsADirectoryError):
        engine.load(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04 a zip file, say",
        b"hello",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        bytes(64),
        b"\x08\0\0\0\0\0\0\0notjson!",
    ],
)
def test_foreign_files(data):
    assert "not a leanconv file" in refused(data)


def test_other_safetensors_file():
    from safetensors.numpy import save

    assert "safetensors file of another kind" in refused(save({"a": np.zeros(3, np.float32)}))


def test_newer_version(packed):
    header, body = header_of(packed)
    header["__metadata__"]["format_version"] = "2"
    assert (
        refused(with_header(header, body)) == "format version 2 is newer than this leanconv reads (1); upgrade leanconv"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["t0"].update(data_offsets=[0, 8]),
        lambda h: h["t0"].update(data_offsets=[-4, 0]),
        lambda h: h["t0"].update(data_offsets=[0, 2**63]),
        lambda h: h["t0"].update(data_offsets=[1e30, 2e30]),
        lambda h: h["t0"].update(shape=[2**40, 2**40]),
        lambda h: h["t0"].update(shape=[-1]),
        lambda h: h["t0"].update(shape=[1] * 9),
        lambda h: h["t0"].update(dtype="F64"),
        lambda h: h["t0"].update(extra=1),
        lambda h: h.update(t1=h["t0"]),
        lambda h: h.pop("t1"),
        lambda h: h["__metadata__"].pop("sha256"),
        lambda h: h["__metadata__"].pop("program"),
        lambda h: h["__metadata__"].update(sha256=3),
        lambda h: h["__metadata__"].update(format_version="one"),
        lambda h: h.update({"bad name": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
    ],
)
def test_inconsistent_headers(packed, change):
    header, body = header_of(packed)
    change(header)
    refused(with_header(header, body))


def op(kind: str):
    return lambda p: next(o for o in p["ops"] if o["kind"] == kind)


def bytes_of(p):
    return next(v for v in p["values"] if v["type"] == "bytes")


def quantize(p):
    return next(s for o in p["ops"] for s in o["steps"] if s["kind"] == "quantize")


PROGRAMS = {
    "unknown field": lambda p: p.update(extra=1),
    "missing field": lambda p: p.pop("classes"),
    "op field": lambda p: p["ops"][0].update(extra=1),
    "op kind": lambda p: p["ops"][0].update(kind="convolution"),
    "attr": lambda p: p["ops"][0]["attrs"].update(extra=1),
    "attr missing": lambda p: p["ops"][0]["attrs"].pop("groups"),
    "float where a whole number belongs": lambda p: p["ops"][0]["attrs"].update(groups=1.5),
    "zero stride": lambda p: p["ops"][0]["attrs"].update(stride=[0, 1]),
    "negative padding": lambda p: p["ops"][0]["attrs"].update(padding=[-1, 0, 0, 0]),
    "short padding": lambda p: p["ops"][0]["attrs"].update(padding=[1, 1]),
    "groups": lambda p: p["ops"][0]["attrs"].update(groups=3),
    "kernel against weight": lambda p: p["ops"][0]["attrs"].update(kernel=[3, 5]),
    "channels against input": lambda p: p["ops"][0]["attrs"].update(in_channels=6),
    "huge kernel": lambda p: p["ops"][0]["attrs"].update(kernel=[10**9, 1]),
    "pad value": lambda p: op("binary_conv")(p)["attrs"].update(pad_value=2),
    "weight name": lambda p: p["ops"][0]["tensors"].update(weight="nothing"),
    "weight type": lambda p: op("binary_conv")(p)["tensors"].update(weight=p["ops"][0]["tensors"]["weight"]),
    "no weight": lambda p: p["ops"][0].update(tensors={}),
    "value out of range": lambda p: p["ops"][0].update(inputs=[99]),
    "negative value": lambda p: p["ops"][0].update(inputs=[-1]),
    "no inputs": lambda p: p["ops"][0].update(inputs=[]),
    "two inputs": lambda p: p["ops"][0].update(inputs=[0, 0]),
    "read before written": lambda p: p["ops"].reverse(),
    "written twice": lambda p: p["ops"].append(p["ops"][-1]),
    "never written": lambda p: p["values"].append({"type": "real", "channels": 3}),
    "real for bits": lambda p: op("binary_conv")(p).update(inputs=[0]),
    "output is bits": lambda p: p["outputs"][0].update(
        value=next(i for i, v in enumerate(p["values"]) if v["type"] == "bits")
    ),
    "output out of range": lambda p: p["outputs"][0].update(value=99),
    "no outputs": lambda p: p.update(outputs=[]),
    "no network inputs": lambda p: p.update(inputs=[]),
    "input dims": lambda p: p["inputs"][0].update(dims=5),
    "input channels": lambda p: p["inputs"][0].update(channels=4),
    "zero channels": lambda p: p["values"][0].update(channels=0),
    "many channels": lambda p: p["values"][0].update(channels=10**12),
    "value type": lambda p: p["values"][0].update(type="int8"),
    "step kind": lambda p: p["ops"][0]["steps"][0].update(kind="tanh"),
    "step field": lambda p: p["ops"][0]["steps"][0].update(value=0),
    "step tensor": lambda p: p["ops"][0]["steps"][0].update(scale="t99"),
    "step tensor size": lambda p: op("binary_conv")(p)["steps"][0].update(scale=p["ops"][0]["steps"][0]["scale"]),
    "output of a conv": lambda p: p["ops"][0].update(output=3),
    "add of another width": lambda p: p["ops"][0]["steps"].insert(0, {"kind": "add", "value": 0}),
    "clip text": lambda p: p["ops"][0]["steps"].insert(0, {"kind": "clip", "min": "0", "max": None}),
    "clip huge": lambda p: p["ops"][0]["steps"].insert(0, {"kind": "clip", "min": 1e300, "max": None}),
    "mean and std": lambda p: p["preprocessing"].update(std=[1.0]),
    "std zero": lambda p: p["preprocessing"].update(std=[0.0] * 5),
    "classes": lambda p: p.update(classes=[1, 2]),
    "provenance": lambda p: p.update(provenance=[]),
    "not an object": lambda p: p.update(ops=[3]),
    "real for bytes": lambda p: op("int8_conv")(p).update(inputs=[0]),
    "bytes for real": lambda p: op("linear")(p).update(inputs=op("int8_conv")(p)["inputs"]),
    "int8 weight of another type": lambda p: op("int8_conv")(p)["tensors"].update(
        weight=p["ops"][0]["tensors"]["weight"]
    ),
    "int8 weight missing": lambda p: op("int8_conv")(p).update(tensors={}),
    "int8 kernel against weight": lambda p: op("int8_conv")(p)["attrs"].update(kernel=[3, 4]),
    "int8 groups": lambda p: op("int8_conv")(p)["attrs"].update(groups=1),
    "int8 negative padding": lambda p: op("int8_conv")(p)["attrs"].update(padding=[0, 0, 0, -1]),
    "no zero point": lambda p: bytes_of(p).pop("zero"),
    "no zero points": lambda p: bytes_of(p).update(zero=[]),
    "zero points of another number": lambda p: bytes_of(p).update(zero=[1, 2]),
    "zero point above a byte": lambda p: bytes_of(p).update(zero=[256]),
    "zero point below a byte": lambda p: bytes_of(p).update(zero=[-1]),
    "zero point of a real value": lambda p: p["values"][0].update(zero=[0]),
    "zero points by channel where bytes are written": lambda p: bytes_of(p).update(zero=[*range(33)]),
    "factor 0": lambda p: quantize(p).update(factor=0),
    "negative factor": lambda p: quantize(p).update(factor=-1.5),
    "tiny factor": lambda p: quantize(p).update(factor=1e-60),
    "huge factor": lambda p: quantize(p).update(factor=1e60),
    "factor text": lambda p: quantize(p).update(factor="1"),
    "factor missing": lambda p: quantize(p).pop("factor"),
    "quantize to a real value": lambda p: quantize(p).update(value=0),
    "deep": lambda p: p["provenance"].update(deep=json.loads("[" * 50 + "]" * 50)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_inconsistent_programs(name):
    assert "damaged program" in refused(resealed(PROGRAMS[name]))


def test_stray_weight_bits():
    program = network()
    name = op("binary_conv")(json.loads(program.to_json()))["tensors"]["weight"]
    program.tensors[name][0, 0, 0, -1] |= 0x80  # channel 23 of 20
    assert "beyond the last channel" in refused(program.to_bytes())


def test_random_mutations_never_crash():
    """Thousands of changed programs with a right checksum: refused, or run without touching foreign memory."""
    rng = np.random.default_rng(0)
    numbers = [-1, 0, 1, 2, 3, 7, 8, 64, 1000, 2**20, 2**31, 2**53, 1.5, None, "x", [], {}, True]
    x = rng.normal(size=(1, 5, 6, 6)).astype(np.float32)
    ran = 0

    def places(node, path=()):
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            yield (*path, key)
            yield from places(child, (*path, key))

    base = json.loads(network().to_json())
    known = list(places(base))
    for _ in range(1500):

        def change(body):
            for _ in range(rng.integers(1, 4)):
                path = known[rng.integers(len(known))]
                try:
                    node = body
                    for key in path[:-1]:
                        node = node[key]
                    if rng.random() < 0.1:
                        del node[path[-1]]
                    elif rng.random() < 0.2:
                        other = known[rng.integers(len(known))]
                        source = base
                        for key in other:
                            source = source[key]
                        node[path[-1]] = source
                    else:
                        node[path[-1]] = numbers[rng.integers(len(numbers))]
                except (KeyError, IndexError, TypeError):
                    pass

        data = resealed(change)
        try:
            _core.Model(data, 1).run([x])
            ran += 1
        except ValueError as error:
            assert "\n" not in str(error)
    assert ran > 10


def test_random_bytes_never_crash(packed):
    rng = np.random.default_rng(1)
    for _ in range(2000):
        data = bytearray(packed)
        for _ in range(rng.integers(1, 6)):
            start = int(rng.integers(len(data)))
            kind = rng.integers(3)
            if kind == 0:
                data[start] = rng.integers(256)
            elif kind == 1:
                del data[start : start + int(rng.integers(1, 40))]
            else:
                data[start:start] = bytes(rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8))
        if bytes(data) == packed or not data:
            continue
        with pytest.raises(ValueError):
            _core.read(bytes(data))
