import io
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv.preprocess import PictureError, Preprocessing, prepare
from leanconv.train.recipe import Augment, RecipeError
from leanconv.train.transforms import PictureTransform, decode, of_single_pictures, seeded
from tests.train.files import encoded

RULES = Preprocessing((3, 24, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.875)


def ramp(width: int = 200, height: int = 160) -> Image.Image:
    """Red grows to the right, green downwards, one grey level a pixel; blue is 128."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[..., 0] = np.arange(width)[None, :]
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


def test_without_transforms_as_for_evaluation():
    assert np.array_equal(PictureTransform(Augment(flip=True, shift=3), RULES)(ramp(), 1), prepare(ramp(), RULES))


def test_crop_is_a_box_within_the_bounds():
    transform = PictureTransform(Augment(crop=(0.2, 0.5)), RULES)
    areas, ratios, lefts = [], [], []
    for seed in range(300):
        pixels = transform(ramp(), seed).astype(float)
        assert pixels.shape == (24, 32, 3) and (pixels[..., 2] == 128).all()
        wide = (pixels[5, 24, 0] - pixels[5, 8, 0]) * 2  # sixteen of 32 columns
        tall = (pixels[18, 5, 1] - pixels[6, 5, 1]) * 2
        areas.append(wide * tall / (200 * 160))
        ratios.append(wide / tall)
        lefts.append(pixels[5, 0, 0])
    assert min(areas) > 0.18 and max(areas) < 0.53 and 0.32 < np.mean(areas) < 0.38
    assert min(ratios) > 0.7 and max(ratios) < 1.42 and abs(np.mean(np.log(ratios))) < 0.04
    assert max(lefts) - min(lefts) > 60


@pytest.mark.parametrize(
    "how",
    [
        {"crop": (0.3, 1.0)},
        {"color_jitter": 0.4},
        {"auto_augment": "rand-m7-mstd0.5"},
        {"auto_augment": "original"},
        {"auto_augment": "augmix-m5-w4-d2"},
        {"auto_augment": "3a"},
        {"crop": (0.3, 1.0), "color_jitter": 0.4, "auto_augment": "rand-m9-n3"},
    ],
)
def test_draws_follow_from_the_seed_alone(how):
    transform = PictureTransform(Augment(**how), RULES)
    copy = pickle.loads(pickle.dumps(transform))  # as a worker process gets it
    first = [transform(ramp(), seed) for seed in range(6)]
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again = [copy(ramp(), seed) for seed in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(a.dtype == np.uint8 and a.shape == (24, 32, 3) for a in first)
    assert len({a.tobytes() for a in first}) > 1


def test_color_jitter_acts_beside_auto_augment():
    """timm drops it there unless told otherwise."""
    both = PictureTransform(Augment(auto_augment="rand-m9-n1-p0.0", color_jitter=0.5), RULES)
    assert not np.array_equal(both(ramp(), 0), prepare(ramp(), RULES))


def test_grey_pictures():
    rules = Preprocessing((1, 8, 8), (0.5,), (0.5,), "bicubic", 1.0)
    assert PictureTransform(Augment(crop=(0.5, 1)), rules)(ramp(), 0).shape == (8, 8, 1)
    with pytest.raises(
        RecipeError, match=r"augment\.color_jitter changes colours and needs pictures of 3 channels, not 1"
    ):
        PictureTransform(Augment(color_jitter=0.1), rules)


def test_pictures_of_other_modes_become_rgb():
    transform = PictureTransform(Augment(crop=(0.5, 1)), RULES)
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        assert transform(ramp().convert(mode), 0).shape == (24, 32, 3)


@pytest.mark.parametrize("policy", ["rand-q7", "nonsense", "augmix-x1", ""])
def test_unknown_policy(policy):
    if policy:
        with pytest.raises(RecipeError, match=r"augment\.auto_augment: timm has no policy"):
            PictureTransform(Augment(auto_augment=policy), RULES)
    else:
        assert of_single_pictures(Augment(auto_augment=policy)) == []


def test_seeded_restores_the_generators():
    def draw():
        return random.random(), np.random.random(), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = draw()
    with seeded(2**62 + 5):
        inside = draw()
    assert [first, draw()] == expected
    with seeded(2**62 + 5):
        assert draw() == inside
    with seeded(2**62 + 6):
        assert all(a != b for a, b in zip(draw(), inside, strict=True))


def test_decode_turns_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "JPEG", exif=exif)
    assert decode(file.getvalue(), "x").size == (4, 6)


@pytest.mark.parametrize("content", [b"", b"GIF89a", encoded(3)[:80], encoded(3, "JPEG")[:-200]])
def test_damaged_pictures(content):
    with pytest.raises(PictureError, match=r"^a/b\.jpg: ") as error:
        decode(content, "a/b.jpg")
    assert "\n" not in str(error.value)
