"""Write a student for LiteRT as a .tflite and run it: python examples/litert_run.py [RUN_DIR [FILE.tflite]]

The run is of `target: arm`. The converter's own quantizer leaves weights as float constants in front of quantize nodes
and biases as floats, and rounds both itself; so they are handed over, and come out as the student's integers.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from datafree import Run
from datafree import graph as g
from parity import compare, need, open_run

qd = torch.ops.quantized_decomposed
DEQUANTIZE, DEQUANTIZE_ROWS = qd.dequantize_per_tensor.default, qd.dequantize_per_channel.default
QUANTIZES = {DEQUANTIZE: qd.quantize_per_tensor.default, DEQUANTIZE_ROWS: qd.quantize_per_channel.default}


def for_litert(student: fx.GraphModule) -> fx.GraphModule:
    """The same function with stored integers as floats: weights are rounded again, to themselves, biases are floats."""
    net = g.duplicate(student)
    for node in [n for n in net.graph.nodes if n.target in QUANTIZES and n.args[0].op == "get_attr"]:
        values = [g.get_tensor(net, a.target) if isinstance(a, fx.Node) else a for a in node.args]
        with net.graph.inserting_before(node):
            floats = g.attribute(net, f"{node.name}_values", node.target(*values))
            if node.args[-1] is torch.int8:
                rounded = net.graph.call_function(QUANTIZES[node.target], (floats, *node.args[1:]))
                node.replace_input_with(node.args[0], rounded)
            else:
                node.replace_all_uses_with(floats)
    g.tidy(net)
    return net


def in_litert(path: Path) -> Callable[[Tensor], Tensor]:
    """A function that runs the file, integers in and out, an image at a time."""
    from ai_edge_litert.interpreter import Interpreter

    opened = Interpreter(str(path), num_threads=1)
    opened.allocate_tensors()
    [entry], [result] = opened.get_input_details(), opened.get_output_details()

    def answer(batch: Tensor) -> Tensor:
        found = []
        for image in torch.quantize_per_tensor(batch, *entry["quantization"], torch.qint8).int_repr().numpy():
            opened.set_tensor(entry["index"], image[None])
            opened.invoke()
            found.append(opened.get_tensor(result["index"]))
        scale, zero_point = result["quantization"]
        return (torch.from_numpy(np.concatenate(found)).float() - zero_point) * scale

    return answer


def write(run: Run, image: Tensor, path: Path) -> None:
    """Convert the student for one image at a time."""
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    static = QuantConfig(PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))
    litert_torch.convert(for_litert(run.student), (image[:1],), quant_config=static).export(str(path))


if __name__ == "__main__":
    need("litert_torch", "ai_edge_litert")
    run, images = open_run(sys.argv[1:2], "target=arm")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(scratch) / "net.tflite"
        write(run, images[0], path)
        sys.exit(compare(in_litert(path), run, images))
