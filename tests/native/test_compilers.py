"""The core builds with gcc and with clang without a warning, passes its own tests, and counts in registers.

Counting in registers: the inner loops of the binary convolution never touch the stack. Compilers have spilled counters
there before, which no other test notices and which costs a fifth of the speed and more.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.native.core_build import build, call, find
from tests.native.inner_loops import hot_loops

X86_64 = platform.machine().lower() in ("x86_64", "amd64")
COUNTING = {"avx2": "vpshufb", "avx512": "vpternlogd", "avx512vpopcntdq": "vpopcntd"}
FEWEST_LOOPS = 6  # a loop for each size of tile; AVX2 has the fewest sizes
# clang 14 reads one pointer again for every 8 words of its smallest tile of two jobs; counters it keeps in registers.
READS_POINTERS_AGAIN = {("clang++", "avx512")}

SPILLING = """
#include <immintrin.h>
#define REPEAT _Pragma("GCC unroll 64")
template <int N>
void count(const __m512i* x, const __m512i* w, int words, __m512i* ones) {
    __m512i sum[N];
    REPEAT for (int i = 0; i < N; ++i) sum[i] = _mm512_setzero_si512();
    for (int k = 0; k < words; ++k)
        REPEAT for (int i = 0; i < N; ++i)
            sum[i] = _mm512_add_epi32(sum[i], _mm512_popcnt_epi32(_mm512_xor_si512(x[k], w[k * N + i])));
    REPEAT for (int i = 0; i < N; ++i) ones[i] = sum[i];
}
template void count<COUNTERS>(const __m512i*, const __m512i*, int, __m512i*);
"""


@pytest.fixture(scope="module", params=["g++", "clang++"])
def built(request, tmp_path_factory) -> tuple[str, Path]:
    """A compiler and the test program as users' compilers make the core: Release, here with warnings as errors."""
    if find("cmake") is None or find(request.param) is None:
        pytest.skip(f"needs cmake and {request.param} (sudo apt-get install {request.param.replace('++', '')})")
    folder = tmp_path_factory.mktemp("release")
    return request.param, build(request.param, folder, "-DLEANCONV_WERROR=ON", "-DCMAKE_BUILD_TYPE=Release")


def test_core_builds_and_passes(built):
    assert "FAILED" not in call(built[1])


@pytest.fixture
def objdump() -> None:
    if not X86_64:
        pytest.skip("these loops are of x86-64 instructions")
    if find("objdump") is None:
        pytest.skip("objdump is not installed (sudo apt-get install binutils)")


@pytest.mark.parametrize("isa", COUNTING)
def test_binary_convolutions_count_in_registers(built, isa, objdump):
    compiler, program = built
    (object_file,) = program.parent.rglob(f"kernels/{isa}.cpp.o")
    loops = [loop for loop in hot_loops(object_file, COUNTING[isa]) if f"leanconv::{isa}::" in loop.function]
    assert len(loops) >= FEWEST_LOOPS
    held = "mm" if (compiler, isa) in READS_POINTERS_AGAIN else ""  # %ymm0 and the like
    for loop in loops:
        traffic = [text for text in loop.memory_traffic() if held in text]
        assert not traffic, f"{compiler}: {loop.function} at {loop.address:#x}"


@pytest.mark.parametrize("counters, spills", [(24, False), (40, True)])
def test_spilled_counters_are_noticed(counters, spills, tmp_path, objdump):
    """32 registers hold 24 counters and what it takes to count, but never 40."""
    if find("g++") is None:
        pytest.skip("needs g++ (sudo apt-get install g++)")
    source, compiled = tmp_path / "tile.cpp", tmp_path / "tile.o"
    source.write_text(SPILLING)
    flags = ["-std=c++20", "-O3", "-mavx512f", "-mavx512vpopcntdq", f"-DCOUNTERS={counters}"]
    call("g++", *flags, "-c", source, "-o", compiled)
    (loop,) = hot_loops(compiled, "vpopcntd")
    assert sum("vpopcntd" in text for text in loop.body) == counters
    assert bool(loop.memory_traffic()) == spills
