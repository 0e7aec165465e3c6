import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leanconv.train import log


def row(step, kind="step", **values):
    return {"kind": kind, "epoch": 1, "step": step, **values}


def test_rows_are_written_and_read(tmp_path):
    with log.Log(tmp_path, 0) as written:
        written.write(row(1, train_loss=2.0))
        written.write(row(2, "epoch", top1=0.5))
    assert log.read(tmp_path / "log.jsonl") == written.rows
    assert written.epochs() == [row(2, "epoch", top1=0.5)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["step/train_loss", "epoch/top1"]
    assert [(e.step, e.value) for e in events.Scalars("epoch/top1")] == [(2, 0.5)]


def test_going_on_drops_what_will_be_done_again(tmp_path):
    with log.Log(tmp_path, 0) as first:
        for step in (1, 2, 3):
            first.write(row(step))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "st')  # a killed process
    with log.Log(tmp_path, 2) as second:
        assert [r["step"] for r in second.rows] == [1, 2]
        second.write(row(3, again=1))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [row(1), row(2), row(3, again=1)]


def test_other_processes_write_nothing(tmp_path):
    with log.Log(tmp_path, 0, writes=False) as quiet:
        quiet.write(row(1, "epoch"))
    assert quiet.epochs() == [row(1, "epoch")] and not list(tmp_path.iterdir())
