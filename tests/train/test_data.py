import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanconv.preprocess import Preprocessing
from leanconv.train import streams
from leanconv.train.data import DataError, Split, hold_out, load_data, share_of
from leanconv.train.recipe import Augment
from leanconv.train.streams import StreamedSplit
from tests.train.files import folders

RULES = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


def test_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_data("digits")
    raw = load_digits()
    _, x_test, _, y_test = train_test_split(raw.images, raw.target, test_size=0.25, stratify=raw.target, random_state=0)
    assert data.test.labels.tolist() == y_test.tolist()
    assert data.test.images.dtype == torch.uint8
    assert np.abs(data.test.images[..., 0].numpy() * (16 / 255) - x_test).max() < 0.04
    assert int(data.test.images.max()) == 255
    assert data.classes == [str(i) for i in range(10)] and len(data.train) == 1347


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (6, 5, 4), dtype=np.uint8),
        "y_train": np.array([[0], [1], [2], [0], [1], [2]]),  # Keras' CIFAR labels are N,1
        "x_test": rng.integers(0, 256, (3, 5, 4), dtype=np.uint8),
        "y_test": np.array([0, 1, 2], dtype=np.uint8),
    }


def test_npz(tmp_path, arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    data = load_data(f"npz:{path}")
    assert data.train.images.shape == (6, 5, 4, 1) and data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.test.labels.dtype == torch.int64 and data.classes == ["0", "1", "2"]
    np.savez(path, **arrays, classes=np.array(["a", "b", "c"]))
    assert load_data(f"npz:{path}").classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": None}, "lacks x_test"),
        ({"x_train": np.zeros((6, 5, 4), np.float32)}, "must be uint8"),
        ({"x_train": np.zeros((6, 3, 5, 7), np.uint8)}, "1, 3 or 4 channels in the last place"),
        ({"y_train": np.zeros(5, int)}, "6 pictures but 5 labels"),
        ({"y_train": np.zeros(6)}, "labels must be integers"),
        ({"y_test": np.array([0, 1, -2])}, "labels must be integers from 0"),
        ({"classes": np.array(["a"])}, "1 class names for labels up to 2"),
    ],
)
def test_npz_mistakes(tmp_path, arrays, change, message):
    path = tmp_path / "data.npz"
    np.savez(path, **{k: v for k, v in (arrays | change).items() if v is not None})
    with pytest.raises(DataError, match=message):
        load_data(f"npz:{path}")


def test_damaged_npz(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        load_data(f"npz:{path}")
    with pytest.raises(DataError, match="no such file"):
        load_data(f"npz:{tmp_path}/other.npz")
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(DataError, match=r"not an \.npz file"):
        load_data(f"npz:{path.with_suffix('.npy')}")


def test_torchvision(tmp_path, monkeypatch):
    from leanconv import _torchvision

    _torchvision.ensure_importable()
    import torchvision.datasets

    class Fake:
        def __init__(self, root, train, download):
            if not download:
                raise RuntimeError("Dataset not found")
            n = 4 if train else 2
            self.data = np.full((n, 6, 6, 3), 7, np.uint8)
            self.targets = [i % 2 for i in range(n)]
            self.classes = ["x", "y"]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    data = load_data(f"torchvision:CIFAR10:{tmp_path}")
    assert data.classes == ["x", "y"] and len(data.train) == 4 and data.test.images.shape == (2, 6, 6, 3)
    with pytest.raises(DataError, match="no data set 'CIFAR01'; did you mean 'CIFAR10'"):
        load_data(f"torchvision:CIFAR01:{tmp_path}")
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda *a, **k: (_ for _ in ()).throw(OSError("no\nnetwork")))
    with pytest.raises(DataError, match=r"cannot be read or downloaded \(no\)"):
        load_data(f"torchvision:MNIST:{tmp_path}")


@pytest.mark.parametrize("spec", ["digit", "npz:", "npz", "torchvision:CIFAR10", "imagefolder:", "webdataset", "tar:x"])
def test_unknown_spec(spec):
    with pytest.raises(DataError, match="expected digits, npz:PATH, imagefolder:PATH, webdataset:PATH or torchvision:"):
        load_data(spec, RULES)


@given(st.integers(0, 40), st.integers(1, 6))
def test_shares_hold_each_picture_once(count, world):
    shares = [share_of(count, rank, world) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_split_in_batches():
    split = Split(torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1), torch.arange(7))
    batches = [list(split.pictures(2, rank=rank, world=2)) for rank in (0, 1)]
    assert [[labels.tolist() for _, labels in part] for part in batches] == [[[0, 1], [2]], [[3, 4], [5, 6]]]
    assert all(torch.equal(images.flatten(), labels.byte()) for part in batches for images, labels in part)
    assert split.picture_shape == (1, 1, 1)


@pytest.fixture
def opened(tmp_path):
    """Four training and two test pictures of 8x8x3 = 192 bytes each, in files."""
    return f"imagefolder:{folders(tmp_path, {'train': 2, 'val': 1})}"


def test_data_in_memory_or_in_files(opened, monkeypatch):
    def kinds(**options):
        data = load_data(opened, RULES, **options)
        return type(data.train), type(data.test)

    assert kinds() == kinds(augment=Augment(flip=True, shift=2)) == (Split, Split)
    assert kinds(augment=Augment(crop=(0.5, 1))) == (StreamedSplit, Split)
    assert kinds(augment=Augment(color_jitter=0.1)) == kinds(augment=Augment(auto_augment="original"))
    assert kinds(augment=Augment(crop=(0.5, 1)), stream=False) == (Split, Split)
    assert kinds(stream=True) == (StreamedSplit, StreamedSplit)
    monkeypatch.setattr(streams, "IN_MEMORY", 4 * 192)
    assert kinds() == (StreamedSplit, Split)
    monkeypatch.setattr(streams, "IN_MEMORY", 4 * 192 + 1)
    assert kinds() == (Split, Split)


@pytest.mark.parametrize("kind", ["imagefolder", "webdataset"])
def test_pictures_from_files_need_rules(tmp_path, kind):
    with pytest.raises(DataError, match="pictures from files need a network's preprocessing"):
        load_data(f"{kind}:{tmp_path}")


def test_hold_out_is_stratified_and_fixed():
    labels = torch.tensor([0] * 10 + [1] * 20)
    split = Split(torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1), labels)
    rest, held = hold_out(split, 0.2)
    assert held.labels.tolist() == [0] * 2 + [1] * 4
    assert sorted(rest.images.flatten().tolist() + held.images.flatten().tolist()) == list(range(30))
    assert torch.equal(hold_out(split, 0.2)[1].images, held.images)
    with pytest.raises(DataError, match="of class 0 cannot be held out"):
        hold_out(split, 0.01)
