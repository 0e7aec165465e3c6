import math

import torch

from leanconv.train.augment import _affine, _shift, augment
from leanconv.train.recipe import Augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_to_do_returns_the_batch():
    x = torch.rand(2, 1, 4, 4)
    assert augment(x, Augment()) is x


def test_shift_moves_whole_pictures_and_fills_with_black():
    x = torch.arange(1.0, 25).view(2, 1, 3, 4)
    y = _shift(x, torch.tensor([1, 0]), torch.tensor([-2, 0]), 2)
    assert y[0, 0].tolist() == [[0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]
    assert torch.equal(y[1], x[1])


def test_shift_reaches_every_place_evenly():
    x = torch.zeros(3000, 1, 5, 5)
    x[:, :, 2, 2] = 1
    y = augment(x, Augment(shift=1), generator())
    places = y[:, 0].sum(0)
    assert float(y.sum()) == 3000
    assert int((places > 0).sum()) == 9 and float(places[1:4, 1:4].min()) > 250


def test_affine_with_whole_shift_equals_shift():
    x = torch.rand(3, 2, 6, 5)
    down, right = torch.tensor([1, -1, 0]), torch.tensor([2, 0, -1])
    zero = torch.zeros(3)
    y = _affine(x, zero, zero + 1, down.float(), right.float())
    torch.testing.assert_close(y, _shift(x, down, right, 2), rtol=1e-4, atol=1e-4)


def test_affine_turns_without_bending_oblong_pictures():
    x = torch.zeros(1, 1, 9, 15)
    x[0, 0, 4, 4:11] = 1  # a level line through the centre
    y = _affine(x, torch.tensor([90.0]), torch.ones(1), torch.zeros(1), torch.zeros(1))
    expected = torch.zeros(9, 15)
    expected[1:8, 7] = 1
    torch.testing.assert_close(y[0, 0], expected, rtol=0, atol=1e-3)


def test_affine_scale_enlarges():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 3:6, 3:6] = 1
    y = _affine(x, torch.zeros(1), torch.tensor([2.0]), torch.zeros(1), torch.zeros(1))
    assert math.isclose(float(y.sum()), 4 * 9, rel_tol=0.1)


def test_flip_mirrors_about_half():
    x = torch.arange(4.0).view(1, 1, 1, 4).repeat(1000, 1, 1, 1)
    y = augment(x, Augment(flip=True), generator())
    mirrored = (y[:, 0, 0, 0] == 3).sum()
    assert 420 < int(mirrored) < 580
    assert torch.equal(y[y[:, 0, 0, 0] == 3][0, 0, 0], torch.tensor([3.0, 2, 1, 0]))


def test_same_generator_same_result():
    x = torch.rand(8, 1, 8, 8)
    how = Augment(shift=0.5, rotate=10, scale=0.1, flip=True)
    assert torch.equal(augment(x, how, generator(3)), augment(x, how, generator(3)))
    assert not torch.equal(augment(x, how, generator(3)), augment(x, how, generator(4)))
