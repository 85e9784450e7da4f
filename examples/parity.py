"""What the examples of other runtimes share: a student to run, and how near their answer is to it."""

import sys
from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor

from datafree import Recipe, Run, compress, load_model
from datafree.demo import digits
from datafree.export.onnx.check import SAME_DB
from datafree.export.onnx.onnxruntime import agreement, run_module, sqnr
from datafree.recipe import Propagated
from datafree.signals import make_signal


def need(*packages: str) -> None:
    """End here, without an error, where a package is missing."""
    for package in packages:
        if find_spec(package) is None:
            print(f"skipped: {package} is not installed; pip install {package}")
            sys.exit(0)


def open_run(arguments: list[str], *settings: str) -> tuple[Run, tuple[Tensor, ...]]:
    """The run in a directory and procedural images, or the demo network with settings, and digits; (N, C, H, W)."""
    if not arguments:
        model, example = load_model("demo")
        return compress(model, Recipe.preset("w8a8").updated([*settings]), example), (digits("test")[0][:64],)
    run, signal = Run.load(arguments[0]), Propagated(images=32)
    return run, make_signal(run.teacher, run.stats, signal, seed=0, input_range=run.input_range).inputs


def compare(answer: Callable[..., object], run: Run, images: tuple[Tensor, ...]) -> int:
    """Print how near a backend's answer is to the student's; returns the exit code, 1 where it is another answer."""
    found, wanted = run_module(answer, images), run_module(run.student, images)
    near, noise, same = sqnr(found, wanted), sqnr(wanted, run_module(run.teacher, images)), agreement(found, wanted)
    classes = "no classes" if same is None else f"{same:.1f} % equal classes"
    print(f"backend against student {near:.1f} dB, {classes} ({len(found[0])} images); student against", end=" ")
    print(f"float {noise:.1f} dB")
    wrong = near <= min(noise, SAME_DB)
    print("the backend's answer is", "not the student's" if wrong else "the student's")
    return int(wrong)
