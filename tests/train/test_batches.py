import pytest
import torch

from leanconv.train.batches import MemoryBatches, Share
from leanconv.train.data import Split
from leanconv.train.recipe import RecipeError, make_recipe


def recipe(**entries):
    base = {"model": "bireal_digits", "data": "digits", "epochs": 1, "learning_rate": 0.1, "batch_size": 8}
    return make_recipe(base | entries)


@pytest.fixture
def split():
    images = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 4, 4, 1).contiguous()
    return Split(images, torch.arange(30))


def drawn(batches, epoch, start=0):
    return [[(x, y) for x, y in parts] for parts in batches.epoch(epoch, start)]


def test_each_picture_at_most_once_with_its_label(split):
    batches = MemoryBatches(split, recipe(), Share())
    assert batches.steps == 3
    labels = torch.cat([y for parts in drawn(batches, 0) for _, y in parts])
    assert len(labels) == 24 == len(labels.unique())
    for parts in drawn(batches, 0):
        for x, y in parts:
            assert x.shape == (8, 1, 4, 4) and torch.equal(x[:, 0, 0, 0], y.float())


def test_epochs_differ_and_repeat(split):
    batches = MemoryBatches(split, recipe(), Share())
    first, again, second = (torch.cat([p[0][1] for p in drawn(batches, e)]) for e in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    other = MemoryBatches(split, recipe(seed=1), Share())
    assert not torch.equal(first, torch.cat([p[0][1] for p in drawn(other, 0)]))


def test_starting_in_the_middle_gives_the_same_batches(split):
    batches = MemoryBatches(split, recipe(augment={"shift": 1, "flip": True}), Share())
    whole, rest = drawn(batches, 2), drawn(batches, 2, start=1)
    assert len(rest) == 2
    for a, b in zip(whole[1:], rest, strict=True):
        assert torch.equal(a[0][0], b[0][0]) and torch.equal(a[0][1], b[0][1])


def test_processes_share_what_one_would_accumulate(split):
    how = recipe(augment={"shift": 1, "flip": True})
    alone = drawn(MemoryBatches(split, how, Share(0, 1, 4)), 0)
    shared = [drawn(MemoryBatches(split, how, Share(rank, 2, 2)), 0) for rank in (0, 1)]
    for step, parts in enumerate(alone):
        together = [*shared[0][step], *shared[1][step]]
        assert len(parts) == len(together) == 4
        for (x, y), (x2, y2) in zip(parts, together, strict=True):
            assert len(y) == 2 and torch.equal(x, x2) and torch.equal(y, y2)


def test_what_does_not_divide_is_refused(split):
    with pytest.raises(RecipeError, match=r"batch_size: 8 .* multiple of 3"):
        MemoryBatches(split, recipe(), Share(0, 3, 1))
    with pytest.raises(RecipeError, match="batch_size: 64 is more than the 30"):
        MemoryBatches(split, recipe(batch_size=64), Share())
