from pathlib import Path

import pytest
import yaml

from leanconv.train.recipe import RecipeError, load_recipe, make_recipe, parse_overrides

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
GOOD = {"model": "bireal_digits", "data": "digits", "epochs": 3, "learning_rate": 0.01}


def write(tmp_path, entries) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    recipe = load_recipe(path)
    assert path.stem.startswith(recipe.model)
    if recipe.expect is not None:
        assert recipe.expect.at_least <= recipe.expect.top1
        assert recipe.expect.seeds


def test_shipped_recipes_exist():
    assert {"bireal_digits", "resnet_digits", "bireal_resnet20_cifar"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize("folder", ["digits", "cifar10"])
def test_both_arms_of_a_comparison_have_one_recipe(folder):
    """Recipes of a folder that differ in nothing but model and result, by what their names add to their models'."""
    arms = {}
    for path in (p for p in RECIPES if p.parent.name == folder):
        recipe = load_recipe(path)
        kind = path.stem.removeprefix(recipe.model)
        arms.setdefault(kind, []).append(recipe.model_dump(exclude={"model", "expect", "teacher"}))
    assert len(arms[""]) >= 2
    assert all(arm == same[0] for same in arms.values() for arm in same)


def test_overrides_reach_into_sections(tmp_path):
    path = write(tmp_path, GOOD | {"augment": {"flip": True}})
    recipe = load_recipe(path, ["epochs=7", "augment.shift=1", "learning_rate=2e-3", "model_args.pad_value=-1"])
    assert (recipe.epochs, recipe.learning_rate, recipe.model_args) == (7, 0.002, {"pad_value": -1})
    assert (recipe.augment.shift, recipe.augment.flip) == (1.0, True)
    assert yaml.safe_load(path.read_text())["epochs"] == 3


def test_expected_result_holds_for_the_recipe_as_it_is(tmp_path):
    path = write(tmp_path, GOOD | {"expect": {"top1": 0.99, "at_least": 0.97}})
    assert load_recipe(path, ["seed=3", "expect.at_least=0.9"]).expect.at_least == 0.9
    assert load_recipe(path, ["epochs=1"]).expect is None


def test_yaml_round_trip(tmp_path):
    recipe = make_recipe(GOOD | {"expect": {"top1": 0.99, "at_least": 0.97, "seeds": [0, 1]}})
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (GOOD | {"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'?"),
        (GOOD | {"augment": {"shfit": 1}}, "unknown key 'augment.shfit'; did you mean 'shift'?"),
        (GOOD | {"xyzzy": 1}, "unknown key 'xyzzy'; known: model, model_args, pretrained, start_from, convert, data"),
        (GOOD | {"epochs": "many"}, "epochs: "),
        (GOOD | {"epochs": 0}, "epochs: input should be greater than or equal to 1, not 0"),
        (GOOD | {"learning_rate": -1}, "learning_rate: input should be greater than 0, not -1"),
        (
            GOOD | {"schedule": "cosin"},
            "schedule: input should be 'cosine', 'linear', 'constant', 'step', 'multistep' or 'poly', not 'cosin'",
        ),
        ({k: v for k, v in GOOD.items() if k != "data"}, "'data' is missing"),
        ("a: [1, 2", "not valid YAML at line"),
        ("- a\n- b\n", "a recipe is a list of `key: value` entries, this is list"),
        ("", "this is NoneType"),
    ],
)
def test_mistakes_get_one_line(tmp_path, entries, message):
    path = write(tmp_path, entries)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "--set epochs: expected key=value"),
        ("=3", "expected key=value"),
        ("epoch=3", "--set epoch=3: unknown key 'epoch'; did you mean 'epochs'?"),
        ("augment.shif=3", "unknown key 'augment.shif'; did you mean 'shift'?"),
        ("epochs=[", "not valid YAML"),
        ("epochs.deep=3", "--set epochs.deep=3: epochs: input should be a valid integer"),
    ],
)
def test_mistaken_overrides_get_one_line(tmp_path, override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path, GOOD), [override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_file():
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such recipe"):
        load_recipe("nowhere.yaml")


def test_parse_overrides_reads_yaml_values():
    assert parse_overrides(["a=1", "b=true", "c=x=y", "d=[1, 2]"]) == {"a": 1, "b": True, "c": "x=y", "d": [1, 2]}
