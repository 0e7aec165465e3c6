import pytest

from benchmarks.drop_in_accuracy import BEGIN, END, RESULTS, ROOT, plain, table
from benchmarks.sofar_accuracy import recipe_of
from leanconv.results import read, summarise
from leanconv.shipped import recipe_path
from leanconv.train.recipe import load_recipe


@pytest.mark.parametrize("model", ["aw_resnet20_cifar", "se_resnet20_cifar", "aw_se_resnet20_cifar"])
def test_arms_differ_in_the_network_alone(model):
    ours, theirs = (load_recipe(recipe_path(f"cifar10/{arm}_sgd")) for arm in (model, plain(model)))
    same = {"model": theirs.model, "model_args": theirs.model_args, "expect": theirs.expect}
    assert ours.model_copy(update=same) == theirs


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs" / "drop-in.md").read_text()
    assert page.partition(BEGIN)[2].partition(END)[0] == f"\n{table()}\n"


def test_every_arm_of_the_study_has_its_recipe():
    for summary in summarise(read(RESULTS)):
        assert load_recipe(recipe_path(f"cifar10/{recipe_of(summary)}")).model == summary.model
