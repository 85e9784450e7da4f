"""The table of exporters: every row writes what its runtime runs; the command line offers whatever is in it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from datafree import Recipe, compress
from datafree.app.cli import main
from datafree.export import EXPORTERS, Exporter, Option, Written, exporter_for, exporters_by_suffix
from datafree.export.onnx.exporter import OnnxOptions, _counted, write_onnx
from datafree.export.onnx.optimized import NodeShare
from nets import NETS

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run():
    model, inputs = NETS["residual"]()
    return compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs)


@dataclass(frozen=True)
class TextOptions:
    head: Annotated[str, Option("first line.")] = "student"
    bits: Annotated[bool, Option("list the bits.")] = True


def write_text(run, path, options, *, force):
    lines = [options.head, *(f"{layer.name} {layer.bits}" for layer in run.layers if options.bits)]
    Path(path).write_text("\n".join(lines))
    return Written({"lines": str(len(lines))}, ("nothing runs it",), ("first is short",))


TEXT = Exporter(".txt", write_text, TextOptions)


@pytest.mark.parametrize("name", EXPORTERS)
def test_what_is_written_runs(run, name, tmp_path):
    exporter = EXPORTERS[name]
    path = tmp_path / f"net{exporter.suffix}"
    assert exporter_for(path) is exporter
    exporter.write(run, path, exporter.options(), force=False)
    with pytest.raises(ValueError, match="exists; choose another name"):
        exporter.write(run, path, exporter.options(), force=False)
    exporter.write(run, path, exporter.options(), force=True)
    run_once = exporter.runtime.open(path, 1, 2, None)
    answer = run_once()
    assert len(answer[0] if isinstance(answer, list) else answer) == 2  # images


def test_a_row_put_in_from_outside_is_offered_and_asked(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EXPORTERS, "text", TEXT)
    run.save(tmp_path / "run")
    main(["export", "--help"])
    out = capsys.readouterr().out
    assert "text: first line. [default: student]" in " ".join(out.split())
    assert "--bits / --no-bits" in out
    file = tmp_path / "net.txt"
    assert main(["export", str(tmp_path / "run"), str(file), "--head", "hello", "--no-bits"]) == 0
    shown = capsys.readouterr().out
    assert file.read_text() == "hello" and "nothing runs it" in shown and "lines" in shown and "short" not in shown
    assert main(["export", str(tmp_path / "run"), str(file), "--force", "--verbose"]) == 0
    assert "first is short" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), str(file), "--int4"]) == 2
    assert "--int4 is of ONNX files; leave it out, or write a .onnx file instead of" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "net.onnx"), "--no-bits"]) == 2
    assert "--no-bits is of text files; leave it out, or write a .txt file instead of" in capsys.readouterr().err
    assert main(["bench", str(file)]) == 2
    assert "net.txt is not run here; give .onnx or .safetensors files" in capsys.readouterr().err


def test_what_is_no_integer_kernel_is_said_in_two_lines_and_listed_by_verbose(run, tmp_path):
    written = write_onnx(run, tmp_path / "net.onnx", OnnxOptions(), force=False)
    assert written.findings["in float there"] == "nothing"
    assert re.fullmatch(r"1 \w+, .*: \d+\.\d % of the time", written.findings["moved or converted"])
    assert any(re.fullmatch(r".* of the time: QuantizeLinear .*, moves or converts", line) for line in written.details)
    nodes = [NodeShare(kind, "", "float", float(share)) for share, kind in enumerate("abcdefab")]
    assert _counted(nodes) == "2 b, 2 a, 1 f, 1 e, 2 more: 28.0 % of the time"


def test_two_exporters_of_one_suffix_are_refused(monkeypatch):
    monkeypatch.setitem(EXPORTERS, "mine", Exporter(".onnx", write_text))
    with pytest.raises(
        ValueError, match=r"exporter 'mine' writes \.onnx files, as another one does; give it another suffix"
    ):
        exporters_by_suffix()


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"net ends in nothing; write a \.onnx or a \.safetensors file"):
        exporter_for(Path("net"))
