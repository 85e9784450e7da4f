"""The command line: exit codes, one line for what is wrong, and figures that are those of the run."""

import contextlib
import gc
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from datafree.app import cli, latency, tables
from datafree.app.arguments import EXPORTED
from datafree.app.console import show_json
from datafree.app.lazy_commands import COMMANDS
from datafree.app.pixels import PIXELS, write_pixels
from datafree.app.sentences import activations_text, equalization_text, signal_text
from datafree.app.unfinished import Interrupted
from datafree.export import EXPORTERS
from datafree.models.load import Normalization
from datafree.run.record import Run, evaluate
from datafree.signals.moving import MatchingDivergedError
from datafree.solve.solve_layer import LayerError
from datafree.student.distill_images import DistillDivergedError

FACTORY = """
from collections import OrderedDict
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    parts = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6()
    names = "stem[/red]", "norm", "act", "body", "relu6"
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(OrderedDict([*zip(names, parts), ("head", head)]))
    model(torch.rand(64, 1, 8, 8))
    return model, torch.zeros(1, 1, 8, 8)

def overflowing():
    layers = [nn.Conv2d(1, 1, 3, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1e25)
    return nn.Sequential(*layers), torch.zeros(1, 1, 8, 8)
"""
FILE = "tiny_factory_of_cli_tests.py"
MODEL = "tiny_factory_of_cli_tests:net"
FEW = "signal.images=4"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A current directory with a factory in it; lines as wide as any fact, and files timed no longer than needed."""
    monkeypatch.setattr(latency, "TURN", 1e-3)
    (tmp_path / FILE).write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory at 8 bits and what `compress` printed; made once."""
    place = tmp_path_factory.mktemp("finished")
    (place / FILE).write_text(FACTORY)
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(place)
        patch.setenv("COLUMNS", "200")
        assert cli.main(["compress", MODEL, "--recipe", "w8a8", "--out", "out/net", "--set", FEW, "-v"]) == 0
    return place / "out/net", out.getvalue()


def call(capsys, *arguments):
    """Exit code, stdout, stderr of one command."""
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def facts(text):
    """Name and value of every row of the printed table."""
    return dict(re.findall(r"^ (\S+(?: \S+)*) {2,}(\S.*?) *$", text, re.MULTILINE))


def test_an_onnx_file_is_a_model(finished, capsys):
    """Out of one file into another; its sides are open, and the width of an image is asked for."""
    pytest.importorskip("onnx")
    code, out, _ = call(capsys, "export", finished[0], "float.onnx", "--float")
    assert code == 0, out
    arguments = ("compress", "float.onnx", "--recipe", "w8a8", "--set", FEW, "--estimate", "none", "--out", "small")
    code, out, err = call(capsys, *arguments, "--input", "1,1,8,8")
    assert code == 0, err
    assert facts(out)["model"].startswith("float.onnx sha256:")
    assert facts(out)["layers"] == "3 of 3 solved"
    code, _, err = call(capsys, *arguments, "--force", "--input", "1,2,8,8")
    assert code == 2 and "(1, 2, 8, 8) does not fit" in err


def test_one_command_to_a_file(finished, capsys):
    """From an ONNX file to a smaller one that keeps its names, a few lines that say what it is, and nothing else."""
    pytest.importorskip("onnx")
    call(capsys, "export", finished[0], "float.onnx", "--float")
    before = {*Path().iterdir()}
    arguments = ("compress", "float.onnx", "--recipe", "w8a8", "--set", FEW, "--input", "1,1,8,8")
    code, out, err = call(capsys, *arguments, "--out", "small.onnx")
    assert code == 0, err
    shown = facts(out)
    assert [*shown][:4] == ["size", "speed", "agreement", "file against student"] and len(shown) <= 8
    assert re.fullmatch(r"[\d.]+ times float: [\d.]+ -> [\d.]+ ms an image, \d+ threads?", shown["speed"])
    assert shown["advice"].startswith("the network is tiny")
    assert {*Path().iterdir()} - before == {Path("small.onnx")}
    code, out, err = call(capsys, *arguments, "--out", "small.onnx")
    assert (code, out) == (2, "") and "small.onnx exists; choose another --out, or --force to replace a file" in err
    code, out, err = call(capsys, *arguments, "--out", "float.onnx", "--force")
    assert (code, out) == (2, "") and "float.onnx is the network that is compressed; choose another --out" in err
    assert call(capsys, *arguments, "--out", "small.onnx", "--force", "--estimate", "none")[0] == 0


