"""A convolution whose map only a pooling reads runs a few rows at a time once the map is large."""

import numpy as np
import pytest

from leanconv import _core
from tests.engine.builder import Builder, check, pictures

LARGE = (90, 101)  # with 24 channels: 0.87 MB, beyond the size where bands begin


def stem(**pool):
    b = Builder(3, seed=4)
    steps = [b.affine(24), b.prelu(24), b.store(24)]
    b.conv(b.input, 24, (5, 3), steps=steps, padding=(2, 1, 2, 1))
    kind = pool.pop("kind", "max_pool")
    pooled = getattr(b, kind)(steps[-1].value, **pool)
    return b, pooled


@pytest.mark.parametrize(
    "pool",
    [
        {},
        {"ceil_mode": True, "padding": (0, 0)},
        {"kernel": (2, 3), "stride": (1, 2), "padding": (1, 0)},
        {"kernel": (3, 3), "stride": (5, 4), "padding": (0, 1)},
        {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1), "dilation": (4, 2)},
        {"kind": "avg_pool", "kernel": (3, 3), "padding": (1, 1), "count_include_pad": False},
        {"kernel": (41, 41), "stride": (7, 9), "padding": (20, 20)},
    ],
)
def test_pooling_in_bands(pool):
    b, pooled = stem(**pool)
    b.output(pooled)
    b.output(b.binary_conv(b.bits(pooled), 33))
    program = b.program()
    check(program, pictures(3, *LARGE, batch=1), exact=False)
    check(program, pictures(3, 20, 21), exact=False)  # a small map: no bands


def test_threads_share_no_band():
    b, pooled = stem()
    b.output(pooled)
    data = b.program().to_bytes()
    x = pictures(3, *LARGE, batch=1)
    one = _core.Model(data, 1, "", grain_ns=0).run([x])[0]
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(_core.Model(data, threads, "", grain_ns=0).run([x])[0], one)


def test_profile_names_both_operators():
    b, pooled = stem()
    b.output(pooled)
    model = _core.Model(b.program().to_bytes(), 1, "")
    names = [row["name"] for row in model.profile([pictures(3, *LARGE)], 1)]
    assert names == ["input", "conv0 + max_pool1", "output"]
    names = [row["name"] for row in model.profile([pictures(3, 20, 21)], 1)]
    assert names == ["input", "conv0", "max_pool1", "output"]
