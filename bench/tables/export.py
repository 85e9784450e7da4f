"""Exported ONNX files: speed beside float and ONNX Runtime's own quantizer, and fidelity to the student.

    python -m bench.tables.export speed      # random weights at 224x224, w8a8; half of the channels too
    python -m bench.tables.export openvino   # the same in OpenVINO, beside NNCF (pip install openvino nncf)
    python -m bench.tables.export parity     # trained networks, all their images

Speed: one thread, batch 1, processor time, which other programs on the machine hardly change; rounds
interleave the files, so that a machine whose speed drifts drifts for all of them; ratios are taken round by round and
the median printed. Writes JSON lines to bench/results/export.jsonl.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import quantization as ort_quantization

from bench import arguments
from bench.networks.trained import NETWORKS, open_networks
from bench.rows import append_row
from datafree import Recipe, compress, load_model
from datafree.export.onnx.export import export_onnx
from datafree.export.onnx.onnxruntime import agreement, run_file, run_module, session, sqnr
from datafree.export.onnx.translate import translate
from datafree.signals.probes import dead_leaves

MODELS = ("timm:mobilenetv2_100", "torchvision:resnet18", "torchvision:resnet50")
PRESETS = ("w8a8", "w8a8-tensor", "w6a6", "w4a8")
CHEAP = ["signal.kind=propagated", "solve.sequential=false"]
FEW = [*CHEAP, "signal.images=4"]


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("what", choices=["speed", "openvino", "parity"])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--channels", type=float, help="speed: also remove channels until this share of MACs is gone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for row in parities(options) if options.what == "parity" else speeds(options):
        append_row(options.out / "export.jsonl", row)
        print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


# ---- speed


def speeds(options):
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            yield speed(name, Path(folder), options.rounds, options.channels, options.what)


def speed(name: str, folder: Path, rounds: int, channels: float | None, runtime: str) -> dict[str, object]:
    """Milliseconds of the float file, the runtime's own integer file and ours, and ratios."""
    torch.manual_seed(0)
    model, example = load_model(name)
    images = dead_leaves(4, height=224, width=224, generator=torch.Generator().manual_seed(0))
    run = compress(model, Recipe.preset("w8a8").updated(FEW), example)
    files = {"float": folder / "float.onnx", "theirs": folder / "theirs.onnx", "ours": folder / "ours.onnx"}
    onnx.save(translate(run.teacher, opset=21), files["float"])
    if runtime == "openvino":
        files["theirs"] = folder / "theirs.xml"
        quantize_as_nncf_does(files["float"], files["theirs"], images)
    else:
        quantize_as_onnxruntime_does(files["float"], files["theirs"], images)
    start = time.perf_counter()
    check = export_onnx(run, files["ours"], space_to_depth=runtime != "openvino")
    seconds = time.perf_counter() - start
    if channels:
        settings = [f"prune.sparsity={channels}", "prune.pattern=channels", "prune.scope=layer", "signal.kind=loader"]
        small = dead_leaves(64, height=64, width=64, generator=torch.Generator().manual_seed(0))
        recipe = Recipe.preset("w8a8").updated([*CHEAP, *settings])
        smaller = compress(model, recipe, example, images=(small,))
        files["smaller"] = folder / "smaller.onnx"
        export_onnx(smaller, files["smaller"], probes=images, space_to_depth=runtime != "openvino")
    opened = {k: in_openvino(path) if runtime == "openvino" else in_onnxruntime(path) for k, path in files.items()}
    times = interleaved(opened, images[:1].numpy(), rounds)
    ratio = lambda a, b: statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))  # noqa: E731
    row = {f"{k}_ms": 1e3 * statistics.median(v) for k, v in times.items()}
    row |= {"float/ours": ratio("float", "ours"), "theirs/ours": ratio("theirs", "ours")}
    if channels:
        row["float/smaller"] = ratio("float", "smaller")
        row["channels_left"], of = (sum(len(r.weight) for r in done.layers) for done in (smaller, run))
        row["channels_left"] /= of
    sizes = {f"{k}_bytes": sum(p.stat().st_size for p in folder.glob(f"{k}.*")) for k in files}
    ours = {"in_float": len(check.float_nodes), "export_seconds": seconds, "sqnr_db": check.sqnr_db}
    return {"model": name, "runtime": runtime, "rounds": rounds, **row, **sizes, **ours}


def quantize_as_onnxruntime_does(source: Path, target: Path, images: torch.Tensor) -> None:
    """Its static quantizer: QDQ, unsigned activations, signed weights per channel."""

    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Reader(ort_quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(images.split(1))

        def get_next(self):
            x = next(self.rows, None)
            return None if x is None else {name: x.numpy()}

    ort_quantization.quantize_static(
        source, target, Reader(), quant_format=ort_quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=ort_quantization.QuantType.QUInt8, weight_type=ort_quantization.QuantType.QInt8,
    )  # fmt: skip


def quantize_as_nncf_does(source: Path, target: Path, images: torch.Tensor) -> None:
    """Its post-training quantization of an OpenVINO model, with the settings it comes with."""
    import nncf  # pyright: ignore[reportMissingImports]
    import openvino  # pyright: ignore[reportMissingImports]

    model = openvino.convert_model(source)
    done = nncf.quantize(model, nncf.Dataset(images.split(1), lambda x: x.numpy()), subset_size=len(images))
    openvino.save_model(done, target, compress_to_fp16=False)


def in_onnxruntime(path: Path) -> Callable[[np.ndarray], object]:
    opened = session(path)
    name = opened.get_inputs()[0].name
    return lambda image: opened.run(None, {name: image})


def in_openvino(path: Path) -> Callable[[np.ndarray], object]:
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.compile_model(path, "CPU", settings)


def interleaved(opened: dict[str, Callable], image: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds of every file, round by round, after a warm-up."""
    times = {key: [] for key in opened}
    for number in range(rounds + 3):
        for key, run in opened.items():
            start = time.process_time()
            run(image)
            if number >= 3:
                times[key].append(time.process_time() - start)
    return times


# ---- fidelity


def parities(options):
    zoo = open_networks(options)
    torch.set_num_threads(1)
    for network in options.networks if zoo else ():
        model, (x, y) = zoo.load(network), zoo.images(network)
        count = NETWORKS[network]
        for preset in options.presets:
            yield {"network": network, "preset": preset, **parity(model, preset, x[:count], y[:count])}


def parity(model, preset: str, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
    """File against student and student against float, on labelled images."""
    run = compress(model, Recipe.preset(preset).updated(CHEAP), x[:1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        check = export_onnx(run, path)
        found = run_file(session(path), (x,))
    student, teacher = run_module(run.student, (x,)), run_module(run.teacher, (x,))
    top1 = [100 * float((v[0].argmax(1) == y).double().mean()) for v in (found, student)]
    return {
        "images": len(x), "file_db": sqnr(found, student), "student_db": sqnr(student, teacher),
        "agreement": agreement(found, student), "top1": top1[0], "student_top1": top1[1],
        "in_float": len(check.float_nodes), "bytes": check.bytes,
    }  # fmt: skip


if __name__ == "__main__":
    main()
