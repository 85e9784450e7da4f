"""Kill a compression again and again, at random moments, and compare what it ends with: python tests/killed.py 5 0

One process compresses a small network, whole. Then copies of it begin the same work on one folder and are killed
(SIGKILL), each after a random part of the time that the whole took; the last one is let run. Exit code 1 where a bit of
its student differs. Recipes, moments and networks are drawn from the seed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from datafree import Recipe, compress
from nets import NETS

MOVED = ["signal.kind=inverted", "signal.steps=60"]
KINDS = {
    "in sequence": [*MOVED, "solve.sequential=true"],
    "each layer by itself": [*MOVED, "solve.sequential=false"],
    "pruned": [*MOVED, "prune.sparsity=0.5"],
    "a budget": ["budget.mean_bits=4"],
    "distilled": [*MOVED, "distill.steps=52", "distill.batch=4"],
    "generated": ["signal.kind=adversarial", "signal.steps=60", "signal.warmup=2", "signal.batch=4"],
}


def main(kills: int, seed: int) -> int:
    torch.set_num_threads(1)  # forks share no threads
    dice = random.Random(seed)
    left = kills
    while left:
        kind, name, now = dice.choice(list(KINDS)), dice.choice(["residual", "chain"]), min(left, dice.randint(1, 5))
        if not _survives(kind, name, now, dice):
            sys.stderr.write(f"{kind}, {name}: other bits after {now} kills\n")
            return 1
        left -= now
    return 0


def _survives(kind: str, name: str, kills: int, dice: random.Random) -> bool:
    model, inputs = NETS[name]()
    recipe = Recipe.preset("w4a8").updated(["signal.images=8", *KINDS[kind]])
    start = time.perf_counter()
    whole = compress(model, recipe, inputs)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        for _ in range(kills):
            child = os.fork()
            if not child:
                compress(model, recipe, inputs, resume=work)
                os._exit(0)
            time.sleep(dice.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        again = compress(model, recipe, inputs, resume=work)
    kept = again.student.state_dict()
    return all(torch.equal(value, kept[key]) for key, value in whole.student.state_dict().items())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
