"""leanconv.preprocess against timm's own evaluation transform, pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanconv.preprocess import (
    INTERPOLATIONS,
    PictureError,
    Preprocessing,
    find_pictures,
    normalize,
    prepare,
    read_picture,
    read_pictures,
)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def rules(channels: int = 3, height: int = 32, width: int = 32, **more: object) -> Preprocessing:
    config = {"input_size": [channels, height, width], "mean": [0.4] * channels, "std": [0.2] * channels, **more}
    return Preprocessing.from_dict(config)


def timm_transform(r: Preprocessing, normalize: bool = False):
    import leanconv.models  # noqa: F401  repairs torchvision beside a CPU torch

    from timm.data import create_transform  # isort: skip

    return create_transform(
        r.input_size,
        is_training=False,
        interpolation=r.interpolation,
        mean=r.mean,
        std=r.std,
        crop_pct=r.crop_pct,
        crop_mode=r.crop_mode,
        normalize=normalize,
    )


SIZES = [(40, 40), (61, 43), (43, 61), (97, 33), (20, 20), (17, 90), (500, 375), (32, 32), (33, 32), (5, 200)]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0, 0.9])
def test_equals_timm_center(interpolation: str, crop_pct: float) -> None:
    r = rules(interpolation=interpolation, crop_pct=crop_pct)
    transform = timm_transform(r)
    for size in SIZES:
        image = picture(*size)
        expected = transform(image).numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(prepare(image, r), expected, err_msg=str(size))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (31, 45), (48, 20)])
def test_equals_timm_other_modes_and_shapes(crop_mode: str, height: int, width: int) -> None:
    r = rules(height=height, width=width, crop_mode=crop_mode)
    transform = timm_transform(r)
    for size in SIZES:
        image = picture(*size)
        expected = transform(image).numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(prepare(image, r), expected, err_msg=str(size))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_are_converted(mode: str, channels: int) -> None:
    r = rules(channels)
    image = picture(50, 40, mode)
    expected = timm_transform(r)(image.convert("L" if channels == 1 else "RGB")).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(prepare(image, r), expected)


def test_normalize_equals_timm_to_rounding() -> None:
    r = rules(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    image = picture(50, 40)
    expected = timm_transform(r, normalize=True)(image).numpy()
    np.testing.assert_array_equal(normalize(prepare(image, r)[None], r)[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = picture(48, 36)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that stores `upright` under this orientation
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "p.png", exif=exif.tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png", rules()), prepare(upright, rules()))


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "p.png")
    result = read_picture(tmp_path / "p.png", rules(1, 64, 64, crop_pct=1.0))
    np.testing.assert_array_equal(result[..., 0], grey >> 8)


def test_unreadable_pictures(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    with pytest.raises(PictureError, match=r"text\.jpg: not a picture"):
        read_picture(text, rules())
    with pytest.raises(PictureError, match="no such file"):
        read_picture(tmp_path / "absent.png", rules())
    picture(200, 200).save(tmp_path / "whole.png")
    half = tmp_path / "half.png"
    data = (tmp_path / "whole.png").read_bytes()
    half.write_bytes(data[: len(data) // 2])
    with pytest.raises(PictureError, match=r"half\.png: the picture is damaged"):
        read_picture(half, rules())
    picture(200, 200).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    half = tmp_path / "half.jpg"
    half.write_bytes(data[: len(data) // 2])
    with pytest.raises(PictureError, match=r"half\.jpg: the picture is damaged"):
        read_picture(half, rules())
    with pytest.raises(PictureError, match="damaged or cannot be read"):
        read_picture(tmp_path, rules())


def test_find_pictures(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.PNG", "b/1.jpg", "a.webp", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.relative_to(tmp_path).as_posix() for p in find_pictures([tmp_path])] == ["a.webp", "b/1.jpg", "b/2.PNG"]
    assert find_pictures([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match="no pictures in this folder"):
        find_pictures([tmp_path / "empty"])


def test_read_pictures_stacks(tmp_path: Path) -> None:
    for i in range(3):
        picture(40 + i, 40, seed=i).save(tmp_path / f"{i}.png")
    assert read_pictures(find_pictures([tmp_path]), rules(3, 24, 20)).shape == (3, 24, 20, 3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"crop_mode": "middle"}, "unknown crop_mode"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"mean": [0.5]}, "mean and std need 3 values"),
        ({"std": [0.1, 0.0, 0.1]}, "std above 0"),
        ({"input_size": [2, 8, 8], "mean": [0, 0], "std": [1, 1]}, "1, 3 or 4 channels"),
        ({"input_size": [3, 8]}, "incomplete"),
        ({"mean": None}, "incomplete"),
    ],
)
def test_rules_are_checked(change: dict, text: str) -> None:
    config = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.2] * 3} | change
    with pytest.raises(PictureError, match=text):
        Preprocessing.from_dict(config)


def test_a_network_without_rules() -> None:
    with pytest.raises(PictureError, match="does not say how its pictures are prepared"):
        Preprocessing.from_dict(None)
