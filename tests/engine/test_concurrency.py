"""One model from many threads, beside other models, and after a fork."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from leanconv import _core
from tests.engine.builder import Builder, pictures


def network() -> bytes:
    b = Builder(16)
    value = b.conv(b.input, 64)
    for _ in range(4):
        value = b.binary_conv(b.bits(value), 64)
    b.output(b.linear(b.global_avg_pool(value), 10), 2)
    return b.program().to_bytes()


def in_threads(count: int, work) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return errors


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_one_model_from_many_threads(threads):
    model = _core.Model(network(), threads, grain_ns=0)
    inputs = [pictures(16, 10 + i % 3, 9, batch=1 + i % 2 * 8, seed=i) for i in range(8)]
    single = _core.Model(network(), 1)
    want = [single.run([x])[0] for x in inputs]

    def work(i: int) -> None:
        for _ in range(30):
            np.testing.assert_array_equal(model.run([inputs[i]])[0], want[i])

    assert not in_threads(8, work)


def test_two_models_share_the_pool():
    data = network()
    models = [_core.Model(data, t, grain_ns=0) for t in (2, 3, 5)]
    x = pictures(16)
    want = models[0].run([x])[0]
    assert not in_threads(
        6, lambda i: [np.testing.assert_array_equal(models[i % 3].run([x])[0], want) for _ in range(40)]
    )


def test_more_threads_than_processors():
    x = pictures(16, 30, 30)
    want = _core.Model(network(), 1).run([x])[0]
    model = _core.Model(network(), 4 * _core.available_cores(), grain_ns=0)
    for _ in range(5):
        np.testing.assert_array_equal(model.run([x])[0], want)


def in_child(model, x, queue) -> None:
    queue.put(model.run([x])[0])


def test_after_a_fork_and_while_others_run():
    """The child's pool is its own, even when the parent forks in the middle of a run."""
    model = _core.Model(network(), 2, grain_ns=0)
    x = pictures(16, 20, 20)
    want = model.run([x])[0]  # workers exist now
    context = multiprocessing.get_context("fork")
    stop = threading.Event()
    others = [threading.Thread(target=lambda: [model.run([x]) for _ in iter(stop.is_set, True)]) for _ in range(2)]
    for t in others:
        t.start()
    try:
        for _ in range(5):
            queue = context.SimpleQueue()
            child = context.Process(target=in_child, args=(model, x, queue))
            child.start()
            child.join(60)
            assert child.exitcode == 0
            np.testing.assert_array_equal(queue.get(), want)
    finally:
        stop.set()
        for t in others:
            t.join()
    np.testing.assert_array_equal(model.run([x])[0], want)


def test_gil_is_released():
    """Python goes on in other threads while the engine computes."""
    b = Builder(64)
    b.output(b.binary_conv(b.bits(b.input), 64, (7, 7), padding=(3, 3, 3, 3)))
    model = _core.Model(b.program().to_bytes(), 1, "portable")
    x = pictures(64, 64, 64, batch=8)
    counted, running = [0], threading.Event()

    def count() -> None:
        running.set()
        while running.is_set():
            counted[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    running.wait()
    before = counted[0]
    model.run([x])
    after = counted[0]
    running.clear()
    counter.join()
    assert after - before > 100


def test_exit_while_workers_are_awake():
    code = (
        "import sys, threading, numpy as np; from leanconv import _core\n"
        "m = _core.Model(sys.stdin.buffer.read(), 3, grain_ns=0); x = np.zeros((1, 16, 20, 20), np.float32)\n"
        "t = threading.Thread(target=lambda: [m.run([x]) for _ in range(50)]); t.start(); m.run([x]); t.join()"
    )
    assert subprocess.run([sys.executable, "-c", code], input=network(), timeout=60).returncode == 0


def test_available_cores_honours_affinity():
    allowed = os.sched_getaffinity(0)
    assert 1 <= _core.available_cores() <= len(allowed)
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from leanconv import _core; print(_core.available_cores())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "1"
