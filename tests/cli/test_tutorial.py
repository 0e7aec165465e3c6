"""Pages of docs/ that are run block by block in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from leanconv.shipped import recipe_path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def follow(found: list[tuple[str, str]], folder: Path) -> str:
    """Run the blocks in `folder`, one after the other; returns everything that they printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    shown = ""
    for language, text in found:
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        shown += done.stdout
    return shown


def evaluations(shown: str) -> list[tuple[str, str]]:
    return re.findall(r"top-1 ([\d.]+)  top-5 ([\d.]+)", shown)


def test_getting_started(tmp_path):
    found = blocks("getting-started.md")
    assert {language for language, _ in found} == {"sh", "python"} and len(found) >= 6
    measured = evaluations(follow(found, tmp_path))
    assert len(measured) == 2 and measured[0] == measured[1]
    assert (tmp_path / "bench.json").is_file()


KINDS = {
    "red circle": ("ellipse", (210, 40, 40)),
    "green square": ("rectangle", (40, 180, 60)),
    "blue bow": ("chord", (40, 60, 220)),
}


def draw_shapes(folder: Path, count: int) -> None:
    """Shapes somewhere on grey noise: a folder for each kind."""
    rng = np.random.default_rng(0)
    for kind, (method, colour) in KINDS.items():
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(np.repeat(rng.integers(90, 160, (60, 80, 1), dtype=np.uint8), 3, axis=2))
            x, y, size = (int(v) for v in (rng.integers(5, 30), rng.integers(5, 20), rng.integers(25, 35)))
            angles = {"start": 0, "end": 180} if method == "chord" else {}
            getattr(ImageDraw.Draw(image), method)([x, y, x + size, y + size], fill=colour, **angles)
            image.save(folder / kind / f"{i}.png")


def reduced(text: str) -> str:
    """The recipe of the page, for few and small pictures."""
    for entry, value in {"size": 48, "epochs": 6, "batch_size": 10}.items():
        text, changed = re.subn(rf"^{entry}: \d+$", f"{entry}: {value}", text, flags=re.MULTILINE)
        assert changed == 1
    return text


def test_own_pictures(tmp_path):
    found = blocks("own-pictures.md")
    assert [language for language, _ in found] == ["python", "sh", "sh", "python"]
    lines = [line for language, text in found[1:3] for line in text.splitlines() if line != "END"]
    assert len(lines) <= 20
    draw_shapes(tmp_path / "pictures", count=50)
    shown = follow([(language, reduced(text) if "<<END" in text else text) for language, text in found], tmp_path)
    trained = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert evaluations(shown) == [(f"{trained['top1']:.4f}", "1.0000")]
    assert trained["top1"] > 0.5  # chance is a third
    pictures = sorted((tmp_path / "flowers" / "val").rglob("*.png"))
    by_command = dict(re.findall(r"^(flowers/val/.+?\.png)  (.+) [\d.]+%$", shown, flags=re.MULTILINE))
    by_python = dict(re.findall(r"^(flowers/val/.+?\.png) (\w+ \w+)$", shown, flags=re.MULTILINE))
    assert sorted(by_python) == sorted(str(path.relative_to(tmp_path)) for path in pictures)
    assert by_command == by_python and len(pictures) == 30
    right = sum(path.split("/")[2] == kind for path, kind in by_command.items())
    assert right == round(trained["top1"] * 30)


def test_the_recipe_of_own_pictures_is_the_one_that_ships():
    shown = next(text for _, text in blocks("own-pictures.md") if "<<END" in text)
    body = shown.partition("<<END\n")[2].removesuffix("END\n")
    assert yaml.safe_load(body) == yaml.safe_load(recipe_path("flowers/bireal_resnet20_cifar").read_text())


@pytest.mark.slow
def test_training(tmp_path):
    follow([block for block in blocks("training.md") if block[0] != "yaml"], tmp_path)
    assert (tmp_path / "mine.lconv").is_file() and (tmp_path / "my_run" / "best.safetensors").is_file()


def test_recipes_in_training():
    from leanconv.train.recipe import make_recipe

    usual = {"model": "bireal_digits", "data": "digits", "epochs": 1, "learning_rate": 0.1}
    found = [text for language, text in blocks("training.md") if language == "yaml"]
    assert len(found) >= 7
    for text in found:
        make_recipe(usual | yaml.safe_load(text))
