import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.train.recipe import RecipeError, make_recipe
from leanconv.train.schedule import Schedule


def recipe(**entries):
    return make_recipe({"model": "bireal_digits", "data": "digits", "epochs": 4, "learning_rate": 0.1} | entries)


def factors(epochs, steps, **entries):
    schedule = Schedule(recipe(**entries), epochs, steps)
    return [schedule.factor(step) for step in range(epochs * steps + 1)]


def by_hand(step, total, warmup, falls):
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return falls((step - warmup) / (total - warmup))


FALLS = {
    "cosine": ({}, lambda t: 0.5 * (1 + math.cos(math.pi * t))),
    "cosine_to_a_hundredth": ({"min_lr": 0.001}, lambda t: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * t))),
    "cosine_k": ({"k_decay": 2}, lambda t: 0.5 * (1 + math.cos(math.pi * t * t))),
    "linear": ({}, lambda t: 1 - t),
    "linear_to_a_tenth": ({"min_lr": 0.01}, lambda t: 1 - 0.9 * t),
    "poly": ({"power": 2}, lambda t: (1 - t) ** 2),
    "constant": ({}, lambda t: 1.0),
}


@pytest.mark.parametrize("name", FALLS)
@pytest.mark.parametrize(("epochs", "steps", "warmup"), [(6, 2, 1), (3, 7, 0), (2, 9, 0.5), (1, 1, 0)])
def test_against_the_formula(name, epochs, steps, warmup):
    args, falls = FALLS[name]
    measured = factors(epochs, steps, schedule=name.split("_")[0], schedule_args=args, warmup_epochs=warmup)
    total, rises = epochs * steps, round(warmup * steps)
    assert measured == pytest.approx([by_hand(s, total, rises, falls) for s in range(total + 1)], abs=1e-12)


def test_cosine_after_a_warm_up_of_two_steps():
    cosine = factors(6, 2, warmup_epochs=1)
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine[7] == pytest.approx(0.5) and cosine[12] == 0.0


def test_steps_fall_at_whole_epochs_counted_from_the_start():
    multi = factors(8, 3, schedule="multistep", schedule_args={"decay_milestones": [6, 4]}, warmup_epochs=1)
    assert multi[3:12] == [1.0] * 9
    assert multi[12:18] == pytest.approx([0.1] * 6) and multi[18:] == pytest.approx([0.01] * 7)
    step = factors(4, 2, schedule="step", schedule_args={"decay_epochs": 1.5, "decay_rate": "5e-1"})
    assert step == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["cosine", "linear", "poly", "constant"]),
    st.integers(1, 6),
    st.integers(1, 9),
    st.floats(0, 8),
    st.lists(st.integers(0, 53), max_size=12),
)
def test_depends_on_the_step_alone_and_never_rises_after_the_warm_up(name, epochs, steps, warmup, looks):
    made = recipe(schedule=name, warmup_epochs=warmup)
    whole = [Schedule(made, epochs, steps).factor(step) for step in range(54)]
    schedule = Schedule(made, epochs, steps)
    assert [schedule.factor(step) for step in looks] == [whole[step] for step in looks]
    assert all(0 <= f <= 1 for f in whole)
    rises = round(warmup * steps)
    assert all(a < b for a, b in pairwise(whole[:rises]))
    assert all(a >= b for a, b in pairwise(whole[rises:]))


@pytest.mark.parametrize(
    ("schedule", "args", "message"),
    [
        ("cosine", {"min_rl": 0.1}, "unknown 'min_rl' for the schedule cosine; did you mean 'min_lr'"),
        ("constant", {"min_lr": 0.1}, "unknown 'min_lr' for the schedule constant; known: none"),
        ("step", {}, "the schedule step needs 'decay_epochs'"),
        ("multistep", {"decay_milestones": []}, "schedule_args.decay_milestones"),
        ("linear", {"min_lr": "low"}, "schedule_args.min_lr: .* got 'low'"),
        ("linear", {"min_lr": 0.2}, r"min_lr: 0.2 is more than learning_rate \(0.1\)"),
    ],
)
def test_mistakes(schedule, args, message):
    with pytest.raises(RecipeError, match=message) as error:
        Schedule(recipe(schedule=schedule, schedule_args=args), 4, 10)
    assert "\n" not in str(error.value)
