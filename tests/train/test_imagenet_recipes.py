import math

import pytest

from leanconv.models import float_twin, list_models
from leanconv.shipped import recipes
from leanconv.train import checkpoint, log
from leanconv.train.loop import train
from leanconv.train.recipe import RecipeError, load_recipe
from leanconv.train.setup import preprocessing_of, read_data
from leanconv.train.streams import StreamedSplit
from tests.train.files import folders, shards

SHIPPED = {name: path for name, path in recipes().items() if name.startswith("imagenet/")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pictures in both layouts: eight or nine to train on, of two classes; three or four to test on."""
    folder, tars = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("tars")
    folders(folder, {"train": 4, "val": 2}, form="JPEG", size=40)
    shards(tars, {"train": 3, "val": 1}, form="JPEG", size=40)
    return {"imagefolder": f"imagefolder:{folder}", "webdataset": f"webdataset:{tars}"}


def most_slow(name):
    return pytest.param(name, marks=() if name.startswith("imagenet/bireal_resnet18") else pytest.mark.slow)


@pytest.mark.parametrize("name", [most_slow(name) for name in SHIPPED])
def test_two_steps_on_generated_pictures(name, made, tmp_path):
    kind = load_recipe(SHIPPED[name]).data.split(":")[0]
    small = ["size=32", "epochs=1", "batch_size=4", "workers=1", "log_steps=1", f"data={made[kind]}"]
    phases = 2 if load_recipe(SHIPPED[name]).real_weights_first else 1
    recipe = load_recipe(SHIPPED[name], [*small, "real_weights_first.epochs=1"] if phases == 2 else small)
    assert isinstance(read_data(recipe)[0].train, StreamedSplit)
    result = train(recipe, tmp_path, progress=False, device="cpu")
    rows = log.read(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 2 * phases + 1))
    assert rows[-1]["kind"] == "epoch" and math.isfinite(rows[-1]["loss"]) and result.reproduced is None
    info = checkpoint.read_info(result.checkpoint)
    assert info["model"] == recipe.model and info["preprocessing"]["input_size"] == [3, 32, 32]


def test_folders_and_shards_differ_in_their_data_alone():
    folder, tars = (load_recipe(SHIPPED[f"imagenet/bireal_resnet18{end}"]) for end in ("", "_webdataset"))
    assert folder.data.startswith("imagefolder:") and tars.data.startswith("webdataset:")
    assert folder == tars.model_copy(update={"data": folder.data})


PUBLISHED = {name: load_recipe(path).published for name, path in SHIPPED.items()}
WITHOUT_FIGURE = {  # as the recipe explains, and the one whose recipe it has
    "imagenet/aw_resnet50": "imagenet/resnet50",  # the paper's could not be read
    "imagenet/aw_se_resnet101": "imagenet/seresnet101",  # the paper's is over some attention, not named
    "imagenet/reaf_resnet50_control": "imagenet/reaf_resnet50",  # no paper has it
}
BASELINES = {published.over for published in PUBLISHED.values() if published and published.over}
BASELINES |= set(WITHOUT_FIGURE.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_batches_are_shared_by_eight_and_figures_are_marked(name):
    recipe = load_recipe(SHIPPED[name])
    assert recipe.batch_size % 8 == 0 and recipe.expect is None
    if name in WITHOUT_FIGURE:
        assert recipe.published is None and "states no figure" in " ".join(SHIPPED[name].read_text().split("\n# "))
    elif name not in BASELINES or PUBLISHED[name] is not None:  # a baseline may be known by what others gain over it
        assert recipe.published is not None and recipe.published.status == "not yet measured"
    assert f"torchrun --nproc_per_node=8 -m leanconv train {name} " in SHIPPED[name].read_text()


GAINS = {name: published.over for name, published in PUBLISHED.items() if published and published.over}


@pytest.mark.parametrize(("name", "baseline"), (GAINS | WITHOUT_FIGURE).items())
def test_a_gain_is_over_the_same_recipe(name, baseline):
    ours, theirs = load_recipe(SHIPPED[name]), load_recipe(SHIPPED[baseline])
    assert ours.model_copy(update={"model": theirs.model, "published": theirs.published}) == theirs


MODELS = {name: load_recipe(path).model for name, path in SHIPPED.items()}
TWINS = {  # of binary networks, where ImageNet recipes have both
    name: f"imagenet/{float_twin(model)}"
    for name, model in MODELS.items()
    if model in list_models(binary=True) and float_twin(model) in MODELS.values()
}


@pytest.mark.parametrize(("name", "other"), [*(GAINS | WITHOUT_FIGURE).items(), *TWINS.items()])
def test_two_that_are_compared_are_evaluated_alike(name, other):
    ours, theirs = load_recipe(SHIPPED[name]), load_recipe(SHIPPED[other])
    assert ours.size == theirs.size
    assert preprocessing_of(ours.model, ours.model_args) == preprocessing_of(theirs.model, theirs.model_args)


def test_a_checkpoint_keeps_the_preprocessing_of_its_recipe(made, tmp_path):
    small = ["size=32", "epochs=1", "batch_size=4", "workers=1", f"data={made['imagefolder']}"]
    recipe = load_recipe(SHIPPED["imagenet/resnet18"], small)
    assert read_data(recipe)[1].crop_pct == 0.875
    model, info = checkpoint.load(train(recipe, tmp_path, progress=False, device="cpu").checkpoint)
    assert info["preprocessing"]["crop_pct"] == model.pretrained_cfg["crop_pct"] == 0.875


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"crop_pc": 0.9}, "timm's configurations have no entry 'crop_pc'; did you mean 'crop_pct'"),
        ("crop_pct", "expected entries such as"),
        ({"crop_pct": "all"}, "preprocessing is incomplete"),
    ],
)
def test_an_overlay_that_cannot_be(overlay, message):
    with pytest.raises(RecipeError, match=f"^model_args.pretrained_cfg_overlay: {message}") as error:
        preprocessing_of("resnet50", {"pretrained_cfg_overlay": overlay})
    assert "\n" not in str(error.value)
