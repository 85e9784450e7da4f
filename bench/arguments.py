"""The arguments that scripts share: networks, threads, where rows go; presets, rows and seeds of a table."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

from bench.networks.made_images import CACHE
from bench.networks.trained import NETWORKS, ZOO
from bench.rows import RESULTS, ROOT

DATA = """labelled images for efficientnet_lite0: a folder CLASS/*.png or *.jpg, CLASS an index of ImageNet's classes (0
to 999) or a WordNet id (n01440764), or an .npz with x and y; brought to 224 x 224 pixels without keeping the aspect
ratio, so crop them first. Such rows say so and are in no table"""


def parser(description: str | None) -> ArgumentParser:
    made = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo", help="folder of trained networks")
    made.add_argument("--data", type=Path, help=DATA)
    made.add_argument("--networks", nargs="+", default=list(ZOO), choices=list(NETWORKS))
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, default=RESULTS)
    return made


def table_parser(description: str | None, *, presets: Iterable[str], rows: Iterable[str]) -> ArgumentParser:
    """The arguments of a bench that fills a table: presets down, rows of settings across, seeds."""
    made = parser(description)
    made.add_argument("--presets", nargs="+", default=list(presets))
    made.add_argument("--rows", nargs="+", default=list(rows), choices=list(rows))
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--images", type=int, help="evaluate on fewer")
    made.add_argument("--set", nargs="*", default=[], help="recipe settings for every row; such rows are in no table")
    made.add_argument("--cache", type=Path, default=CACHE, help="folder that keeps images made by `inverted`")
    made.add_argument("--again", action="store_true", help="also measure rows that are on file and current")
    return made
