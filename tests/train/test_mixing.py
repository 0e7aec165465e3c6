import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.train.mixing import Mixing
from leanconv.train.recipe import Augment, RecipeError

SEEDS = st.integers(0, 2**63 - 1)


def batch(size=6):
    generator = torch.Generator().manual_seed(size)
    return torch.rand(size, 3, 8, 8, generator=generator), torch.arange(size) % 4


def test_without_mixing_nothing_changes():
    x, y = batch(5)
    mixed, targets = Mixing(Augment(), 4, 0.1)(x, y, 3)
    assert mixed is x and targets is y


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.1]), st.sampled_from(["mixup", "cutmix"]))
def test_pictures_and_labels_are_mixed_alike(seed, smoothing, kind):
    x, y = batch()
    mixed, targets = Mixing(Augment(**{kind: 0.5}), 4, smoothing)(x.clone(), y, seed)
    assert targets.shape == (6, 4) and targets.dtype == torch.float32
    one_hot = torch.nn.functional.one_hot(y, 4) * (1 - smoothing) + smoothing / 4
    # the share of the picture itself, from its labels: 0 and 3 have other partners' labels (5 -> 1, 2 -> 2)
    share = float((targets[0, 0] - smoothing / 4) / (1 - smoothing))
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))
    other = x.flip(0)
    if kind == "mixup":
        torch.testing.assert_close(mixed, share * x + (1 - share) * other)
    else:
        own, foreign = (mixed == x).all(1), (mixed == other).all(1)
        assert (own | foreign).all()
        assert own[0].float().mean().item() == pytest.approx(share, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_draws_follow_from_the_seed_alone(seed):
    mixing = Mixing(Augment(mixup=0.8, cutmix=1.0), 4, 0.0)
    x, y = batch()
    np.random.seed(1)
    before = np.random.get_state()
    first, targets = mixing(x.clone(), y, seed)
    after = np.random.get_state()
    assert before[0] == after[0] and (before[1] == after[1]).all() and before[2:] == after[2:]
    np.random.seed(2)
    mixing(x.clone(), y, seed ^ 1)
    again, same = mixing(x.clone(), y, seed)
    assert torch.equal(first, again) and torch.equal(targets, same)


def test_another_seed_draws_something_else():
    mixing = Mixing(Augment(mixup=1.0), 4, 0.0)
    x, y = batch()
    seeds = [5, 6, 5 + (1 << 40)]  # the high bits count too
    shares = {mixing(x.clone(), y, seed)[1][0, 0].item() for seed in seeds}
    assert len(shares) == 3


def test_with_both_each_occurs():
    mixing = Mixing(Augment(mixup=1.0, cutmix=1.0), 4, 0.0)
    x, y = batch()
    cut = [bool(((m := mixing(x.clone(), y, seed)[0]) == x).logical_or(m == x.flip(0)).all()) for seed in range(20)]
    assert 3 < sum(cut) < 17


def test_numpys_state_comes_back_after_a_failure():
    mixing = Mixing(Augment(mixup=1.0), 4, 0.0)
    before = np.random.get_state()[1].copy()
    with pytest.raises(RuntimeError):
        mixing(batch()[0], torch.full((6,), 9), 0)
    assert (np.random.get_state()[1] == before).all()


def test_an_odd_number_of_pictures():
    with pytest.raises(RecipeError, match="batch_size: mixup and cutmix mix pairs, and 5 pictures"):
        Mixing(Augment(cutmix=1.0), 4, 0.0)(*batch(5), 0)
