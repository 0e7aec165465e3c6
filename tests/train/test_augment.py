import math

import torch

from leanconv.train.augment import _affine, _boxes, _crop, _erase, _shift, augment
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


def test_crop_of_whole_pixels_without_resizing_is_a_slice():
    x = torch.rand(2, 3, 6, 8)
    whole = [torch.zeros(2), torch.zeros(2), torch.tensor([6.0, 6]), torch.tensor([8.0, 8])]
    torch.testing.assert_close(_crop(x, *whole), x)
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)  # bilinear interpolation keeps a ramp
    cropped = _crop(ramp, *(torch.tensor([v]) for v in (1.0, 2.0, 3.0, 4.0)))
    torch.testing.assert_close(cropped[0, 0, 3], 2 + (torch.arange(8) + 0.5) / 2 - 0.5)
    other = _crop(ramp.transpose(2, 3), *(torch.tensor([v]) for v in (2.0, 1.0, 4.0, 3.0)))
    torch.testing.assert_close(other, cropped.transpose(2, 3))


def test_boxes_keep_to_their_bounds():
    x = torch.empty(2000, 1, 40, 60)
    top, left, tall, wide = _boxes(x, (0.1, 0.5), (3 / 4, 4 / 3), generator())
    area, ratio = tall * wide / 2400, wide / tall
    assert float(area.min()) >= 0.0999 and float(area.max()) <= 0.5001 and 0.28 < float(area.mean()) < 0.32
    assert float(ratio.min()) >= 0.749 and float(ratio.max()) <= 1.334 and abs(float(ratio.log().mean())) < 0.02
    assert bool(((top >= 0) & (left >= 0) & (top + tall <= 40.001) & (left + wide <= 60.001)).all())
    assert abs(float((top / (40 - tall)).mean()) - 0.5) < 0.03 and abs(float((left / (60 - wide)).mean()) - 0.5) < 0.03


def test_boxes_that_never_fit_are_cut():
    _, _, tall, wide = _boxes(torch.empty(50, 1, 100, 4), (0.9, 1.0), (3 / 4, 4 / 3), generator())
    assert bool((wide == 4).all()) and float(tall.max()) < 25


def test_crop_enlarges():
    x = torch.rand(200, 1, 8, 8)
    y = augment(x, Augment(crop=(0.3, 0.6)), generator())
    assert y.shape == x.shape and not torch.equal(x, y)
    assert float(y.amin()) >= float(x.amin()) and float(y.amax()) <= float(x.amax())
    steps = torch.arange(64.0).view(1, 1, 8, 8).repeat(200, 1, 1, 1)  # 1 to the right, 8 downwards
    z = augment(steps, Augment(crop=(0.3, 0.6)), generator())
    area = (z[:, 0, 4, 5] - z[:, 0, 4, 4]) * (z[:, 0, 5, 4] - z[:, 0, 4, 4]) / 8  # of a pixel, before enlarging
    assert float(area.min()) > 0.29 and float(area.max()) < 0.61


def test_erase_blackens_the_box():
    x = torch.ones(2, 2, 4, 6)
    box = [torch.full((2,), v) for v in (0.6, 1.2, 2.0, 3.0)]
    y = _erase(x, torch.tensor([True, False]), *box)
    expected = torch.ones(4, 6)
    expected[1:3, 1:4] = 0  # centres 1.5 and 2.5 lie in 0.6..2.6; 1.5, 2.5 and 3.5 in 1.2..4.2
    assert torch.equal(y[0, 0], expected) and torch.equal(y[0, 1], expected) and torch.equal(y[1], x[1])


def test_erase_as_often_as_asked():
    y = augment(torch.ones(2000, 1, 20, 20), Augment(erase=0.25), generator())
    share = (y == 0).float().mean((1, 2, 3))
    assert 430 < int((share > 0).sum()) < 570
    assert float(share.max()) < 0.4 and float(share[share > 0].min()) < 0.05
