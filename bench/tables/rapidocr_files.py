"""RapidOCR's three files: where they are, the ways in which they are made smaller, bytes and time beside float."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench.networks.text_images import lines, pages
from bench.tables.one_command import compress_file

FLOAT, OURS, GIVEN = "float", "ours", "ours, given 64 rendered images"
DYNAMIC, NOISE = "ONNX Runtime, dynamic", "ONNX Runtime, static on noise"
OTHER_SEED = 1000  # of images that are given: none that is read later
NUM_NOISE = 16  # images of noise: its ranges are the same with more
HALF = "0.5,0.5,0.5"  # mean and std of pixels in 0..1, as RapidOCR normalises them for all three


@dataclass(frozen=True)
class Part:
    """One of the files, the size it is compressed at and the size it is timed at."""

    file: str
    made_at: tuple[int, ...]
    timed_at: tuple[int, ...]


PARTS = {
    "det": Part("ch_PP-OCRv4_det_infer.onnx", (1, 3, 320, 320), (1, 3, 736, 736)),
    "cls": Part("ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192), (1, 3, 48, 192)),
    "rec": Part("ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 320), (1, 3, 48, 320)),
}


def originals() -> dict[str, Path]:
    """The files that RapidOCR comes with."""
    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None and spec.origin is not None
    return {name: Path(spec.origin).parent / "models" / part.file for name, part in PARTS.items()}


def settings_of(name: str, settings: Iterable[str]) -> list[str]:
    """Of one part: those of all, and its own, as `det:layers.x=keep`, without its name."""
    split = [setting.partition(":") for setting in settings]
    named = [(of, rest) if of in PARTS else (name, of + colon + rest) for of, colon, rest in split]
    return [setting for of, setting in named if of == name]


def given(name: str, target: Path, settings: Iterable[str], seed: int) -> None:
    """The one command, and a folder of text rendered as what is read is: nothing says what is written there."""
    from PIL import Image

    folder = target.with_name(f"images of {name}")
    folder.mkdir()
    made = (pages if name == "det" else lines)(64, seed=OTHER_SEED + seed)
    _, _, height, width = PARTS[name].made_at
    for number, (pixels, _) in enumerate(made):
        part = pixels[:height, :width] if name == "det" else pixels
        Image.fromarray(np.ascontiguousarray(part[:, :, ::-1])).save(folder / f"{number}.png")
    ours(name, target, settings, seed, "--images", str(folder))


def ours(name: str, target: Path, settings: Iterable[str], seed: int, *more: str) -> None:
    """The one command.

    Raises:
        ValueError: what it says.
    """
    words = ["--input", ",".join(map(str, PARTS[name].made_at)), "--mean", HALF, "--std", HALF]
    words += ["--seed", str(seed), "--estimate", "none", *more]
    words += [word for setting in settings for word in ("--set", setting)]
    try:
        compress_file(originals()[name], target, *words)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def dynamic(name: str, target: Path, settings: Iterable[str], seed: int) -> None:
    """Its dynamic quantizer, after its preprocessing."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(_prepared(name, target), target, per_channel=True, weight_type=QuantType.QUInt8)  # its kernel's


def on_noise(name: str, target: Path, settings: Iterable[str], seed: int) -> None:
    """Its static quantizer, per channel, after its preprocessing, on noise in the range of pixels."""
    from onnxruntime import InferenceSession, quantization

    ready, rng = _prepared(name, target), np.random.default_rng(seed)
    images = iter([rng.uniform(-1, 1, PARTS[name].made_at).astype(np.float32) for _ in range(NUM_NOISE)])
    read_by = InferenceSession(ready, providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            image = next(images, None)
            return None if image is None else {read_by: image}

    quantization.quantize_static(ready, target, Reader(), per_channel=True, weight_type=quantization.QuantType.QInt8)


def _prepared(name: str, target: Path) -> Path:
    """The file brought to an opset with a scale for each channel, and through ONNX Runtime's preprocessing."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    newer, ready = target.with_name("newer.onnx"), target.with_name("ready.onnx")
    model = onnx.load(originals()[name])
    if model.opset_import[0].version < 13:
        model = onnx.version_converter.convert_version(model, 13)
    onnx.save(model, newer)
    quant_pre_process(newer, ready, skip_symbolic_shape=True)
    return ready


WAYS: dict[str, Callable[[str, Path, Iterable[str], int], None]] = {
    OURS: ours, GIVEN: given, DYNAMIC: dynamic, NOISE: on_noise,
}  # fmt: skip
"""Each writes one part, of this name, to a file, with settings and a seed."""


def share_of_bytes(files: Mapping[str, Path]) -> tuple[float, dict[str, float]]:
    """Of the bytes of the float files: all three together, and each."""
    source = originals()
    mine, theirs = ({name: of[name].stat().st_size for name in PARTS} for of in (files, source))
    return sum(mine.values()) / sum(theirs.values()), {name: mine[name] / theirs[name] for name in PARTS}


def speeds(files: Mapping[str, Path], rounds: int) -> dict[str, float]:
    """Time of the float file over that of each, from runs that take turns."""
    from bench.tables.export import in_onnxruntime, interleaved

    found = {}
    for name, float_file in originals().items():
        image = np.random.default_rng(0).uniform(-1, 1, PARTS[name].timed_at).astype(np.float32)
        opened = {"float": in_onnxruntime(float_file), "file": in_onnxruntime(files[name])}
        times = interleaved(opened, image, rounds)
        found[name] = statistics.median(a / b for a, b in zip(times["float"], times["file"], strict=True))
    return found