def test_one_command_from_python_code(capsys):
    """The float file beside it is written for the timing alone; a packed file is not timed."""
    pytest.importorskip("onnx")
    for out in ("net.onnx", "net.safetensors"):
        arguments = ("--recipe", "w8a8", "--set", FEW, "--estimate", "none", "--out", out)
        code, shown, err = call(capsys, "compress", MODEL, *arguments)
        assert code == 0, err
        assert ("speed" in facts(shown)) == (out == "net.onnx") and Path(out).is_file()


def test_a_target_is_a_setting_of_the_recipe(capsys):
    code, shown, err = call(
        capsys,
        "compress",
        MODEL,
        "--recipe",
        "w8a8",
        "--target",
        "arm",
        "--out",
        "arm",
        "--set",
        FEW,
        "--estimate",
        "none",
    )
    assert code == 0, err
    assert facts(shown)["recipe"] == f"w8a8 {FEW} target=arm"
    assert "target: arm" in Path("arm/recipe.yaml").read_text()


# What is wrong


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--recipe", "w5a9"],
            r"no preset 'w5a9'; did you mean w5a5\? Presets are w8a8, .*paper-prune70; or give a \.yaml file",
        ),
        (["--recipe", "no.yaml"], r"cannot read the recipe no\.yaml: No such file"),
        (["--set", "weights.bit=3"], r"weights\.bit: unknown key; allowed here are bits, per, symmetric"),
        (["--set", "weights"], r"'weights' has no '='; write it as weights\.bits=3"),
        (["--set", "layers.nosuch*=keep"], r"'nosuch\*' matches no layer; layers are stem\[/red\], body, head\.2"),
        (["--target", "coreml"], r"target: Input should be 'onnxruntime', .*or 'generic', got 'coreml'"),
        (["--target", "arm", "--set", "activations.bits=4"], r"target 'arm' takes activations of 8 bits, and activ"),
        (["--weights", "no.pth"], r"weights no\.pth are not a file"),
        (["--weights", "damaged.pth"], r"weights damaged\.pth \(7 bytes\) cannot be read as \.pth"),
        (["--pretrained"], r"pretrained=True is for timm: and torchvision: names"),
        (["--out", "tiny_factory_of_cli_tests.py/run"], r"nothing can be written into .*; choose another --out"),
        (["--out", "."], r"exists and is not a run directory; choose another --out"),
        (["--input", "1,3,h"], r"'1,3,h' is not a shape; write 1,3,224,224"),
        (["--input", "1,-3,8,8"], r"'1,-3,8,8' is not a shape; write 1,3,224,224"),
        (["--mean", "0.5"], r"mean and std go together: give both, or neither"),
        (["--mean", "0,0,0", "--std", "1,1,1"], r"do not fit the network's 1 input channels; give one number for each"),
        (["--mean", "0", "--std", "0"], r"mean \(0\.0,\) and std \(0\.0,\) do not fit .* and std above 0"),
        (["--workers", "0"], r"'--workers'.*1.*; see datafree compress --help"),
        (["--nosuch"], r"No such option: --nosuch.*; see datafree compress --help"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "says",
)
def test_wrong_input_is_one_line_and_writes_nothing(arguments, message, capsys):
    Path("damaged.pth").write_bytes(b"garbage")
    before = sorted(Path().iterdir())
    code, out, err = call(capsys, "compress", MODEL, "--out", "run", *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"error: .*{message}.*\n", err), err
    assert "Traceback" not in err
    assert [p for p in sorted(Path().iterdir()) if p.name != "__pycache__"] == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["compress"], "Missing argument 'MODEL'; see datafree compress --help"),
        (["compress", MODEL], "Missing option '--out'; see datafree compress --help"),
        (["compress", "resnet18", "--out", "run"], "unknown model 'resnet18'"),
        (["inspect", "tiny_factory_of_cli_tests:nett"], 'write "tiny_factory_of_cli_tests:net"'),
        (["evaluate", "nosuch", "--data", "."], "nosuch is not a run directory"),
        (["nosuch"], "No such command 'nosuch'"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "says",
)
def test_wrong_command_is_one_line(arguments, message, capsys):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Missing option '--data'"),
        (["--data", "no.npz"], "images no.npz do not exist"),
        (["--data", "x.npz"], "x is float32 (2, 3, 8, 8)"),
        (["--data", "x.npz", "--mean", "0.5"], "mean and std go together"),
        (["--data", "x.npz", "--mean", "a,b"], "'a,b' is not a list of numbers"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "says",
)
def test_data_that_do_not_fit(arguments, message, finished, capsys):
    np.savez("x.npz", x=np.zeros((2, 3, 8, 8), np.float32), y=np.zeros(2, int))
    code, out, err = call(capsys, "evaluate", finished[0], *arguments)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


