"""`leanconv compile` and `leanconv export`: one file from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from leanconv.cli.errors import CommandError
from leanconv.extras import need


def compile_checkpoint(checkpoint: Path, output: Path) -> None:
    """Write the packed file of a checkpoint, after the compiler has verified it against torch."""
    need("`leanconv compile`", "train", "torch", "timm")
    check_target(output, ".lconv")
    checkpoint.stat()  # a missing file is an error at once, before torch is imported
    from leanconv.networks import from_checkpoint

    network = from_checkpoint(checkpoint)
    program, verification = network.compile()
    size = program.save(output)
    print(verification)
    before = checkpoint.stat().st_size
    print(f"{output}  {size:,} bytes, {before / size:.1f} times smaller than {checkpoint} ({before:,} bytes)")


def export_onnx(model: str, output: Path) -> None:
    """Write ONNX of a checkpoint or of an untrained network by name."""
    need("`leanconv export`", "train,export", "torch", "timm", "onnx", "onnxscript")
    check_target(output, ".onnx")
    check_source(model)
    from leanconv.networks import find_network
    from leanconv.onnx_export import export_onnx

    network = find_network(model)
    written = export_onnx(network.model, network.example(), output)
    checked = "not compared with PyTorch (that needs onnxruntime)"
    if written.largest_difference is not None:
        checked = f"largest difference from PyTorch {written.largest_difference:.1e}"
    print(f"{output}  {written.size:,} bytes, standard operators, dynamic batch; {checked}")


def check_source(text: str) -> None:
    """Refuse, before torch is imported, what can only be a file but is none. Raises CommandError."""
    path = Path(text)
    if not path.is_file() and (path.suffix in (".safetensors", ".lconv", ".pt", ".pth", ".onnx") or "/" in text):
        raise CommandError(f"{text}: no such file")


def check_target(path: Path, suffix: str) -> None:
    """Refuse, before the work starts, a target of another kind or in a missing folder. Raises CommandError."""
    if path.suffix != suffix:
        raise CommandError(f"{path}: the file to write must end in {suffix}")
    if not path.parent.is_dir():
        raise CommandError(f"{path.parent}: no such folder; make it first")
