"""What each target costs: the same preset for every runtime there is a row of facts for.

    python -m bench.tables.targets --networks resnet20_cifar10 mobilenetv1_025_imagenet --seeds 0

The student is measured, which rounds where and how the target's runtime does. Writes JSON lines
(bench/results/targets.jsonl) and bench/results/targets.md; rows there that current code made are not made again.
"""

from __future__ import annotations

from pathlib import Path

from bench import arguments
from bench.tables import markdown
from bench.tables.accuracy import Way, fill_table, written
from datafree.recipe import TARGETS

PRESETS = ("w8a8",)
WAYS = {name: Way((f"target={name}",)) for name in TARGETS}
NOTE = """Points of top-1 lost, ± standard error over images (paired), in brackets agreement with the float network in
percent. One preset, for every target. *onnxruntime* and *generic* have one student, in files of other forms. *openvino*
rounds no layer that is computed together with a sum; *tensorrt* neither, and has no zero_point, which costs tensors
that are never negative a bit; *arm* rounds all that is computed, the logits too, and has one scale a linear layer."""


def main() -> None:
    fill_table(arguments.table_parser(__doc__, presets=PRESETS, rows=WAYS).parse_args(), "targets", WAYS, page)


def page(folder: Path) -> str:
    """One table a network."""
    rows = written(folder, "targets")
    return markdown.page(NOTE, rows, markdown.full(rows, PRESETS, WAYS))


if __name__ == "__main__":
    main()
