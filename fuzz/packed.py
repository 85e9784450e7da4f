"""Packed files: `load`, of files that are sealed again after they were altered, since a checksum stops no one."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import zlib
from pathlib import Path

from fuzz import faults
from fuzz.harness import Target, fuzz, instrumented

with instrumented():
    from datafree.export.packed.packed import BLANK, GRAPH, SEAL, PackedError, load, save
    from fuzz.networks import run

KEEP = 0.1  # of the faults are not sealed again


def seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain", "squeezed"):
            save(run(), Path(folder) / name, compress=name == "squeezed")
        return [(Path(folder) / name).read_bytes() for name in ("plain", "squeezed")]


def read(data: bytes, folder: Path) -> object:
    path = folder / "net.safetensors"
    path.write_bytes(data)
    return load(path)


def fault(data: bytes, dice: random.Random) -> bytes:
    altered = _inside(data, dice) if dice.random() < 0.7 else faults.of_safetensors(data, dice)
    seal = SEAL.match(altered)
    if seal is None or dice.random() < KEEP:
        return altered
    blank = altered.replace(seal[2], BLANK, 1)
    return blank.replace(BLANK, hashlib.sha256(blank).hexdigest().encode(), 1)


def _inside(data: bytes, dice: random.Random) -> bytes:
    """Another graph or other codings, in a file that fits them."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        start, stop = header[GRAPH]["data_offsets"]
        body = data[8 + length :]
        text = zlib.decompress(body[start:stop])
        graph = zlib.compress(text + bytes(2**24) if dice.random() < 0.02 else faults.of_json(text, dice))
        if dice.random() < 0.3:
            header["__graph__"]["data_offsets"] = dice.choice(faults.VALUES)
        else:
            header[GRAPH] = {"dtype": "U8", "shape": [len(graph)], "data_offsets": [start, start + len(graph)]}
            for name, entry in header.items():
                if name not in (GRAPH, "__metadata__") and entry["data_offsets"][0] >= stop:
                    entry["data_offsets"] = [x + len(graph) - (stop - start) for x in entry["data_offsets"]]
        written = json.dumps(header, separators=(",", ":")).encode()
        return len(written).to_bytes(8, "little") + written + body[:start] + graph + body[stop:]
    except Exception:  # it was altered before
        return faults.of_safetensors(data, dice)


TARGET = Target("packed", seeds, read, (PackedError,), fault)

if __name__ == "__main__":
    fuzz(TARGET)
