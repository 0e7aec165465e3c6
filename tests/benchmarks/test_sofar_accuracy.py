import pytest

from benchmarks.sofar_accuracy import BASELINES, BEGIN, END, ROOT, recipe_of, table
from leanconv.results import read, summarise
from leanconv.shipped import recipe_path
from leanconv.train.recipe import load_recipe
from tests.models.test_sofar import operations


@pytest.mark.parametrize("name", BASELINES)
def test_arms_differ_in_the_network_alone_and_cost_the_same(name):
    ours, theirs = (load_recipe(recipe_path(f"cifar10/{arm}")) for arm in (name, BASELINES[name]))
    same = {"model": theirs.model, "model_args": theirs.model_args, "expect": theirs.expect}
    assert ours.model_copy(update=same) == theirs
    cost, budget = (operations(arm.model, 32, **arm.model_args)[0] for arm in (ours, theirs))
    assert cost == pytest.approx(budget, rel=0.01)


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs" / "sofar.md").read_text()
    assert page.partition(BEGIN)[2].partition(END)[0] == f"\n{table()}\n"


def test_every_arm_of_the_study_has_its_recipe():
    for summary in summarise(read(ROOT / "results" / "cifar10_sofar.csv")):
        assert load_recipe(recipe_path(f"cifar10/{recipe_of(summary)}")).model == summary.model
