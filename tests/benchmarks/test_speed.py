"""benchmarks/peak.py, layers.py, network.py measure and print; small networks, few rivals."""

from __future__ import annotations

import json

import pytest

from benchmarks import layers, network, peak
from leanconv.engine import isa_names


def test_peak_prints_what_it_writes(tmp_path, capsys):
    peak.main(["--seconds", "0.05", "--threads", "1", "2", "--json", str(tmp_path / "peak.json")])
    result = json.loads((tmp_path / "peak.json").read_text())
    text = capsys.readouterr().out
    assert peak.markdown(result) in text and "GMAC/s, 2 threads" in text
    assert [run["threads"] for run in result["runs"]] == [1, 2]
    for row in result["runs"][0]["arithmetic"]:
        assert f"| {row['name']} | {row['kind']} |" in text


def test_layers_of_a_small_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layers, "NETWORK", "bireal_digits")
    monkeypatch.setattr(layers, "SIZE", 8)
    monkeypatch.setattr(layers, "EXTRA", (layers.Layer(41, 41, 6), layers.Layer(8, 8, 6, kernel=1)))
    rivals = ["onnxruntime", "onnxruntime-int8", "torch-bf16"]
    options = ["--rounds", "1", "--batch", "2", "--rivals", ",".join(rivals), "--extra", "--json"]
    layers.main([*options, str(tmp_path / "layers.json")])
    result = json.loads((tmp_path / "layers.json").read_text())
    assert layers.markdown(result) in capsys.readouterr().out
    isas = [isa for isa in isa_names() if isa not in ("portable", "avx512vnni")] or ["portable"]
    assert result["isas"] == isas and set(result["about"]) == {"leanconv", *rivals} and result["batch"] == 2
    counted = [row for row in result["layers"] if row["count"]]
    assert [row["layer"] for row in result["layers"] if not row["count"]] == ["3x3, 41 @6", "1x1, 8 @6"]
    total = result["total"]
    assert total["count"] == sum(row["count"] for row in counted) == 6
    assert total["macs"] == sum(row["macs"] * row["count"] for row in counted)
    assert result["layers"][-1]["macs"] == 2 * 36 * 64
    for row in [*result["layers"], total]:
        assert list(row["leanconv"]) == isas and list(row["rivals"]) == rivals
        for isa, mine in row["leanconv"].items():
            assert mine["fastest_ms"] <= mine["ms"] and mine["share"] <= mine["fastest_share"]
            assert mine["share"] == pytest.approx(row["macs"] / result["peaks"][isa] / 1e6 / mine["ms"])
    for rival in rivals:
        parts = sum(row["count"] * row["rivals"][rival]["ms"] for row in counted)
        assert total["rivals"][rival]["ms"] == pytest.approx(parts)


@pytest.mark.parametrize(
    ("options", "message"), [(["--rivals", "torch:binary"], "real-valued"), (["--isa", "sse9"], "does not run sse9")]
)
def test_layers_refuse_what_makes_no_sense(options, message):
    with pytest.raises(SystemExit, match=message):
        layers.main(options)


def test_larq_is_for_one_network():
    with pytest.raises(SystemExit, match="--larq runs bireal_resnet18"):
        network.main(["bireal_digits", "--larq", "python"])


def test_a_whole_small_network(tmp_path, capsys):
    from leanconv.networks import from_name

    packed = tmp_path / "again.lconv"
    from_name("bireal_digits", num_classes=10, in_chans=1).compile(8, verify=False)[0].save(packed)
    options = ["bireal_digits", "--threads", "1", "2", "--rounds", "1", "--rivals", "onnxruntime-int8", "--beside"]
    options += ["resnet20_cifar", "--packed", str(packed), "--busy", "--calls", "40"]
    network.main([*options, "--json", str(tmp_path / "network.json")])
    result = json.loads((tmp_path / "network.json").read_text())
    text = capsys.readouterr().out
    assert network.markdown(result) in text and "again.lconv (fp32 real layers)" in text
    assert result["twin"] == "resnet_digits" and [run["threads"] for run in result["runs"]] == [1, 2]
    rows = result["runs"][0]["rows"]
    mine = [row for row in rows if network.ours_at(row, 1)]
    assert [row["note"] for row in mine] == ["", "bireal_digits_int8", "again"]
    assert [row["real_layers"] for row in mine] == ["fp32", "int8", "fp32"]
    assert mine[1]["bytes"] < mine[2]["bytes"] == packed.stat().st_size
    assert sum(network.ours_at(row, network.BATCH) for row in rows) == 3
    avx2 = [row["engine"] for row in rows if row["note"].startswith("AVX2")]
    assert avx2 == (["leanconv"] * 3 + ["openvino"] * 2 if "avx2" in isa_names() else [])
    assert result["checkpoint_bytes"] > 4 * packed.stat().st_size
    assert [entry["file"] for entry in result["loading"]] == ["engine", "bireal_digits_int8", "again"]
    assert [(entry["threads"], entry["calls"]) for entry in result["busy"]] == [(1, 40), (2, 40)] * 3
    assert all(entry[state]["longest_ms"] > 0 for entry in result["busy"] for state in ("quiet", "busy"))
    assert {row["bound"] for entry in result["profiles"] for row in entry["rows"]} >= {"binary"}


def test_a_packed_file_is_measured_as_it_is(tmp_path):
    from leanconv.networks import from_name

    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    packed = tmp_path / "one" / "digits.lconv"
    from_name("bireal_digits", num_classes=10, in_chans=1).compile(8, verify=False)[0].save(packed)
    study = network.Study(str(packed), None, [], [], [])
    assert study.packed == [packed]
    study.close()
    other = tmp_path / "two" / "digits.lconv"
    with pytest.raises(SystemExit, match="digits is the name of two files"):
        network.Study(str(packed), None, [other], [], [])
