"""`leanconv bench`: what it runs, what it refuses, what it writes. No test looks at how long anything took."""

from __future__ import annotations

import json

import numpy as np
import pytest

from leanconv.bench.agreement import check
from leanconv.bench.coordinator import summarize, take_turns
from leanconv.bench.rivals import BenchError, Rival, parse_rivals
from leanconv.engine import isa_names

FLOAT = ["torch", "onnxruntime", "openvino"]
RIVALS = [
    *FLOAT,
    "torch-bf16",
    "onnxruntime-int8",
    "openvino-bf16",
    "openvino-int8",
    "torch:binary",
    "onnxruntime:binary",
]


def test_bench_a_file_alone(leanconv, packed):
    result = json.loads(leanconv("bench", packed, "--rounds", 2, "--json", "-").stdout)
    assert result["engine_ms"] > 0 and result["rivals_ms"] == {} and result["ratios"] == {}
    assert result["threads"] == 1 and result["size"] == [8, 8] and result["model"] == "bireal_digits"
    assert result["machine"]["cores"] >= 1 and result["engine_bytes"] == packed.stat().st_size


def test_bench_beside_every_rival(leanconv, checkpoint, tmp_path):
    path = tmp_path / "bench.json"
    text = leanconv("bench", checkpoint, "--rivals", ",".join(RIVALS), "--rounds", 1, "--json", path).stdout
    result = json.loads(path.read_text())
    assert list(result["rivals_ms"]) == RIVALS and all(name in text for name in RIVALS)
    for name in RIVALS:
        assert result["ratios"][name] == pytest.approx(result["rivals_ms"][name] / result["engine_ms"])
    for name in FLOAT:
        assert result["agreement"][name]["relative_difference"] < 1e-3
    for name in ("torch:binary", "onnxruntime:binary"):
        assert result["agreement"][name]["same_class"] == 1
    for name in ("onnxruntime-int8", "torch-bf16"):
        assert result["agreement"][name]["relative_difference"] > 0


def test_bench_the_twin_of_a_file_with_batch_threads_and_profile(leanconv, packed, tmp_path):
    path = tmp_path / "bench.json"
    text = leanconv(
        *("bench", packed, "--rivals", "torch", "--rounds", 1, "--batch", 3, "--threads", 2, "--profile"),
        *("--json", path),
    ).stdout
    result = json.loads(path.read_text())
    assert result["batch"] == 3 and result["threads"] == 2
    assert all(row["ms"] >= 0 and row["name"] in text for row in result["profile"])
    for row in result["profile"]:
        assert row["limit_ms"] > 0 and row["share"] == pytest.approx(row["limit_ms"] / row["ms"]), row
        assert (row["bound"] == "binary") <= (row["macs_binary"] > 0)
    assert result["peaks"]["threads"] == 2 and result["peaks"]["arithmetic"]
    assert "at the limits of this machine, measured in this run" in text


def test_refusals(error, packed, tmp_path):
    assert "unknown rival 'tensorflow'; known: torch, torch-bf16, onnxruntime" in error(
        "bench", packed, "--rivals", "tensorflow"
    )
    assert "give the checkpoint or the model's name" in error("bench", packed, "--rivals", "torch:binary")
    assert "did you mean 'bireal_resnet18'?" in error("bench", "bireal_resnet81")
    assert "No such file" in error("bench", tmp_path / "absent.lconv")
    assert "no such folder" in error("bench", packed, "--json", tmp_path / "absent" / "x.json")


def test_parse_rivals():
    assert [rival.name for rival in parse_rivals("torch, torch,openvino:binary,")] == ["torch", "openvino:binary"]
    for text in ("torch:float", "onnxruntime-int8:binary", "torch-bf16:binary", "onnxruntime-bf16", "torch,,x"):
        with pytest.raises(BenchError):
            parse_rivals(text)


def test_median_of_batches_resists_outliers():
    timing = summarize([[1.0, 1.0, 50.0], [2.0, 2.0, 2.0], [90.0, 90.0, 90.0]])
    assert timing.ms == 2.0 and timing.fastest_ms == 1.0 and timing.batches == 3 and timing.calls == 9


LOGITS = np.array([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]], np.float32)


def test_a_float_rival_that_computes_something_else_is_refused():
    check([Rival("onnxruntime")], {"leanconv": LOGITS, "onnxruntime": LOGITS + 1e-6}, LOGITS)
    with pytest.raises(BenchError, match="onnxruntime does not compute the float twin"):
        check([Rival("onnxruntime")], {"leanconv": LOGITS, "onnxruntime": LOGITS + 0.1}, LOGITS)
    with pytest.raises(BenchError, match="shape"):
        check([Rival("torch")], {"leanconv": LOGITS, "torch": LOGITS[:, :2]}, LOGITS)
    with pytest.raises(BenchError, match="not finite"):
        check([Rival("openvino-int8")], {"leanconv": LOGITS, "openvino-int8": LOGITS * np.nan}, LOGITS)


def test_a_binary_rival_of_another_class_is_refused():
    check([Rival("torch", True)], {"leanconv": LOGITS, "torch:binary": LOGITS + 0.3}, None)
    with pytest.raises(BenchError, match="disagree in class on 50%"):
        check([Rival("torch", True)], {"leanconv": LOGITS, "torch:binary": LOGITS[[0, 0]]}, None)


def test_an_int8_rival_is_reported_but_not_judged():
    report = check([Rival("openvino-int8")], {"leanconv": LOGITS, "openvino-int8": LOGITS + 0.5}, LOGITS)
    assert report["openvino-int8"]["largest_difference"] == pytest.approx(0.5)


def test_a_worker_that_stops_is_reported():
    from leanconv.bench.process import Worker

    worker = Worker("torch", 1)
    try:
        with pytest.raises(BenchError, match="torch: FileNotFoundError"):
            worker.ask(do="load", engine="torch", path="absent", threads=1, batch=1, input="absent.npy")
        worker._process.kill()
        with pytest.raises(BenchError, match="torch stopped"):
            worker.ask(do="time", seconds=0.01)
    finally:
        worker.close()


def test_a_worker_holds_several_networks_and_counts_calls(packed, tmp_path):
    from leanconv.bench.process import Worker

    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 1), np.uint8))
    worker = Worker("leanconv", 1)
    try:
        for isa in isa_names():
            held = worker.holding(isa)
            command = {"path": str(packed), "threads": 1, "batch": 2, "input": str(tmp_path / "x.npy"), "isa": isa}
            assert held.ask(do="load", engine="leanconv", **command)["about"]["isa"] == isa
            assert held.name == f"leanconv {isa}" and len(held.ask(do="time", calls=7)["ms"]) == 7
        profiles = worker.holding("portable").ask(do="profile", seconds=0.01)["profiles"]
        assert {row["kind"] for row in profiles[0]} >= {"input", "binary_conv", "output"}
        with pytest.raises(BenchError, match="no engine is loaded as 'absent'"):
            worker.holding("absent").ask(do="time", calls=1)
        assert worker.ask(do="peaks", seconds=0.02, threads=1)["peaks"]["arithmetic"]
    finally:
        worker.close()


def test_turns_are_fair():
    done: list[int] = []
    jobs = [lambda n=n: done.append(n) or 0.0 for n in range(3)]
    ticks: list[None] = []
    take_turns(jobs, 4, lambda: ticks.append(None))
    assert len(ticks) == 12 and all(sorted(done[i : i + 3]) == [0, 1, 2] for i in range(0, 12, 3))
    assert len({tuple(done[i : i + 3]) for i in range(0, 12, 3)}) > 1
