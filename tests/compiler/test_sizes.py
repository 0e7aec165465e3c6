"""Heights and widths are free where the network works for all of them, and only there."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import leanconv.nn as lnn
from leanconv.compiler import compile
from leanconv.engine import reference
from leanconv.program import ProgramError
from tests.compiler.checks import Call, compare, settle

torch.set_num_threads(1)


def sizes(program):
    return [(i.height, i.width) for i in program.inputs]


def fully_convolutional():
    torch.manual_seed(0)
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3),
            nn.MaxPool2d(3, 2, 1),
            lnn.BinaryConv2d(8, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
    )


def test_free_sizes_run_at_other_sizes():
    model = fully_convolutional()
    program = compile(model, torch.randn(1, 3, 32, 40))
    assert sizes(program) == [(None, None)]
    for height, width in ((16, 16), (17, 31), (64, 33), (1, 1), (3, 90)):
        compare(program, model, torch.randn(2, 3, height, width))


def test_batch_is_free():
    model = fully_convolutional()
    program = compile(model, torch.randn(1, 3, 32, 32))
    for batch in (1, 2, 5):
        x = np.random.default_rng(0).standard_normal((batch, 3, 32, 32)).astype(np.float32)
        assert reference.run(program, [x])[0].shape == (batch, 4)


def test_a_dense_layer_on_pixels_fixes_the_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2)).eval()
    program = compile(model, torch.randn(1, 3, 8, 8))
    assert sizes(program) == [(8, 8)]
    with pytest.raises(ProgramError, match="expected"):
        reference.run(program, [np.zeros((1, 3, 9, 8), np.float32)])


def _crop_free(x):
    return F.avg_pool2d(x, 2) if x.shape[2] > 20 else x * 2


def _parity(x):
    return F.avg_pool2d(x, 2) if x.shape[2] % 2 == 0 else x * 2


def _square(x):
    return x * 2 if x.shape[2] == x.shape[3] else x * 3


def _scaled_by_size(x):
    return x * (1.0 if x.shape[3] == 24 else 2.0)


@pytest.mark.parametrize("function", [_crop_free, _parity, _square, _scaled_by_size])
def test_branches_on_the_size_fix_it(function):
    model = Call(function)
    program = compile(model, torch.randn(2, 3, 24, 24))
    assert sizes(program) == [(24, 24)]
    compare(program, model, torch.randn(2, 3, 24, 24))


def test_a_network_that_needs_even_sizes_stays_free_and_refuses_odd_ones():
    model = Call(lambda x: F.avg_pool2d(x, 2) + F.max_pool2d(x, 3, 2, 1))
    program = compile(model, torch.randn(2, 3, 16, 16))
    assert sizes(program) == [(None, None)]
    compare(program, model, torch.randn(2, 3, 20, 6))
    with pytest.raises(ProgramError, match="cannot add"):
        reference.run(program, [np.zeros((1, 3, 15, 16), np.float32)])


def test_two_pictures_that_must_have_the_same_size():
    program = compile(Call(lambda a, b: a + b), (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)))
    assert sizes(program) == [(None, None)] * 2
    program = compile(Call(lambda a, b: torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1)), (torch.randn(2, 3, 8, 9),) * 2)
    assert sizes(program) == [(None, None)] * 2
