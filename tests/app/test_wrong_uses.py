"""Some seventy ways to use the command line wrongly: one clear line, the right exit code, nothing left behind."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from datafree.app import cli

NETS = """
import torch
from torch import nn
from torch.nn import functional as F

EXAMPLE = torch.zeros(1, 1, 8, 8)
number = 3

def net():
    torch.manual_seed(0)
    body = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, 3)), EXAMPLE

def other(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)), EXAMPLE

def nan():
    model = net()[0]
    model[0].weight.data[0] = float("nan")
    return model, EXAMPLE

def infinite():
    model = net()[0]
    model[5].bias.data[0] = float("inf")
    return model, EXAMPLE

def overflows():
    layers = [nn.Conv2d(1, 1, 3, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1e25)
    return nn.Sequential(*layers), EXAMPLE

def no_layers(): return nn.Sequential(nn.ReLU(), nn.Flatten()), EXAMPLE
def empty(): return nn.Sequential(), EXAMPLE
def raises(): raise RuntimeError("no such checkpoint")
def text(): return "resnet"
def nothing(): return None
def needs(width): return net()
def bad_example(): return net()[0], [1, 8, 8]
def flat_example(): return net()[0], torch.zeros(8)
def other_channels(): return net()[0], torch.zeros(1, 3, 8, 8)

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x

def branches(): return Branches(), EXAMPLE

class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.qkv, self.head = nn.Conv2d(1, 8, 4, stride=4), nn.Linear(8, 24), nn.Linear(8, 3)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))[:, 0])

