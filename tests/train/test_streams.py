import multiprocessing
import os
import pickle
import signal

import pytest
import torch

from leanconv.preprocess import Preprocessing
from leanconv.train.batches import MemoryBatches, Share
from leanconv.train.data import DataError, Split, hold_out, load_data
from leanconv.train.recipe import RecipeError, make_recipe
from leanconv.train.streams import StreamedBatches, read_batches, training_batches
from tests.train.files import encoded, folders

RULES = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


def recipe(**entries):
    base = {"model": "m", "data": "imagefolder:x", "epochs": 1, "learning_rate": 0.1, "batch_size": 4, "workers": 0}
    return make_recipe(base | entries)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """18 training pictures, 10 test pictures."""
    return folders(tmp_path_factory.mktemp("data"), {"train": 9, "val": 5})


@pytest.fixture
def split(root):
    return load_data(f"imagefolder:{root}", RULES, stream=True).train


class Counting:
    """A store that notes what is read; a picture's content is its number."""

    def __init__(self):
        self.reads = []

    def name(self, index):
        return f"picture {index}"

    def read(self, index):
        self.reads.append(index)
        return encoded(index, size=(8, 8))


def drawn(split, epoch=0, start=0, share=None, **entries):
    batches = StreamedBatches(split, recipe(**entries), share or Share(), "cpu")
    return list(batches.epoch(epoch, start))


def same(first, second):
    flat = [[tensor for parts in steps for part in parts for tensor in part] for steps in (first, second)]
    return len(flat[0]) == len(flat[1]) and all(torch.equal(a, b) for a, b in zip(*flat, strict=True))


CROPPED = {"crop": [0.3, 1], "flip": True, "shift": 1, "erase": 0.5, "color_jitter": 0.3}


