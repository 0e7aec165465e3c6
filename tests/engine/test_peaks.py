"""leanconv.engine.peaks: what is measured, and what is made of it. No test looks at how fast anything is."""

from __future__ import annotations

import json
import math

import pytest

from leanconv.bench.machine import cpu_flags
from leanconv.engine import isa_names, peaks
from leanconv.program import ProgramError


@pytest.mark.parametrize("threads", [1, 2])
def test_every_form_that_the_processor_has(threads):
    found = peaks.measure(0.05, threads)
    assert found.threads == threads and found.clock_ghz > 0
    assert all(0 < rate.gmacs < math.inf and rate.macs_per_cycle > 0 for rate in found.arithmetic)
    assert len({rate.name for rate in found.arithmetic}) == len(found.arithmetic)
    names = [rate.name for rate in found.arithmetic]
    for flag, name in {
        "avx512_vpopcntdq": "xor, vpopcntd, add, 512 bits",
        "avx512_vnni": "vpdpbusd, 512 bits",
        "avx512_bf16": "vdpbf16ps, 512 bits",
        "avx_vnni": "vpdpbusd (AVX-VNNI), 256 bits",
        "avx2": "table of an input nibble (vpshufb), 256 bits",
    }.items():
        assert (name in names) == (flag in cpu_flags())
    levels = [entry.level for entry in found.bandwidth]
    assert levels[:2] == ["L1", "L2"] and levels[-1] == "memory"
    sizes = [entry.bytes for entry in found.bandwidth]
    assert sizes == sorted(sizes) and all(entry.gb_per_s > 0 for entry in found.bandwidth)
    assert json.loads(json.dumps(found.to_dict()))["threads"] == threads


@pytest.mark.parametrize("isa", isa_names())
def test_every_instruction_set_of_the_engine_has_a_binary_and_an_fp32_peak(isa):
    found = peaks.measure(0.02)
    for kind in ("binary", "fp32"):
        best = found.best(kind, isa)
        assert best is not None and best.kind == kind


def test_a_plainer_set_may_not_use_the_instructions_of_a_richer_one():
    found = peaks.measure(0.02)
    for isa in isa_names():
        best = found.best("binary", isa)
        assert best is not None and ("vpopcntd" in best.name) == (isa == "avx512vpopcntdq")


def test_nonsense_is_refused():
    for seconds in (0, -1, math.nan, 1e9):
        with pytest.raises(ProgramError, match="seconds"):
            peaks.measure(seconds)
    with pytest.raises(ProgramError, match="threads"):
        peaks.measure(0.1, 0)