def vit(): return VisionTransformer(), EXAMPLE
"""
NOTE = re.compile(r"[a-z ]+, \d+ s")  # how far it is, of a slow computer
FEW = "--set signal.images=2 --estimate none"
COMPRESS = "compress wrong_nets:net --recipe w8a8 --out new"


def setting(name, value, pattern):
    return (f"{COMPRESS} --set {name}={value}", 2, pattern)


WRONG = [
    # the command
    ("comprss", 2, r"No such command 'comprss'. Did you mean 'compress'\?"),
    ("compress", 2, r"Missing argument 'MODEL'"),
    ("compress wrong_nets:net", 2, r"Missing option '--out'"),
    (f"{COMPRESS} --recipee w8a8", 2, r"No such option: --recipee.* --recipe"),
    (f"{COMPRESS} more", 2, r"unexpected extra argument"),
    (f"{COMPRESS} --seed one", 2, r"'--seed'.*valid integer"),
    # the model
    ("inspect resnet18", 2, r"unknown model 'resnet18'; allowed are .* write \"timm:resnet18\""),
    ("inspect timm:resnet19", 2, r"timm has no model 'resnet19'; write \"timm:resnet1"),
    ("inspect torchvision:resnet19", 2, r"torchvision has no model 'resnet19'; write \"torchvision:resnet1"),
    ("inspect nosuch_module:net", 2, r"import nosuch_module raised ModuleNotFoundError.* importable from"),
    ("inspect wrong_nets:nett", 2, r"write \"wrong_nets:net\""),
    ("inspect wrong_nets.py:net", 2, r"is a path; write \"wrong_nets:net\""),
    ("inspect wrong_nets:number", 2, r"wrong_nets\.number is int; it must be a function"),
    ("inspect wrong_nets:raises", 2, r"the factory, called with no arguments, raised RuntimeError: no such checkpoint"),
    ("inspect wrong_nets:needs", 2, r"raised TypeError: needs\(\) missing 1 required"),
    ("inspect wrong_nets:text", 2, r"the factory returned str; return nn\.Module"),
    ("inspect wrong_nets:nothing", 2, r"the factory returned NoneType; return nn\.Module"),
    ("inspect wrong_nets:bad_example", 2, r"the factory's example is list; return a tensor"),
    ("inspect wrong_nets:flat_example", 2, r"the factory's example is \(8,\); return a tensor"),
    ("inspect wrong_nets:other_channels", 2, r"to have 1 channels, but got 3 channels"),
    ("inspect wrong_nets:no_layers", 2, r"no layer that can be compressed"),
    ("compress wrong_nets:no_layers --out new", 2, r"no layer that can be compressed"),
    ("compress wrong_nets:empty --out new", 2, r"no layer that can be compressed"),
    ("inspect wrong_nets:branches", 2, r"must be free of data-dependent Python branches"),
    ("compress wrong_nets:vit --out new.onnx", 2, r"cannot be written to ONNX"),
    ("inspect wrong_nets:nan", 2, r"0\.weight holds 9 NaN of 36 values"),
    ("compress wrong_nets:infinite --out new", 2, r"5\.bias holds 1 inf of 3 values"),
    (f"compress wrong_nets:overflows --out new {FEW}", 1, r"not finite"),
    ("inspect net.pt2", 2, r"loading an exported program can run code"),
    ("inspect weights.pth", 2, r"is not read as a network"),
    # an ONNX file as the model
    ("inspect no.onnx", 2, r"there is no file no\.onnx; give the path of an \.onnx file"),
    ("inspect truncated.onnx --input 1,1,8,8", 2, r"truncated\.onnx is not an ONNX file, or is cut off"),
    ("inspect text.onnx --input 1,1,8,8", 2, r"text\.onnx is not an ONNX file, or is cut off"),
    ("inspect float.onnx --input 1,2,8,8", 2, r"\(1, 2, 8, 8\) does not fit"),
    ("inspect small.onnx --input 1,1,8,8", 2, r"quantized already .*; give the float network"),
    ("inspect float.onnx --input 1,1,8,8 --weights weights.safetensors", 2, r"holds its own weights"),
    # weights
    ("inspect wrong_nets:net --weights no.pth", 2, r"weights no\.pth are not a file"),
    ("inspect wrong_nets:net --weights .", 2, r"weights \. are not a file"),
    (
        "inspect wrong_nets:net --weights other.safetensors",
        2,
        r"other\.safetensors do not fit .* give the file saved from this very network",
    ),
    (
        "inspect wrong_nets:net --weights pickled.pth",
        2,
        r"hold code \(pathlib\.[\w.]+\), not tensors alone, and are not opened",
    ),
    ("inspect wrong_nets:net --weights damaged.pth", 2, r"damaged\.pth \(7 bytes\) cannot be read"),
    ("inspect wrong_nets:net --weights net.txt", 2, r"weights net\.txt are \.txt; give \.safetensors, \.pth or \.pt"),
    ("inspect wrong_nets:net --weights weights.safetensors --pretrained", 2, r"exclude each other"),
    ("inspect wrong_nets:net --pretrained", 2, r"is for timm: and torchvision: names"),
    # the recipe
    (f"{COMPRESS} --recipe w8a9", 2, r"there is no preset 'w8a9'; did you mean w8a8\? Presets are"),
    (f"{COMPRESS} --recipe no.yaml", 2, r"cannot read the recipe no\.yaml"),
    (f"{COMPRESS} --recipe broken.yaml", 2, r"broken\.yaml is not YAML: .* line 1"),
    setting("weights", "", r"weights: Input should be a valid dictionary"),
    setting("weights.bits", "9", r"weights\.bits: Input should be less than or equal to 8, got 9"),
    setting("weights.bits", "four", r"weights\.bits: Input should be a valid integer"),
    setting("weights.bit", "4", r"unknown key; allowed here are bits"),
    setting("solve.method", "gptqq", r"solve\.method: allowed are .*'gptq'.*, got 'gptqq'"),
    setting("layers.nosuch", "keep", r"matches no layer; layers are 0, 5"),
    setting("prune.sparsity", "1.5", r"prune\.sparsity: Input should be less than 1, got 1\.5"),
    setting("budget.bytes", "1", r"bytes 1 cannot be met; the least is bytes \d+"),
    (f"{COMPRESS} --set weights.bits", 2, r"'weights\.bits' has no '='; write it as weights\.bits=3"),
    (f"{COMPRESS} --target coreml", 2, r"target: Input should be 'onnxruntime'"),
    # how it runs, and where to
    (f"{COMPRESS} --threads -1", 2, r"'--threads'"),
    (f"{COMPRESS} --threads 100000", 2, r"is more than the \d+ CPUs"),
    (f"{COMPRESS} --workers 0", 2, r"'--workers'"),
    (f"{COMPRESS} --pool spark", 2, r"'--pool'.* 'processes', 'ray'"),
    (f"{COMPRESS} --address here:6379", 2, r"--address here:6379 is of a Ray cluster; add --pool ray"),
    (f"{COMPRESS} --device tpu {FEW} --recipe w4a8", 2, r"device 'tpu' cannot be used"),
    (f"{COMPRESS} --input 1,1,h", 2, r"'1,1,h' is not a shape; write 1,3,224,224"),
    (f"{COMPRESS} --input 1,-1,8,8", 2, r"is not a shape; write 1,3,224,224"),
    (f"{COMPRESS} --input 8,8", 2, r"cannot be captured with input \(2, 8\)"),
    (f"{COMPRESS} --mean 0.5", 2, r"mean and std go together"),
    (f"{COMPRESS} --mean 0 --std 0", 2, r"std above 0"),
    (f"{COMPRESS} --mean a --std 1", 2, r"'a' is not a list of numbers; write 0\.485,0\.456,0\.406"),
    (f"{COMPRESS} --mean nan --std 1", 2, r"'nan' is not a list of numbers"),
    ("compress wrong_nets:net --out full", 2, r"full exists and is not a run directory; choose another --out"),
    ("compress wrong_nets:net --out run", 2, r"run holds another run; .*--force to replace it"),
    ("compress wrong_nets:net --out small.onnx", 2, r"small\.onnx exists; choose another --out, or --force"),
    (
        "compress wrong_nets:net --out net.txt/new",
        2,
        r"nothing can be written into net\.txt|nothing can be written into",
    ),
    (
        "compress wrong_nets:net --out new.tflite",
        2,
        r"new\.tflite ends in \.tflite; write a \.onnx or a \.safetensors file",
    ),
    (f"{COMPRESS} --images nosuch", 2, r"images nosuch are no folder, \.npy or \.npz"),
    (f"{COMPRESS} --images empty", 2, r"empty holds no run .*give a folder that does"),
    (f"{COMPRESS} --images three_channels.npy", 2, r"with 3 channels; the network takes 1; transpose or convert x"),
    (f"{COMPRESS} --images nan.npy", 2, r"hold 256 of 256 values that are NaN or inf"),
    # the demo
    ("demo faces", 2, r"'faces' is not one of 'photographs', 'digits'"),
    ("demo --out lite0.tflite", 2, r"the demo writes an \.onnx file, not lite0\.tflite"),
    ("demo --out small.onnx", 2, r"small\.onnx exists; choose another --out, or --force"),
    ("demo digits --out digits.onnx", 2, r"leave --recipe and --out out"),
    ("demo --recipe w8a9", 2, r"there is no preset 'w8a9'"),
    # a run directory
    ("evaluate nosuch --data x.npz", 2, r"nosuch is not a run directory"),
    ("evaluate full --data x.npz", 2, r"full is not a run directory"),
    ("evaluate small.onnx --data x.npz", 2, r"small\.onnx is not a run directory"),
    (
        "evaluate no_weights --data x.npz",
        2,
        r"no_weights is damaged: .* student\.safetensors; compress again|student\.safetensors",
    ),
    ("evaluate cut_short --data x.npz", 2, r"cut_short is damaged: .*; compress again"),
    ("export damaged net.onnx", 2, r"damaged is damaged: .{1,200}; compress again"),
    ("images run --out new", 2, r"that run keeps no pictures"),
    # labelled images
    ("evaluate run", 2, r"Missing option '--data'"),
    ("evaluate run --data nosuch.npz", 2, r"images nosuch\.npz do not exist"),
    ("evaluate run --data empty", 2, r"empty holds no images; expected empty/CLASS"),
    ("evaluate run --data net.txt", 2, r"net\.txt"),
    ("evaluate run --data empty.npz", 2, r"empty\.npz holds the arrays none; expected x and y"),
    ("evaluate run --data only_x.npz", 2, r"only_x\.npz holds the arrays x; expected x and y"),
    ("evaluate run --data damaged.npz", 2, r"damaged\.npz cannot be read"),
    ("evaluate run --data three_channels.npz", 2, r"with 3 channels; the network takes 1; transpose or convert x"),
    ("evaluate run --data far_labels.npz", 2, r"label 900 is outside of the network's 3 classes; check the labels"),
    ("evaluate run --data x.npz --mean 0.5", 2, r"mean and std go together"),
    ("evaluate run --data x.npz --mean 0 --std 0", 2, r"std"),
    # files
    ("export run net.tflite", 2, r"net\.tflite ends in \.tflite; write a \.onnx or a \.safetensors file"),
    ("export run small.onnx", 2, r"small\.onnx exists; .*--force"),
    ("export run net.safetensors --int4", 2, r"--int4 is of ONNX files; leave it out"),
    ("export run net.onnx --opset 3", 2, r"opset 3 is not one that is written"),
    ("bench", 2, r"Missing argument 'FILE"),
    ("bench nosuch.onnx", 2, r"nosuch\.onnx is not a file"),
    ("bench net.txt", 2, r"net\.txt is not run here"),
    ("bench float.onnx --turns 0", 2, r"'--turns'"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A current directory with everything that is named above, right or damaged; made once, never written to again."""
    pytest.importorskip("onnxruntime")
    place = tmp_path_factory.mktemp("wrong")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(place)
        Path("wrong_nets.py").write_text(NETS)
        for folder in ("full", "empty"):
            Path(folder).mkdir()
        Path("full/notes.txt").write_text("mine")
        few = [*shlex.split(FEW), "--recipe", "w8a8"]
        assert cli.main(["compress", "wrong_nets:net", "--out", "run", *few]) == 0
        assert cli.main(["export", "run", "small.onnx"]) == 0
        assert cli.main(["export", "run", "float.onnx", "--float"]) == 0
        _weights()
        _images()
        _runs()
        Path("truncated.onnx").write_bytes(Path("float.onnx").read_bytes()[:-200])
        for name in ("net.txt", "text.onnx", "net.pt2", "broken.yaml"):
            Path(name).write_text("weights: {bits: [4}\n")
    return place


