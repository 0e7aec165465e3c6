"""Bi-Real ResNet-18 in Larq Compute Engine: obeys the commands of leanconv.bench.worker for `network.py --larq PYTHON`.

PYTHON is an interpreter of its own, 3.10 to 3.12 (the converter needs TensorFlow 2.16, that numpy below 2 and Keras 2):

    python3 -m venv larq
    larq/bin/pip install larq-compute-engine==0.16.0 larq==0.14.0 tensorflow==2.16.2 tf-keras==2.16.0

Nothing of leanconv is imported. Weights are random: they do not change the time. Padding is with ones, which Larq's
converter fuses; zeros would be slower. Both of its kernels are offered: the one that it takes by default, and
`use_indirect_bgemm`, which is several times faster on x86. Either must give what its reference kernel gives. XNNPACK is
left off, as by default: on one thread it changes little, on two it made the network slower.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

TOLERANCE = 1e-3  # of the outputs' standard deviation


def network(size: int) -> Any:
    """The Keras model: the layers of leanconv's bireal_resnet18."""
    import larq as lq
    import tensorflow as tf

    keras = tf.keras
    layers = keras.layers

    def norm(x: Any) -> Any:
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def half(x: Any, channels: int, stride: int) -> Any:
        shortcut = x
        if stride != 1:
            shortcut = layers.AvgPool2D(2, 2)(shortcut)
            shortcut = norm(layers.Conv2D(channels, 1, use_bias=False)(shortcut))
        y = lq.layers.QuantConv2D(
            channels,
            3,
            strides=stride,
            padding="same",
            pad_values=1,
            use_bias=False,
            input_quantizer=lq.quantizers.ApproxSign(),
            kernel_quantizer=lq.quantizers.MagnitudeAwareSign(),
            kernel_constraint=lq.constraints.WeightClip(1.3),
        )(x)
        return layers.add([norm(y), shortcut])

    pictures = keras.Input((size, size, 3))
    x = layers.ZeroPadding2D(3)(pictures)
    x = norm(layers.Conv2D(64, 7, strides=2, use_bias=False)(x))
    x = layers.ZeroPadding2D(1)(x)
    x = layers.MaxPool2D(3, 2)(x)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            x = half(x, channels, 2 if stage and not block else 1)
            x = half(x, channels, 1)
    x = layers.Dense(1000)(layers.GlobalAvgPool2D()(x))
    return keras.Model(pictures, x)


def timed(call: Callable[[], object], seconds: float, least: int) -> list[float]:
    """Milliseconds of each call after one that is not counted."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    """Obey the commands `load` (size, batch, threads, indirect) and `time` (seconds or calls) on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not be taken for an answer
    interpreter: Any = None
    pictures: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply: dict[str, Any]
            if command["do"] == "load":
                import larq_compute_engine as lce
                import numpy as np

                flatbuffer = lce.convert_keras_model(network(command["size"]))
                shape = (command["batch"], command["size"], command["size"], 3)
                pictures = np.random.default_rng(0).standard_normal(shape, np.float32)
                reference = lce.testing.Interpreter(flatbuffer, use_reference_bconv=True)
                expected = np.asarray(reference.predict(pictures))
                options = {"num_threads": command["threads"], "use_indirect_bgemm": command["indirect"]}
                interpreter = lce.testing.Interpreter(flatbuffer, **options)
                output = np.asarray(interpreter.predict(pictures))
                if output.shape != (command["batch"], 1000) or not np.isfinite(output).all():
                    raise ValueError(f"the network gave {output.shape} values, or some that are not finite")
                if not (difference := np.abs(output - expected).max() / expected.std()) < TOLERANCE:
                    raise ValueError(f"the network gave other values than the reference kernel: {difference:.2g}")
                reply = {"about": {"version": lce.__version__}, "bytes": len(flatbuffer)}
            else:
                started = time.process_time()
                calls = command.get("calls", 3)
                call = functools.partial(interpreter.predict, pictures)
                ms = timed(call, command.get("seconds", 0.0), calls)
                reply = {"ms": ms, "cpu": time.process_time() - started}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
