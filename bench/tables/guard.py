"""What `foldable` gains by keeping only scales that are predicted to help: the same presets with and without.

    python -m bench.tables.guard --networks resnet20_cifar10 mobilenetv2_tiny200

Layers are rounded to nearest, so that nothing makes up for a bad scale. Images are seen by evaluation only. Writes
JSON lines (bench/results/guard.jsonl) and bench/results/guard.md; rows there that current code made are not made again.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import arguments
from bench.tables import markdown
from bench.tables.accuracy import Way, fill_table, written
from datafree import pipeline

PRESETS = ("w8a8-tensor", "w4a8-tensor")
NEAREST = ("solve.method=nearest", "solve.sequential=false")
WAYS = {
    f"{signal}, {guard}": Way((f"signal.kind={signal}", *NEAREST))
    for signal in ("propagated", "gaussian")
    for guard in ("guarded", "all scales")
}
NOTE = """Points of top-1 lost, ± standard error over images (paired), in brackets agreement with the float network in
percent; one scale a tensor, `equalize: foldable`, layers rounded to nearest. *guarded*: as shipped, scales stay where
the predicted error falls. *all scales*: every scale of the formula is taken. Networks that clip everywhere (ReLU6) have
no such scales between their layers but those of linear bottlenecks. The paper's presets have no guard."""


@contextmanager
def unguarded():
    """`compress` that takes every scale."""
    guarded = pipeline.equalize_
    pipeline.equalize_ = partial(guarded, guard=False)
    try:
        yield
    finally:
        pipeline.equalize_ = guarded


def main() -> None:
    options = arguments.table_parser(__doc__, presets=PRESETS, rows=WAYS).parse_args()
    asked = list(options.rows)
    options.rows = [name for name in asked if name.endswith("guarded")]
    fill_table(options, "guard", WAYS, page)
    options.rows = [name for name in asked if name not in options.rows]
    with unguarded():
        fill_table(options, "guard", WAYS, page)


def page(folder: Path) -> str:
    """One table a network."""
    rows = written(folder, "guard")
    return markdown.page(NOTE, rows, markdown.full(rows, PRESETS, WAYS))


if __name__ == "__main__":
    main()
