"""The tests of the core alone, with the sanitizers where a compiler has them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from leanconv.program import Program, Step
from tests.engine.builder import Builder
from tests.native.core_build import build, call, find

COMPILERS = [c for c in ("g++", "clang++") if find(c)]


def has_sanitizers(compiler: str, folder: Path) -> bool:
    source = folder / "probe.cpp"
    source.write_text("int main() { return 0; }\n")
    flags = ["-fsanitize=address,undefined", str(source), "-o", str(folder / "probe")]
    built = subprocess.run([compiler, *flags], capture_output=True).returncode == 0
    return built and subprocess.run([str(folder / "probe")], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> Path:
    """The test program with the address and undefined-behaviour sanitizers; -O0 builds soonest."""
    folder = tmp_path_factory.mktemp("native")
    if not find("cmake") or not COMPILERS:
        pytest.skip("needs cmake and a C++ compiler")
    usable = [c for c in COMPILERS if has_sanitizers(c, folder)]
    if not usable:
        pytest.skip("no compiler here has the sanitizers")
    options = [
        "-DLEANCONV_SANITIZE=ON",
        "-DLEANCONV_EMULATE_VPOPCNTDQ=ON",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O0",
    ]
    return build(usable[0], folder / "build", *options)


def test_native_tests_pass(sanitized):
    out = call(sanitized)
    assert out.count("ok ") >= 12 and "FAILED" not in out


def networks() -> dict[str, Program]:
    made = {}
    b = Builder(41, seed=1)
    real = b.conv(b.input, 70, (3, 3), [b.affine(70), b.store(70), b.sign(70)], stride=(2, 2))
    kept = b.ops[0].steps[1].value
    out = b.binary_conv(real, 70, steps=[b.affine(70), Step("add", value=kept), b.prelu(70), b.store(70), b.sign(70)])
    real = b.ops[-1].steps[3].value
    joined = b.concat(real, b.binary_conv(out, 33, (5, 3), padding=(2, 1, 2, 1), dilation=(1, 1), pad_value=1))
    b.output(b.max_pool(joined))
    b.output(b.linear(b.global_avg_pool(joined), 10), 2)
    made["residual"] = b.program()
    b = Builder(12, seed=2)
    grouped = b.binary_conv(b.bits(b.input), 24, groups=4, stride=(1, 2))
    up = b.binary_conv_transpose(b.bits(grouped), 9, (3, 4), groups=3, output_padding=(1, 0))
    b.output(b.conv(up, 9, groups=9))
    b.output(b.conv(up, 18, (2, 2), groups=3, padding=(0, 0, 0, 0), dilation=(2, 1)))
    b.output(b.avg_pool(up, (3, 3), (2, 2), (1, 1), True, False))
    made["groups"] = b.program()
    b = Builder(300, dims=2, seed=3)
    wide = b.linear(b.input, 130, [Step("silu"), b.store(130), b.sign(130)])
    b.output(b.binary_conv(wide, 5, (1, 1), padding=(0, 0, 0, 0)), 2)
    made["dense"] = b.program()
    return made


def test_networks_and_damaged_files_under_sanitizers(sanitized, tmp_path):
    rng = np.random.default_rng(0)
    whole, broken = [], []
    for name, program in networks().items():
        whole.append(tmp_path / f"{name}.lconv")
        program.save(whole[-1])
        data = whole[-1].read_bytes()
        for i in range(60):
            changed = bytearray(data[: int(rng.integers(1, len(data)))] if i % 3 == 0 else data)
            changed[int(rng.integers(min(len(changed), 4000)))] ^= 1 << int(rng.integers(8))
            broken.append(tmp_path / f"{name}-{i}.lconv")
            broken[-1].write_bytes(changed)
    out = call(sanitized, *whole, *broken).splitlines()
    assert [line.endswith(": ran") for line in out] == [True] * len(whole) + [False] * len(broken)