def test_each_picture_at_most_once_with_its_label(split):
    counted = split.select(torch.arange(18))
    object.__setattr__(counted, "store", Counting())
    steps = drawn(counted)
    assert len(steps) == 4
    seen = []
    for ((x, y),) in steps:
        assert x.shape == (4, 3, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
        numbers = x[:, 0, 0, 0].long()  # the first pixel is the picture's number
        assert torch.equal(y, counted.labels[numbers])
        seen += numbers.tolist()
    assert len(seen) == 16 == len(set(seen)) and seen == counted.store.reads


def test_same_pictures_in_the_same_order_as_from_memory(split):
    """Without transforms of single pictures; those of batches included."""
    for augment in ({}, {"flip": True, "shift": 2, "erase": 0.5}):
        how = recipe(augment=augment)
        memory = MemoryBatches(split.load(), how, Share())
        assert same(list(memory.epoch(3)), drawn(split, 3, augment=augment))


def test_epochs_and_seeds_differ(split):
    first = drawn(split, 0, augment=CROPPED)
    assert same(first, drawn(split, 0, augment=CROPPED))
    assert not same(first, drawn(split, 1, augment=CROPPED)) and not same(
        first, drawn(split, 0, augment=CROPPED, seed=1)
    )


def test_workers_change_nothing(split):
    assert same(drawn(split, augment=CROPPED), drawn(split, augment=CROPPED, workers=2))


def test_starting_in_the_middle_reads_nothing_of_what_was_before(split):
    whole = drawn(split, 2, augment=CROPPED)
    assert same(whole[3:], drawn(split, 2, 3, augment=CROPPED))
    object.__setattr__(split, "store", Counting())
    drawn(split, 2, 3)
    assert len(split.store.reads) == 4
    assert drawn(split, 2, 4) == []


def test_processes_share_what_one_would_accumulate(split):
    alone = drawn(split, 1, share=Share(0, 1, 4), augment=CROPPED)
    shared = [drawn(split, 1, share=Share(rank, 2, 2), augment=CROPPED) for rank in (0, 1)]
    assert same(alone, [first + second for first, second in zip(*shared, strict=True)])


def test_global_generators_are_left_alone(split):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    drawn(split, augment=CROPPED)
    drawn(split, augment=CROPPED, workers=1)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_covers_each_picture_once(root, workers):
    test = load_data(f"imagefolder:{root}", RULES, stream=True, workers=workers).test
    loaded = test.load()
    for world in (1, 3):
        parts = [part for rank in range(world) for part in test.pictures(2, rank=rank, world=world)]
        assert torch.equal(torch.cat([images for images, _ in parts]), loaded.images)
        assert torch.equal(torch.cat([labels for _, labels in parts]), loaded.labels)
    assert list(test.pictures(2, rank=10, world=11)) != [] == list(test.pictures(2, rank=0, world=11))


def test_hold_out(split):
    rest, held = hold_out(split, 0.3)
    assert held.labels.tolist() == [0] * 3 + [1] * 3 and len(rest) == 12
    assert sorted([*rest.chosen.tolist(), *held.chosen.tolist()]) == list(range(18))
    in_memory = hold_out(split.load(), 0.3)[1]
    assert torch.equal(held.load().images, in_memory.images)


def test_what_does_not_divide_is_refused(split):
    with pytest.raises(RecipeError, match=r"batch_size: 4 .* multiple of 3"):
        StreamedBatches(split, recipe(), Share(0, 3, 1), "cpu")
    with pytest.raises(RecipeError, match="batch_size: 64 is more than the 18"):
        StreamedBatches(split, recipe(batch_size=64), Share(), "cpu")


def test_training_batches(split):
    assert isinstance(training_batches(split, RULES, recipe(), Share(), "cpu"), StreamedBatches)
    memory = training_batches(split.load(), RULES, recipe(augment={"crop": [0.5, 1]}), Share(), "cpu")
    assert isinstance(memory, MemoryBatches)
    for name, value in (("color_jitter", 0.3), ("auto_augment", "original")):
        with pytest.raises(RecipeError, match=rf"augment\.{name} changes pictures .* imagefolder:PATH or webdataset"):
            training_batches(split.load(), RULES, recipe(augment={name: value}), Share(), "cpu")


def test_crop_in_memory_keeps_labels():
    images = torch.arange(16, dtype=torch.uint8).view(16, 1, 1, 1).expand(16, 6, 6, 1).contiguous()
    batches = training_batches(
        Split(images, torch.arange(16)), RULES, recipe(augment={"crop": [0.2, 0.9]}), Share(), "cpu"
    )
    for ((x, y),) in batches.epoch(0):
        torch.testing.assert_close(x, y.float().view(-1, 1, 1, 1).expand_as(x))


# ---------------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize("workers", [0, 2])
def test_picture_that_vanishes_or_breaks(tmp_path, workers):
    root = folders(tmp_path, {"train": 9, "val": 1})
    split = load_data(f"imagefolder:{root}", RULES, stream=True).train
    batches = StreamedBatches(split, recipe(workers=workers), Share(), "cpu").epoch(0)
    next(batches)
    lost = root / "train" / "dog" / "004.png"
    for harm, message in (
        (lambda: lost.write_bytes(encoded(1)[:70]), "the picture is damaged"),
        (lost.unlink, r"cannot be read \(No such file"),
    ):
        harm()
        with pytest.raises(DataError, match=rf"dog/004\.png: {message}") as error:
            for epoch in range(9):  # each leaves out two of the eighteen
                list(StreamedBatches(split, recipe(workers=workers), Share(), "cpu").epoch(epoch))
        assert "\n" not in str(error.value)


def test_killed_worker(split):
    batches = StreamedBatches(split, recipe(workers=2, batch_size=1), Share(), "cpu").epoch(0)
    next(batches)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that reads pictures was killed .* lower `workers`") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_workers_leave_interrupts_to_the_parent(split):
    batches = StreamedBatches(split, recipe(workers=2, batch_size=1), Share(), "cpu").epoch(0)
    steps = [next(batches), next(batches)]  # one of each process: both have started
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
    steps += list(batches)
    assert same(steps, drawn(split, batch_size=1))


class Faulty:
    """A transform with a mistake in it."""

    def __call__(self, image, index):
        raise RuntimeError("mistake in the program")


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_are_not_taken_for_faults_of_the_data(split, workers):
    object.__setattr__(split, "workers", workers)
    with pytest.raises(RuntimeError, match="mistake in the program"):
        list(read_batches(split, [[0], [1], [2]], Faulty()))


def test_processes_end_with_the_epoch(split):
    before = set(multiprocessing.active_children())
    batches = StreamedBatches(split, recipe(workers=2, batch_size=1), Share(), "cpu").epoch(0)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert set(multiprocessing.active_children()) <= before


def test_splits_travel_to_other_processes(split):
    copy = pickle.loads(pickle.dumps(split))
    assert same(drawn(copy), drawn(split))