def test_another_run_is_kept_without_force(finished, capsys):
    shutil.copytree(finished[0], "run")
    before = Path("run/summary.json").read_bytes()
    code, _, err = call(capsys, "compress", MODEL, "--out", "run")
    assert (code, err) == (2, "error: run holds another run; choose another --out, or --force to replace it\n")
    assert Path("run/summary.json").read_bytes() == before
    assert call(capsys, "compress", MODEL, "--out", "run", "--set", FEW, "--force")[0] == 0
    assert Run.load("run").recipe.weights.bits == 4


def test_failed_run_exits_with_1_and_writes_nothing(capsys):
    code, out, err = call(capsys, "compress", "tiny_factory_of_cli_tests:overflowing", "--out", "run")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: 1: .*not finite.*\n", err), err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "error, code, message",
    [
        (ValueError("a\nb"), 2, "a\nb"),
        (MatchingDivergedError("making images: the loss is inf"), 1, "making images: the loss is inf"),
        (DistillDivergedError("distillation diverges"), 1, "distillation diverges"),
        (Interrupted("nothing was written"), 130, "interrupted; nothing was written"),
        (LayerError("conv: singular"), 1, "conv: singular"),
        (KeyError("x"), 1, "KeyError: 'x' (not foreseen; --debug shows where)"),
    ],
)
def test_kind_of_error_decides_the_exit_code(error, code, message):
    assert cli._explain(error) == (code, message)


def test_debug_shows_the_traceback(capsys):
    code, _, err = call(capsys, "compress", MODEL, "--out", "run", "--recipe", "w5a9", "--debug")
    assert code == 2
    assert err.startswith("Traceback") and err.splitlines()[-1].startswith("error: there is no preset")


# What is shown


def test_table_holds_the_figures_of_the_summary(finished):
    path, out = finished
    done, shown = Run.load(path), facts(out)
    s = done.summary
    errors = sorted(layer.error_db for layer in done.layers)
    assert shown["recipe"] == f"w8a8 {FEW}"
    assert shown["seed"] == "0"
    assert shown["signal"] == signal_text(s.signal, s.input_range)
    assert shown["input range"] == str(s.input_range)
    assert shown["layers"] == f"{s.num_quantized} of {s.num_layers} solved" == "3 of 3 solved"
    assert shown["weights"] == "8 bits in 3 layers"
    assert shown["activations"] == activations_text(s.activations)
    assert shown["equalization"] == equalization_text(s.equalization)
    assert shown["size"].startswith(f"{s.bytes} B, {100 * s.bytes / s.float_bytes:.1f} % of ")
    macs = f"{s.macs / 1000:.2f} k"
    assert s.macs == s.float_macs and shown["multiply-adds"] == f"{macs} for one image, 100.0 % of {macs}"
    assert f" {100 * s.bit_operations / s.float_bit_operations:.1f} % of " in shown["bit operations"]
    assert shown["predicted SQNR"].startswith(f"worst {errors[0]:.1f} dB")
    assert f"median {errors[1]:.1f} dB of 3 layers" in shown["predicted SQNR"]
    assert shown["time"] == f"{s.seconds:.1f} s"
    assert shown["peak memory"] == f"{tables.num_bytes(s.peak_memory_bytes)}, whole process"


