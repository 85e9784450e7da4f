"""Write every table of the pages from the rows on file; nothing is measured.

    python -m bench.tables.render            # results; READMEs and docs between <!-- zoo table --> and <!-- end -->
    python -m bench.tables.render --check    # write nothing; exit code 1 and names where a page is not as the rows say

A block or page whose bench has no rows on file is left as it is.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.rows import OLD, ROOT, mark
from bench.tables import (
    ablation,
    budget,
    choosing,
    claim,
    coverage,
    digits,
    export_pages,
    file_peers,
    folding,
    guard,
    markdown,
    memory,
    methods,
    onnx_files,
    packed_bytes,
    paper,
    paper_pages,
    peers,
    prune,
    rapidocr,
    row_times,
    scale,
    targets,
    zoo,
)
from bench.tables.accuracy import Row, written

RESULT_PAGES: dict[str, Callable[[Path], str]] = {
    "zoo": zoo.page,
    "prune": prune.page,
    "budget": budget.page,
    "claim": claim.page,
    "methods": methods.page,
    "peers": peers.page,
    "file_peers": file_peers.page,
    "ablation": ablation.page,
    "guard": guard.page,
    "folding": folding.page,
    "rapidocr": rapidocr.page,
    "onnx_files": onnx_files.page,
    "coverage": coverage.page,
    "memory": memory.page,
    "targets": targets.page,
    "paper": lambda folder: paper_pages.page(paper.written(folder / "paper.jsonl"), folder),
}
BLOCKS: dict[str, tuple[str, Callable[[Path], str]]] = {  # marker -> bench, text
    "zoo table": ("zoo", zoo.block),
    "prune table": ("prune", prune.block),
    "budget figures": ("budget", budget.block),
    "ablation table": ("ablation", ablation.block),
    "paper claims": ("paper", lambda folder: of_paper(paper_pages.claims_block, folder)),
    "paper cost": ("paper", lambda folder: of_paper(paper_pages.cost_block, folder)),
    "paper bits": ("paper", lambda folder: of_paper(paper_pages.bits_block, folder)),
    "paper combination": ("paper", lambda folder: of_paper(paper_pages.combination_block, folder)),
    "speed table": ("export", export_pages.onnxruntime_block),
    "openvino table": ("export", export_pages.openvino_block),
    "parity table": ("export", export_pages.parity_block),
    "packed table": ("packed_bytes", packed_bytes.block),
    "slim table": ("prune", prune.slim_block),
    "digits table": ("digits", digits.block),
    "row times": ("zoo", row_times.block),
    "estimate table": ("estimate", export_pages.estimate_block),
    "scale tables": ("scale", scale.block),
    "choosing table": ("zoo", choosing.block),
    "first paragraph": ("zoo", lambda folder: first_paragraph(written(folder, "zoo"))),
    "lite0 table": ("zoo", lambda folder: leading_table(written(folder, "zoo") + written(folder, "prune"))),
}
LEADING = "efficientnet_lite0"
PRESETS = {  # of the table that README leads with
    "w8a8": "8 bits", "w8a8-tensor": "8 bits, one scale a layer", "w4a8": "weights of 4 bits",
    "w4a4": "everything at 4 bits", "prune50": "half of the weights zero",
}  # fmt: skip
CLAIMS = {"w8a8-tensor": "with 8 bits and one scale a layer", "w4a8": "with weights of 4 bits"}
BLOCK = re.compile(r"^<!-- (?P<name>[\w ]+) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    differ = [(path, text) for path, text in pages(ROOT) if not path.exists() or text != path.read_text()]
    for path, text in differ:
        print(path.relative_to(ROOT))
        if not options.check:
            path.write_text(text)
    sys.exit(1 if options.check and differ else 0)


def pages(root: Path) -> Iterator[tuple[Path, str]]:
    """Every page with tables, and what it should hold."""
    results = root / "bench" / "results"
    for name, made in RESULT_PAGES.items():
        if (results / f"{name}.jsonl").exists():
            yield results / f"{name}.md", made(results)
    for path in [root / "README.md", root / "bench" / "README.md", *sorted((root / "docs").glob("*.md"))]:
        yield path, filled(path.read_text(), results)


def filled(page: str, results: Path) -> str:
    """The page with its blocks made anew.

    Raises:
        ValueError: a marker that is none.
    """

    def block(found: re.Match[str]) -> str:
        if found["name"] not in BLOCKS:
            raise ValueError(f"there is no block <!-- {found['name']} -->; blocks are {', '.join(BLOCKS)}")
        bench, made = BLOCKS[found["name"]]
        if not (results / f"{bench}.jsonl").exists():
            return found[0]
        return f"<!-- {found['name']} -->\n{made(results)}<!-- end -->"

    return BLOCK.sub(block, page)


def undated(page: str) -> str:
    """A page without what changes whenever code does: marks of old rows, and the line that names commits."""
    lines = [re.sub(r"Rows of commit .*|† made by older .*", "", line) for line in page.splitlines()]
    return "\n".join(line.replace(f" {OLD}", "").rstrip() for line in lines)


def of_paper(block: Callable[[list[paper.Row], Path], str], folder: Path) -> str:
    """A block made of the rows of paper.py."""
    return block(paper.written(folder / "paper.jsonl"), folder)


def first_paragraph(rows: list[Row]) -> str:
    """What README claims first: points of top-1 lost on the network that anyone can repeat it with."""
    told = []
    for preset, words in CLAIMS.items():
        plain, own = (markdown.select(rows, LEADING, preset, name) for name in ("plain rounding", "ours"))
        if plain and own:
            lost, ours = (f"{markdown.mean(cell):.1f}" for cell in (plain, own))
            told.append(f"{words} (`{preset}`) plain rounding loses {lost} points and `datafree` {ours}")
    first = next(r for r in rows if r.network == LEADING)
    found = f"On EfficientNet-Lite0, which has {first.float_top1:.1f} % top-1 on {first.num_images} photographs:"
    return found + "\n" + ",\n".join(told) + ".\n"


def leading_table(rows: list[Row]) -> str:
    """One row a preset on the network that anyone can repeat it with: what is lost, and what is left of the bytes."""
    lines = ["| preset | | plain rounding loses | `datafree` loses | same class as float | weights' bytes |"]
    lines.append("|---|---|---|---|---|---|")
    for preset, words in PRESETS.items():
        plain, own = (markdown.select(rows, LEADING, preset, name) for name in ("plain rounding", "ours"))
        if not own:
            continue
        agreement, size = (100 * sum(values) / len(own) for values in ([r.agreement / 100 for r in own],
                                                                       [r.bytes_ratio for r in own]))  # fmt: skip
        lost = [f"{markdown.mean(cell):.1f}{mark(cell)}" if cell else "-" for cell in (plain, own)]
        lines.append(f"| `{preset}` | {words} | {' | '.join(lost)} | {agreement:.0f} % | {size:.0f} % |")
    note = "Points of top-1. *Plain rounding*: the same bits, ranges from smallest to largest value, nothing else done."
    return "\n".join([*lines, "", note, ""])


if __name__ == "__main__":
    main()
