"""Libraries that the base install leaves out, and the extra of the package that brings each."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "train": ("torch", "timm", "torchvision", "accelerate", "yaml", "pydantic", "tensorboard", "sklearn"),
    "export": ("onnx", "onnxscript", "onnx_ir"),
    "bench": ("onnxruntime", "openvino"),
    "demo": ("matplotlib",),
}


class MissingExtraError(ImportError):
    """A command needs a library that is not installed; the text says what to install."""


def extra_of(module: str) -> str | None:
    """The extra that brings the library `module`, or None.

    >>> extra_of("torch.nn")
    'train'
    """
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def need(what: str, extra: str, *modules: str) -> None:
    """Refuse `what`, naming the extra to install, if one of `modules` is missing. Imports none of them.

    Raises MissingExtraError.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(f'{what} needs {", ".join(missing)}: pip install "leanconv[{extra}]"')