def test_verbose_lists_every_layer_by_its_own_name(finished):
    path, out = finished
    for layer in Run.load(path).layers:
        row = (
            rf"{re.escape(layer.name)} +{len(layer.weight)} +\d+ +8 +0\.0 % +{layer.error_db:.1f} +{layer.seconds:.2f} "
        )
        assert re.search(row, out), out
    assert "stem[/red]" in out


def test_evaluate_shows_what_evaluate_returns(finished, capsys):
    path, _ = finished
    done = Run.load(path)
    x = torch.rand(150, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = done.teacher(x).argmax(1)
    y[:30] = (y[:30] + 1) % 4  # the float network is right on 80 %
    np.savez("data.npz", x=x.numpy(), y=y.numpy())
    code, out, err = call(capsys, "evaluate", path, "--data", "data.npz")
    found, shown = evaluate(done, zip(x.split(100), y.split(100), strict=True)), facts(out)
    assert (code, err) == (0, "")
    assert "on 150 images" in out
    assert shown["top-1, student"] == f"{found.top1:.2f} ± {found.top1_error:.2f} %"
    assert shown["top-1, float"] == "80.00 %"
    assert shown["lost"] == f"{found.lost:.2f} ± {found.lost_error:.2f} points"
    assert shown["agreement"].startswith(f"{found.agreement:.2f} % of images")
    assert shown["SQNR"].startswith(f"worst {min(found.layer_sqnr_db.values()):.1f} dB")


def save_grey(path):
    """Twelve 8-bit images and their labels."""
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(12) % 4)
    return torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.arange(12) % 4


def test_published_normalisation_is_the_default_of_evaluate(finished, capsys):
    shutil.copytree(finished[0], "run")
    x, y = save_grey("grey.npz")
    plain = call(capsys, "evaluate", "run", "--data", "grey.npz")
    assert "not normalised (see --mean)" in facts(plain[1])["pixels"]
    write_pixels(Path("run"), Normalization((0.5,), (0.25,), "timm pretrained_cfg"))
    shown = facts(call(capsys, "evaluate", "run", "--data", "grey.npz")[1])
    assert shown["pixels"].startswith("8-bit ones from 0 to 1, less 0.5, divided by 0.25 (timm pretrained_cfg);")
    found = evaluate(Run.load("run"), [((x - 0.5) / 0.25, y)])
    assert shown["agreement"].startswith(f"{found.agreement:.2f} %")
    given = facts(call(capsys, "evaluate", "run", "--data", "grey.npz", "--mean", "0", "--std", "1")[1])
    assert "less 0, divided by 1 (--mean, --std)" in given["pixels"]


def test_normalisation_given_to_compress_is_used_and_kept(capsys):
    few = ("--recipe", "w8a8", "--set", FEW, "--estimate", "none", "--out", "run")
    code, out, err = call(capsys, "compress", MODEL, *few, "--mean", "0.5", "--std", "0.25")
    assert code == 0, err
    assert facts(out)["input range"] == "mean -0.204, std 0.904 (--mean, --std)"
    save_grey("grey.npz")
    shown = facts(call(capsys, "evaluate", "run", "--data", "grey.npz")[1])
    assert "less 0.5, divided by 0.25 (--mean, --std)" in shown["pixels"]


def test_published_normalisation_of_other_channels_is_not_used(finished, capsys):
    shutil.copytree(finished[0], "run")
    save_grey("grey.npz")
    write_pixels(Path("run"), Normalization((0.5,) * 3, (0.25,) * 3, "timm pretrained_cfg"))
    assert "not normalised" in facts(call(capsys, "evaluate", "run", "--data", "grey.npz")[1])["pixels"]


def test_damaged_normalisation_is_an_error(finished, capsys):
    shutil.copytree(finished[0], "run")
    save_grey("grey.npz")
    Path("run", PIXELS).write_text("{}")
    code, _, err = call(capsys, "evaluate", "run", "--data", "grey.npz")
    assert code == 2 and "pixels.json is damaged" in err and err.count("\n") == 1


