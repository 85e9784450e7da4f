"""Run a student in ExecuTorch, in XNNPACK's int8 kernels: python examples/executorch_run.py [RUN_DIR]"""

import sys

import torch
from torch import fx

from datafree import graph as g
from parity import compare, need, open_run

qd, aten = torch.ops.quantized_decomposed, torch.ops.aten
LAYERS = aten.conv2d.default, aten.linear.default
QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default


def for_xnnpack(student: fx.GraphModule) -> fx.GraphModule:
    """The same function as XNNPACK reads it: activations are int8, each reader has a dequantize, biases are float."""
    net = g.duplicate(student)
    for node in sorted(net.graph.nodes, key=lambda n: n.target in LAYERS):  # layers see what was changed
        if node.target in LAYERS:
            after = next(iter(node.users))
            after = next(iter(after.users)) if after.target in (aten.relu.default, aten.hardtanh.default) else after
            for stored in node.args[2:3] if after.target is QUANTIZE else node.args[1:3]:  # a float layer, whole
                values = [g.get_tensor(net, a.target) if isinstance(a, fx.Node) else a for a in stored.args]
                with net.graph.inserting_before(node):
                    floats = stored.target(*values) if stored.args else g.get_tensor(net, stored.target)
                    node.replace_input_with(stored, g.attribute(net, f"{node.name}.{stored.name}", floats))
        elif node.args and node.args[-1] is torch.uint8:
            x, scale, zero, low, high, _ = node.args
            if node.target is QUANTIZE and high - low < 255:
                with net.graph.inserting_before(node):
                    x = net.graph.call_function(aten.hardtanh.default, (x, (low - zero) * scale, (high - zero) * scale))
            node.args = (x, scale, zero - 128, -128, 127, torch.int8)
            for user in list(node.users)[1:] if node.target is DEQUANTIZE else ():
                with net.graph.inserting_before(user):
                    user.replace_input_with(node, net.graph.call_function(DEQUANTIZE, node.args))
    g.tidy(net)
    return net


if __name__ == "__main__":
    need("executorch")
    import executorch.kernels.quantized  # noqa: F401  what XNNPACK leaves over
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    run, images = open_run(sys.argv[1:])
    exported = torch.export.export(for_xnnpack(run.student), tuple(x[:8] for x in images))
    # larger pieces fail in ExecuTorch 1.5 where a student multiplies between layers
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner(per_op_mode=True)])
    program = edge.to_executorch().buffer
    method = Runtime.get().load_program(program).load_method("forward")
    sys.exit(compare(lambda *batch: method.execute(batch), run, images))
