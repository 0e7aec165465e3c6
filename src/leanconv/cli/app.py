"""The commands and their options. What they do is in the modules beside this one."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.errors import guarded

app = typer.Typer(
    name="leanconv",
    help="Small, accurate convolutional networks: train them in PyTorch, run them in 1-bit arithmetic on the CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_state = {"debug": False}


class RealLayers(StrEnum):
    """Arithmetic of the real-valued layers."""

    fp32 = "fp32"
    int8 = "int8"


class RealMaps(StrEnum):
    """How real maps between operators are stored."""

    fp32 = "fp32"
    bf16 = "bf16"


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"leanconv {version('leanconv')}")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    _state["debug"] = debug


Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the engine; all cores by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for model.lconv, report.html and summary.json.")] = Path(
        "demo"
    ),
) -> None:
    """Digits end to end: train float and 1-bit twins, compile, run, compare, report."""
    from leanconv.extras import need

    need("`leanconv demo`", "demo", "torch", "timm", "sklearn", "onnx", "onnxscript", "onnxruntime")
    from leanconv.demo import run_demo

    run_demo(out)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="A recipe file, or the name of a shipped one.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an entry of the recipe; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for checkpoints and logs; runs/<recipe> by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again where the folder holds a run.")] = False,
) -> None:
    """Train a network by a recipe; also under `torchrun` and `accelerate launch`."""
    from leanconv.cli.train import train

    train(recipe, set_ or [], out, resume, overwrite)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="CHECKPOINT|MODEL.lconv|NAME")],
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="SPEC", help="digits, npz:PATH, imagefolder:PATH, webdataset:PATH, torchvision:NAME:ROOT"
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="CHECKPOINT", help="Compare a packed file with it, picture by picture."),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Top-1 and top-5 on the test part of a data set: of a checkpoint in torch, of a packed file in the engine."""
    if against is not None:
        from leanconv.cli.agreement import agreement

        agreement(model, against, data, threads, json)
        return
    from leanconv.cli.evaluate import evaluate

    evaluate(model, data, threads, json)


@app.command("compile")
def compile_(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT|NAME", help="A checkpoint, or a network whose trained weights ship.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="MODEL.lconv")],
    real_layers: Annotated[
        RealLayers, typer.Option("--real-layers", help="Arithmetic of the layers with real weights.")
    ] = RealLayers.fp32,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            "--calibrate",
            metavar="PICTURES",
            help="For int8: a picture, a folder, an .npz file or a data SPEC; repeatable.",
        ),
    ] = None,
    real_maps: Annotated[
        RealMaps, typer.Option("--real-maps", help="With int8 layers: how real maps between operators are stored.")
    ] = RealMaps.fp32,
) -> None:
    """Compile a checkpoint into one packed file; parity with torch is verified before it is written."""
    from leanconv.cli.convert import compile_checkpoint

    compile_checkpoint(checkpoint, output, real_layers is RealLayers.int8, calibrate, real_maps is RealMaps.bf16)


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|CHECKPOINT", help="A checkpoint, or a model name (trained where its weights ship)."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="MODEL.onnx")],
) -> None:
    """Write ONNX with standard operators and a dynamic batch."""
    from leanconv.cli.convert import export_onnx

    export_onnx(model, output)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL.lconv|NAME")],
    pictures: Annotated[list[Path], typer.Argument(metavar="IMAGE|FOLDER...")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes a picture.")] = 5,
    json: Json = False,
    threads: Threads = None,
) -> None:
    """Classify pictures with a packed file. Needs no torch."""
    from leanconv.cli.run import run

    run(model, pictures, top, json, threads)


@app.command()
def info(
    model: Annotated[str, typer.Argument(metavar="NAME|CHECKPOINT|MODEL.lconv")],
    json: Json = False,
    size: Annotated[int | None, typer.Option("--size", min=1, help="Height and width to count at.")] = None,
    draw: Annotated[
        Path | None,
        typer.Option("--draw", metavar="FILE.svg", help="Draw one fractal unit of the model instead of counting."),
    ] = None,
) -> None:
    """Layers, parameters, binary and float MACs, OPs, bytes; with --draw, a fractal unit as SVG."""
    if draw is not None:
        if json or size is not None:
            raise typer.BadParameter("--draw goes without --json and --size; call `leanconv info` twice")
        from leanconv.cli.info import draw as draw_unit

        draw_unit(model, draw)
        return
    from leanconv.cli.info import info

    info(model, json, size)


@app.command()
def explain(
    model: Annotated[str, typer.Argument(metavar="NAME|CHECKPOINT")],
    pictures: Annotated[list[Path], typer.Argument(metavar="IMAGE|FOLDER...")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.svg|FILE.png",
            help="The drawing; attention.svg by default, none with --json.",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", metavar="PATTERN", help="Layers to show, as in 'layer*.conv2'; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Draw the weight attention of a network's AW-convolutions on pictures: by layer, channel, tap and picture."""
    from leanconv.cli.explain import explain

    explain(model, pictures, output or (None if json else Path("attention.svg")), layers or [], json)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL.lconv|CHECKPOINT|NAME")],
    rivals: Annotated[
        str,
        typer.Option(
            "--rivals",
            metavar="LIST",
            help="torch, onnxruntime, openvino, torch-bf16, openvino-bf16, onnxruntime-int8, openvino-int8, X:binary",
        ),
    ] = "",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of every engine.")] = 1,
    size: Annotated[int | None, typer.Option("--size", min=1, help="Height and width of the pictures.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures a call.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved repeats.")] = 15,
    real_layers: Annotated[RealLayers, typer.Option("--real-layers")] = RealLayers.fp32,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result; - for stdout.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Print a bar a layer.")] = False,
) -> None:
    """Latency in the engine, beside rivals that run the float twin in the same run."""
    from leanconv.cli.bench import bench

    bench(model, rivals, threads, size, batch, rounds, json, profile, real_layers is RealLayers.int8)


@app.command()
def results(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="CSV files or folders of them; a checkout's results/ by default."),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option("--pairs", metavar="ARM,ARM", help="How far the first arm or model is above the other, by seed."),
    ] = None,
    json: Json = False,
) -> None:
    """Recorded training runs: mean, deviation and range of top-1 over the seeds."""
    from leanconv.cli.results import results

    results(paths or [], pairs, json)


@app.command("list")
def list_(json: Json = False) -> None:
    """Models, recipes with their results, and data sets."""
    from leanconv.cli.listing import listing

    listing(json)


def main() -> int:
    """The entry point: runs the command line and returns the exit code."""
    return guarded(app, debug=lambda: _state["debug"] or bool(os.environ.get("LEANCONV_DEBUG")))


if __name__ == "__main__":
    sys.exit(main())