def _weights():
    state = {"0.weight": torch.zeros(4, 1, 3, 3)}
    safetensors.torch.save_file(state, "other.safetensors")
    safetensors.torch.save_file(state, "weights.safetensors")
    torch.save(state, "weights.pth")
    torch.save({"0.weight": Path("a class that is no tensor")}, "pickled.pth")
    Path("damaged.pth").write_bytes(b"garbage")


def _images():
    x, y = np.zeros((4, 1, 8, 8), np.float32), np.arange(4) % 3
    np.savez("x.npz", x=x, y=y)
    np.savez("only_x.npz", x=x)
    np.savez("empty.npz")
    np.savez("far_labels.npz", x=x, y=y + 900)
    np.savez("three_channels.npz", x=np.zeros((4, 3, 8, 8), np.float32), y=y)
    np.save("three_channels.npy", np.zeros((4, 3, 8, 8), np.float32))
    np.save("nan.npy", x * np.nan)
    Path("damaged.npz").write_bytes(Path("x.npz").read_bytes()[:-100])


def _runs():
    """Run directories that lack something."""
    for name in ("no_weights", "cut_short", "damaged"):
        shutil.copytree("run", name)
    Path("no_weights/student.safetensors").unlink()
    whole = Path("cut_short/student.safetensors")
    whole.write_bytes(whole.read_bytes()[:-50])
    summary = Path("damaged/summary.json")
    summary.write_text(json.dumps({"nothing": "here"}))


def everything(place):
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("line, code, pattern", WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_use_is_one_clear_line(line, code, pattern, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = everything(place)
    found = cli.main(shlex.split(line))
    out, err = capsys.readouterr()
    assert everything(place) == before
    assert (found, out) == (code, ""), err
    errors = [said for said in err.splitlines() if not NOTE.match(said)]  # how far a slow computer is
    assert len(errors) == 1 and re.fullmatch(f"error: .*({pattern}).*", errors[0]), err
    assert "not foreseen" not in err


def test_a_process_says_one_line_too(place):
    """What torch logs goes around sys.stderr."""
    root = str(Path(cli.__file__).parents[2])
    code = "import sys; from datafree.app.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "inspect", "wrong_nets:branches"]
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line[:6] for line in done.stderr.splitlines() if not NOTE.match(line)] == ["error:"], done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_before_the_work(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    tmp_path.chmod(0o500)
    assert cli.main(["compress", "wrong_nets:net", "--out", str(tmp_path / "new")]) == 2
    assert f"nothing can be written into {tmp_path}; choose another --out" in capsys.readouterr().err


def test_there_are_some_seventy():
    assert len({line for line, *_ in WRONG}) == len(WRONG) >= 70