def test_a_network_of_ones_own_has_no_published_normalisation(finished):
    assert not (finished[0] / PIXELS).exists()


@pytest.mark.slow
def test_inspect_warns_of_layers_that_will_lose_channels(capsys):
    for equalize, warned in (("off", True), ("foldable", False)):
        code, out, _ = call(capsys, "inspect", "demo", "--recipe", "w8a8-tensor", "--set", f"equalize={equalize}")
        assert code == 0
        assert bool(re.search(r"warning: \S+: rounding its weights will leave about", out)) == warned


def test_inspect_shows_every_mode_of_equalization(capsys):
    code, out, err = call(capsys, "inspect", MODEL, "--set", FEW, "-v")
    shown = facts(out)
    assert (code, err) == (0, "")
    assert re.match(r"\d+ % of 3 layers", shown["if free"]) and re.match(r"\d+ % of 3 layers", shown["if foldable"])
    assert shown["equalization"] == "depthwise, of these:"
    assert shown["if depthwise"].startswith("inputs of 1 depthwise layers")
    assert shown["weights"] == "8 bits in 2 layers, 4 bits in 1 layer"
    assert shown["BatchNorm"] == "1 fold into a layer, 0 stay as affine operators"
    assert re.search(r"body +8x1x3x3 +4, 8 +input +stem\[/red\]", out), out


def test_layers_left_in_float_are_grouped_by_reason(capsys):
    settings = ("--set", FEW, "--set", "layers.*=keep", "--recipe", "w8a8")
    code, out, _ = call(capsys, "compress", MODEL, "--out", "run", *settings)
    assert code == 0
    assert "3 x kept in float: the recipe says so (stem[/red], body, head.2)" in out
    assert facts(out)["weights"] == "float in 3 layers"
    assert facts(out)["predicted SQNR"].startswith("of no layer")


def test_names_beyond_three_are_counted():
    assert tables.some(["a", "b", "c"]) == "a, b, c"
    assert tables.some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (12345, "12.3 k"), (999_600, "1.00 M"), (3 * 10**9, "3.00 G")],
)
def test_numbers_have_three_digits(number, text):
    assert tables.count(number) == text


def test_help_lists_every_command(capsys):
    code, out, err = call(capsys, "--help")
    assert (code, err) == (0, "")
    assert re.findall(r"^  (\w+)  +[A-Z]", out, re.MULTILINE) == [
        "demo",
        "compress",
        "inspect",
        "evaluate",
        "export",
        "images",
        "report",
        "sweep",
        "bench",
    ]
    assert call(capsys)[1] == out


def test_version_is_that_of_the_package(capsys):
    assert call(capsys, "--version")[:2] == (0, f"datafree {metadata.version('datafree')}\n")


