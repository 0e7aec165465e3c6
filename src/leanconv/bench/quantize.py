"""An int8 ONNX model from a float one, as onnxruntime's users make it. Needs onnx and onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

METHOD = (
    "onnxruntime static quantisation, QDQ: uint8 activations, per-channel int8 weights, min-max on the test pictures"
)


def quantize(source: Path, target: Path, pictures: np.ndarray, batch: int = 1) -> None:
    """Static QDQ quantisation with uint8 activations and per-channel int8 weights, calibrated on `pictures`.

    Args: `batch` is how many of them the model takes at a time.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = target.with_suffix(".folded.onnx")
    quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
    name = onnx.load(str(folded), load_external_data=False).graph.input[0].name

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest: Iterator[np.ndarray] = iter(np.split(pictures, len(pictures) // batch))

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self._rest, None)
            return None if picture is None else {name: picture}

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        quantize_static(
            str(folded),
            str(target),
            Pictures(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.root.setLevel(level)
        folded.unlink(missing_ok=True)
