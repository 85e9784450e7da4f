"""Files timed side by side: what is counted, and what is refused in one line."""

from __future__ import annotations

import json

import pytest

from datafree import Recipe, compress, export_onnx, save
from datafree.app.cli import main
from datafree.app.latency import BenchError, bench
from datafree.export import EXPORTERS
from datafree.export.onnx.exporter import _closed
from nets import NETS

pytest.importorskip("onnxruntime")
helper = pytest.importorskip("onnx").helper


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    model, inputs = NETS["residual"]()
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs)
    run.save(folder / "run")
    export_onnx(run, folder / "net.onnx")
    save(run, folder / "net.safetensors")
    return folder


def test_files_are_timed_in_turns(files):
    found = bench([files / "net.onnx", files / "net.safetensors"], turns=3, batch=2)
    assert [item.runtime for item in found] == ["ONNX Runtime", "PyTorch, simulated"]
    for item in found:
        assert 0 < item.low_ms <= item.median_ms <= item.high_ms
        assert (item.threads, item.batch, item.turns) == (1, 2, 3)
        assert item.images_per_second == pytest.approx(2000 / item.median_ms)
        assert item.compressed_bytes > 0 and item.peak_memory_bytes > 2**20
    assert found[0].speed == 1.0
    assert found[0].bytes == (files / "net.onnx").stat().st_size


@pytest.mark.slow
def test_the_command_shows_a_table(files, capsys):
    assert main(["bench", str(files / "net.onnx"), "--turns", "1"]) == 0
    shown = capsys.readouterr().out
    assert "net.onnx" in shown and "1.00x" in shown and "median of 1 turns" in shown


@pytest.mark.slow
def test_the_command_prints_json(files, capsys):
    assert main(["bench", str(files / "net.onnx"), "--turns", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["speed"] == 1.0


def test_export_writes_both_kinds_and_says_how_near(files, capsys, tmp_path):
    for name, said in (("a.onnx", "file against student"), ("a.safetensors", "of the float network's weights")):
        assert main(["export", str(files / "run"), str(tmp_path / name)]) == 0
        assert said in capsys.readouterr().out
        assert main(["export", str(files / "run"), str(tmp_path / name)]) == 2
        assert f"{name} exists; choose another name" in capsys.readouterr().err
        assert main(["export", str(files / "run"), str(tmp_path / name), "--force"]) == 0
    assert main(["export", str(files / "run"), str(tmp_path / "float.onnx"), "--float"]) == 0
    assert "student against float   inf dB" in capsys.readouterr().out
    for option, name in (("--int4", "b.safetensors"), ("--float", "b.safetensors"), ("--compress", "b.onnx")):
        assert main(["export", str(files / "run"), str(tmp_path / name), option]) == 2
        assert f"{option} is of " in capsys.readouterr().err
    assert main(["export", str(files / "run"), str(tmp_path / "a.tflite")]) == 2
    assert "ends in .tflite; write a .onnx or a .safetensors file" in capsys.readouterr().err


def test_a_file_that_cannot_be_timed_is_named(files, tmp_path):
    with pytest.raises(BenchError, match=r"nosuch.onnx is not a file; give .onnx or .safetensors files"):
        bench([tmp_path / "nosuch.onnx"])
    (tmp_path / "net.pt").write_bytes(b"x")
    with pytest.raises(BenchError, match=r"net.pt is not run here; give .onnx or .safetensors files"):
        bench([tmp_path / "net.pt"])


def test_open_sizes_are_asked_for(tmp_path):
    ends = [helper.make_tensor_value_info(name, 1, ("n", 3, "h", "w")) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 13)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=7)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BenchError, match=r"the input x is .*; say at which size, as in --input 1,3,224,224"):
        bench([tmp_path / "net.onnx"], turns=1)
    EXPORTERS["ONNX"].runtime.open(tmp_path / "net.onnx", 1, 2, (3, 8, 8))()


@pytest.mark.parametrize(
    "sides, size, shape",
    [
        (["n", 3, "h", "w"], (3, 8, 9), [2, 3, 8, 9]),
        (["n", "h", "w", 3], (3, 8, 9), [2, 8, 9, 3]),
        ([1, 3, None, None], (3, 8, 9), [1, 3, 8, 9]),
        (["n", 5], (3, 8, 9), [2, 5]),
        ([4, 3, 6, 7], (), [4, 3, 6, 7]),
    ],
)
def test_open_sides_are_closed(sides, size, shape):
    """Of images whose channels come last, too; sides that a file has are its own."""
    assert _closed("x", sides, 2, size) == shape


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".safetensors", marks=pytest.mark.slow)])
def test_half_a_file_is_named(files, tmp_path, suffix):
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes((files / f"net{suffix}").read_bytes()[:-100])
    with pytest.raises(BenchError, match=rf"cut{suffix} cannot be timed: .*"):
        bench([cut], turns=1)
