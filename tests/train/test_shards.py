import io
import os
import shutil
import tarfile

import pytest
import torch
from PIL import Image

from leanconv.preprocess import Preprocessing, prepare
from leanconv.train import shards as module
from leanconv.train.data import DataError, load_data
from tests.train.files import encoded, shard, shards

RULES = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


@pytest.fixture
def root(tmp_path):
    return shards(tmp_path, {"train": 2, "val": 1})


def opened(root, **options):
    return load_data(f"webdataset:{root}", RULES, **options)


@pytest.mark.parametrize("stream", [True, False])
def test_pictures_and_labels(root, stream):
    data = opened(root, stream=stream)
    assert data.prepared and data.classes == ["0", "1"]
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1] and data.test.labels.tolist() == [0, 1, 0]
    images = torch.cat([images for images, _ in data.train.pictures(4)])
    for number in range(6):
        expected = prepare(Image.open(io.BytesIO(encoded(number))), RULES)
        assert images[number].tolist() == expected.tolist()


def test_what_makes_a_sample(tmp_path):
    """Any directory, extensions in capitals, further members, label before or after, members that are no files."""
    with tarfile.open(tmp_path / "set_train.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in [
            ("a/" + "long" * 60 + ".CLS", b" 2\n"),
            ("a/" + "long" * 60 + ".JPG", encoded(7, "JPEG")),
            ("a/" + "long" * 60 + ".json", b"{}"),
            ("a/x.png", encoded(8)),
            ("a/x.left.png", encoded(9)),  # another extension: left.png
            ("a/x.cls", b"0"),
            ("b/x.png", encoded(10)),  # another directory, another sample
            ("b/x.cls", b"1"),
            ("README", b"no sample"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
    shutil.copy(tmp_path / "set_train.tar", tmp_path / "set-validation-00.tar")
    data = opened(tmp_path, stream=True)
    assert data.train.labels.tolist() == data.test.labels.tolist() == [2, 0, 1]
    assert [data.train.store.read(i) for i in range(3)] == [encoded(7, "JPEG"), encoded(8), encoded(10)]
    assert data.train.store.name(2) == f"{tmp_path / 'set_train.tar'}: b/x.png"


def test_names_of_shards(tmp_path):
    names = ["train-0.tar", "imagenet1k-train-0001.tar", "train.tar", "a_train.b.tar"]
    for name in [*names, "retrain-0.tar", "train-0.tar.gz", "training.tar", "train-0.tar.idx"]:
        (tmp_path / name).touch()
    assert {path.name for path in module.find_shards(tmp_path, ("train",))} == set(names)


def test_names_of_classes(root):
    (root / "classes.txt").write_text("cat\n dog \nfox\n\n")
    assert opened(root).classes == ["cat", "dog", "fox"]
    for path in root.glob("train-*"):
        path.unlink()
    alone = opened(root, train=False)
    assert alone.classes == ["cat", "dog", "fox"] and alone.train is None


def test_number_of_classes_is_that_of_the_training_shards(tmp_path):
    shards(tmp_path, {"test": 1}, classes=2)
    assert opened(tmp_path, train=False).classes == ["0", "1"]
    shards(tmp_path, {"train": 1}, classes=3)
    assert opened(tmp_path, train=False).classes == ["0", "1", "2"]


def test_index_is_kept_until_a_shard_changes(root, monkeypatch):
    made = []
    make = module.make_index
    monkeypatch.setattr(module, "make_index", lambda paths: made.append(paths) or make(paths))
    first = opened(root, stream=True)
    assert len(made) == 2
    again = opened(root, stream=True)
    assert len(made) == 2
    assert torch.equal(first.train.labels, again.train.labels)
    assert [again.train.store.read(i) for i in range(6)] == [encoded(i) for i in range(6)]
    assert again.train.store.name(4) == first.train.store.name(4)
    shard(root / "train-0001.tar", [("a.png", encoded(1)), ("a.cls", b"1")])
    assert len(opened(root).train) == 4 and len(made) == 3
    (root / ".leanconv-train.npz").write_bytes(b"damaged")
    assert len(opened(root).train) == 4 and len(made) == 4


def test_folder_that_cannot_be_written_to(root, monkeypatch):
    def refuse(path, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "write_atomic", refuse)
    assert len(opened(root).train) == 6 and not list(root.glob(".leanconv*"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], "sample 'a' has no label; expected a.cls"),
        ([("a.cls", b"1")], "sample 'a' has 0 pictures, expected one; its members: .cls"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "sample 'a' has 2 pictures"),
        ([("a.png", b"x"), ("a.PNG", b"x"), ("a.cls", b"1")], "sample 'a' has two members .png"),
        ([("a.png", b"x"), ("a.cls", b"dog")], "a.cls holds b'dog', expected the number of a class"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "a.cls holds b'-1'"),
        ([("README", b"x")], "holds no samples"),
    ],
)
def test_mistakes_in_a_shard(root, members, message):
    shard(root / "train-0002.tar", members)
    with pytest.raises(DataError, match=message) as error:
        opened(root)
    assert str(root / "train-0002.tar") in str(error.value) and "\n" not in str(error.value)


def test_labels_out_of_range(root):
    (root / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"val-0000.tar: 00007.png has class 1, but there are 1 classes"):
        opened(root)
    (root / "classes.txt").write_text("cat\ndog\nfox\n")
    shard(root / "val-0001.tar", [("a.png", encoded(1)), ("a.cls", b"2")])
    with pytest.raises(DataError, match="class 'fox' occurs in the test shards only"):
        opened(root)
    (root / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(DataError, match=r"classes\.txt: expected the name of a class in each line"):
        opened(root)


def test_no_shards(tmp_path):
    with pytest.raises(DataError, match="none: no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(DataError, match="expected shards train-"):
        opened(tmp_path)
    shards(tmp_path, {"test": 1})
    with pytest.raises(DataError, match="expected shards train-"):
        opened(tmp_path)
    assert len(opened(tmp_path, train=False).test) == 3


def test_damaged_shards(root):
    path = root / "train-0001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        third = tar.getmembers()[2]
    for damaged in (
        b"no tar at all" * 100,
        whole[: last.offset_data + 100],  # cut off in the last picture
        whole[: third.offset] + b"\xff" * 512 + whole[third.offset + 512 :],  # a header in the middle
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train-0001.tar: not an uncompressed tar file that can be read"):
            opened(root)


def test_shard_that_shrinks_or_vanishes(root):
    split = opened(root, stream=True).train
    path = root / "train-0001.tar"
    os.truncate(path, int(split.store.index.begin[5]) + 10)
    with pytest.raises(DataError, match=r"train-0001.tar: 00005.png: cannot be read \(the shard became shorter"):
        split.picture(5)
    path.unlink()
    with pytest.raises(DataError, match=r"train-0001.tar: 00003.png: cannot be read \(No such file"):
        split.picture(3)