def test_console_command_without_a_terminal():
    """The exit code of the process, and plain text, in an ASCII locale."""
    code = "import sys; from datafree.app.cli import main; sys.exit(main())"
    root = str(Path(cli.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code, "grün"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No such command 'gr?n'") and done.stderr.count("\n") == 1


# Help, completion, JSON, silence


def in_a_process(code, *arguments, **environment):
    root = str(Path(cli.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


def test_nobody_waits_for_torch_to_read_the_help():
    """In one process: what one command loads stays loaded."""
    told = [["--help"], ["--version"], ["nosuch"], *([name, "--help"] for name in COMMANDS if name != "export")]
    code = f"""
import sys
from datafree.app.cli import main
for arguments in {told}:
    main(arguments)
    print(arguments, 'torch' in sys.modules)
"""
    done = in_a_process(code)
    assert [line for line in done.stdout.splitlines() if line.endswith(("True", "False"))] == [
        f"{arguments} False" for arguments in told
    ], done.stderr


def test_the_help_names_every_kind_of_file():
    assert ", ".join(f"NAME{row.suffix} ({name})" for name, row in EXPORTERS.items()) == EXPORTED


def test_commands_leave_the_collection_of_garbage_as_it_was(capsys):
    for collected in (True, False):
        (gc.enable if collected else gc.disable)()
        try:
            assert call(capsys, "inspect", "nosuch.module:net")[0] == 2
            assert gc.isenabled() == collected
        finally:
            gc.enable()


@pytest.mark.parametrize("columns", ["80", "120"])
def test_every_command_has_an_example_and_no_sentence_is_cut(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for command in ([], *([name] for name in COMMANDS)):
        code, out, err = call(capsys, *command, "--help")
        assert (code, err) == (0, "")
        assert re.search(rf"^  Examples?:\n(    datafree {' '.join(command)}.*\n)+\Z", out, re.MULTILINE), out
        assert not [line for line in out.splitlines()[1:] if line.endswith("...")]
        assert max(map(len, out.splitlines())) <= int(columns)
    assert all(said.line in call(capsys, "--help")[1] for said in COMMANDS.values())


@pytest.mark.parametrize(
    "typed, offered",
    [("datafree comp", "compress"), ("datafree compress --rec", "--recipe"), ("datafree export --fl", "--float")],
)
def test_words_are_completed(typed, offered, capsys, monkeypatch):
    variables = {"_DATAFREE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="0"):
        cli.main([])
    assert capsys.readouterr().out.split() == [offered]


def test_a_command_mistyped_is_answered_with_the_nearest(capsys):
    assert "Did you mean 'compress'?; see datafree --help" in call(capsys, "comprss")[2]


def test_tables_are_there_as_json(finished, capsys):
    few = ("--recipe", "w8a8", "--set", FEW)
    _, out, _ = call(capsys, "inspect", MODEL, *few, "--json")
    found = json.loads(out)
    assert [layer["name"] for layer in found["layers"]] == ["stem[/red]", "body", "head.2"]
    assert found["model"].startswith(MODEL) and found["recipe"] == f"w8a8 {FEW}"
    _, out, _ = call(capsys, "compress", MODEL, *few, "--out", "run", "--estimate", "none", "--json")
    found, done = json.loads(out), Run.load("run")
    assert found["summary"]["bytes"] == done.summary.bytes
    assert [layer["bits"] for layer in found["layers"]] == [8, 8, 8]
    x, y = save_grey("grey.npz")
    _, out, _ = call(capsys, "evaluate", "run", "--data", "grey.npz", "--json")
    assert json.loads(out)["agreement"] == evaluate(done, [(x, y)]).agreement
    _, out, _ = call(capsys, "export", "run", "net.safetensors", "--json")
    assert json.loads(out)["bytes"] == Path("net.safetensors").stat().st_size


def test_numbers_that_json_has_not_are_null(capsys):
    show_json({"worst": float("inf"), "of": (1, float("nan"), None, True, "x", Path("y"))})
    assert json.loads(capsys.readouterr().out) == {"worst": None, "of": [1, None, None, True, "x", "y"]}


def test_quiet_prints_errors_alone(capsys):
    few = ("--recipe", "w8a8", "--set", FEW, "--estimate", "none", "--out", "run")
    assert call(capsys, "compress", MODEL, *few, "-q") == (0, "", "")
    assert Run.load("run").layers
    code, out, err = call(capsys, "compress", MODEL, *few, "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert call(capsys, "inspect", MODEL)[1] != "", "the next command is not quiet"


def test_no_color_is_honoured(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert coloured.search(call(capsys, "inspect", MODEL)[1])
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(call(capsys, "inspect", MODEL)[1])


@pytest.mark.parametrize("flag", ["--threads", "--workers"])
def test_no_more_threads_or_processes_than_cpus(flag, capsys):
    code, out, err = call(capsys, "compress", MODEL, "--out", "run", flag, "100000")
    assert (code, out) == (2, "")
    assert re.search(rf"'{flag}': 100000 is more than the \d+ CPUs that are free to use here; give 1 to \d+", err)


def test_the_command_is_kept_beside_its_run(finished):
    kept = (finished[0] / "command.txt").read_text()
    assert kept == f"datafree compress {MODEL} --recipe w8a8 --out out/net --set {FEW} -v\n"
