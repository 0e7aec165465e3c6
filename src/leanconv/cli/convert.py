"""`leanconv compile` and `leanconv export`: one file from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from leanconv.cli.calibration import accuracy, check_calibration, read_calibration
from leanconv.cli.errors import CommandError
from leanconv.extras import need
from leanconv.shipped import weights


def compile_checkpoint(
    source: Path, output: Path, int8: bool = False, calibrate: list[str] | None = None, bf16: bool = False
) -> None:
    """Write the packed file of a checkpoint, or of a network whose weights ship, after the compiler has verified it
    against torch. `int8`: with its real-valued layers in int8, calibrated on pictures; `bf16`: then also with the maps
    between operators in bf16."""
    need("`leanconv compile`", "train", "torch", "timm")
    check_target(output, ".lconv")
    if calibrate and not int8:
        raise CommandError("--calibrate goes with --real-layers int8; fp32 layers need no pictures")
    if bf16 and not int8:
        raise CommandError("--real-maps bf16 goes with --real-layers int8")
    shipped = not source.is_file() and str(source) in weights()
    if not shipped:
        source.stat()  # a missing file is an error at once, before torch is imported
    if int8:
        check_calibration(calibrate or [])
    from leanconv.networks import from_checkpoint, from_shipped

    network = from_shipped(str(source)) if shipped else from_checkpoint(source)
    calibration = read_calibration(calibrate or [], network.rules) if int8 else None
    program, verification = network.compile(
        calibration=None if calibration is None else calibration.pictures, real_maps="bf16" if bf16 else "fp32"
    )
    size = program.save(output)
    print(verification)
    if calibration is not None and calibration.test is not None:
        assert verification is not None and verification.quantization is not None
        before, after = (accuracy(p, calibration.test) for p in (verification.quantization.before, program))
        kind = "int8 with bf16 maps" if bf16 else "int8"
        print(f"top-1 on {len(calibration.test)} test pictures: {before:.4f} in fp32, {after:.4f} in {kind}")
    if shipped:
        print(f"{output}  {size:,} bytes")
        return
    bytes_before = source.stat().st_size
    print(f"{output}  {size:,} bytes, {bytes_before / size:.1f} times smaller than {source} ({bytes_before:,} bytes)")


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
