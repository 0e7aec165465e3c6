import pytest
import torch

from leanconv.preprocess import Preprocessing, read_pictures
from leanconv.train.data import DataError, load_data
from tests.train.files import encoded, folders

RULES = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


@pytest.fixture
def root(tmp_path):
    return folders(tmp_path, {"train": 3, "val": 2})


@pytest.mark.parametrize("stream", [True, False])
def test_pictures_and_labels(root, stream):
    data = load_data(f"imagefolder:{root}", RULES, stream=stream)
    assert data.prepared and data.classes == ["cat", "dog"]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.train.picture_shape == (8, 8, 3)
    files = sorted((root / "val").rglob("*.png"))
    images = torch.cat([images for images, _ in data.test.pictures(3)])
    assert torch.equal(images, torch.from_numpy(read_pictures(files, RULES)))


def test_test_folder_alone(root):
    alone = load_data(f"imagefolder:{root / 'val'}", RULES, train=False)
    assert alone.train is None and alone.classes == ["cat", "dog"]
    assert torch.equal(alone.test.images, load_data(f"imagefolder:{root}", RULES).test.images)


def test_pictures_in_inner_folders_and_other_files(root):
    (root / "train" / "cat" / "more").mkdir()
    (root / "train" / "cat" / "more" / "x.JPEG").write_bytes(encoded(200, "JPEG"))
    (root / "train" / "cat" / "notes.txt").write_text("no picture")
    data = load_data(f"imagefolder:{root}", RULES, stream=True)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3
    assert data.train.store.name(3) == str(root / "train" / "cat" / "more" / "x.JPEG")


def test_classes_are_those_of_the_training_folder(root):
    (root / "val" / "cat" / "000.png").unlink()
    (root / "val" / "cat" / "001.png").unlink()
    (root / "val" / "cat").rmdir()
    data = load_data(f"imagefolder:{root}", RULES, train=False)
    assert data.classes == ["cat", "dog"] and data.test.labels.tolist() == [1, 1]


def test_mistakes(root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match="none: no such folder"):
        load_data(f"imagefolder:{root}/none", RULES)
    with pytest.raises(DataError, match="expected the folders train and test"):
        load_data(f"imagefolder:{empty}", RULES)
    (empty / "train").mkdir()
    (empty / "test").mkdir()
    with pytest.raises(DataError, match="train: expected a folder for each class"):
        load_data(f"imagefolder:{empty}", RULES)
    (root / "train" / "fox").mkdir()
    with pytest.raises(DataError, match="fox: no pictures in this folder"):
        load_data(f"imagefolder:{root}", RULES)
    (root / "train" / "fox").rmdir()
    (root / "val" / "fox").mkdir()
    with pytest.raises(DataError, match="val: class 'fox' does not occur in the training folder"):
        load_data(f"imagefolder:{root}", RULES)


def test_damaged_picture(root):
    (root / "val" / "dog" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"dog/broken\.png: not a picture"):
        load_data(f"imagefolder:{root}", RULES)
