"""The student alone in one file, as small as its weights really are; `docs/format.md` says it byte by byte."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import atomic_write, inflated, most_bytes
from datafree.export.packed.coding import DTYPES, Coding, decode, encode
from datafree.messages import LineError, brief
from datafree.run import Run, graph_from_json, graph_to_json, tensors_of

VERSION = 1
KEY, GRAPH, WHOLE = "datafree.packed", "__graph__", "__file__"
SEAL = re.compile(rb'.{8}\{"__metadata__":\{"datafree\.packed":"version (\d+), sha256 ([0-9a-f]{64})"', re.DOTALL)
MOST_TEXT = 2**24  # of a graph, which has some 220 bytes for each node
BLANK = b"0" * 64  # in place of the checksum while it is computed
PICKLES = (b"PK", b"\x80")  # what torch.save writes: a zip archive, once a bare pickle
DAMAGE = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError, MemoryError,
    SyntaxError, zlib.error, SafetensorError,
)  # fmt: skip


class PackedError(LineError):
    """A file that `load` does not read, or a place where `save` does not write."""


def save(run: Run, path: str | Path, *, compress: bool = False, force: bool = False) -> None:
    """Write the student alone to one .safetensors file, whole or not at all.

    Integer weights take their real width, zeros a bit mask or gaps, whichever is smaller. What follows from the rest
    is left out: zero points, and the scales of biases.

    Args:
        run: what `compress` returned.
        path: of the file; folders on the way are made.
        compress: also squeeze the whole with zlib: some 5 to 10 % less where weights are integers.
        force: replace a file that is there.

    Raises:
        PackedError: there is such a file already, or it cannot be written; then nothing is left behind.
    """
    path = Path(path)
    if path.is_dir():
        raise PackedError(f"{path} is a directory; give the name of a file, as {path / 'net.safetensors'}")
    if path.exists() and not force:
        raise PackedError(f"{path} exists; choose another name, or force=True (--force) to replace it")
    content = _pack(run.student, aligned=compress)
    try:
        with atomic_write(path) as place:
            place.write_bytes(_squeezed(content) if compress else content)
    except OSError as error:
        told = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = told.strerror or type(told).__name__
        raise PackedError(
            f"{path} cannot be written ({reason.lower()}) and nothing is left behind; free some space or choose "
            "another place"
        ) from None


def load(path: str | Path) -> fx.GraphModule:
    """Read a student that `save` wrote: the same tensors and outputs bit for bit, the same layer names.

    Nothing in the file is executed: operators are looked up by name among PyTorch's own, tensors are bytes.

    Raises:
        PackedError: not such a file (a pickle is never opened), of another version, cut short or altered.
    """
    path = Path(path)
    if not path.is_file():
        why = "is a directory; Run.load reads a run" if path.is_dir() else f"is not a file (looked from {Path.cwd()})"
        raise PackedError(f"{path} {why}; give one that datafree.save wrote")
    try:
        content = path.read_bytes()
        return _unpack(_opened(content), most_bytes(len(content)))
    except PackedError as error:
        raise PackedError(f"{path} {error}") from None
    except OSError as error:
        raise PackedError(f"{path} cannot be read ({error.strerror}); look at its permissions and its disk") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise PackedError(f"{path} is damaged: {type(error).__name__}: {reason}; write it again") from None


# ---- the student and its tensors


def _pack(student: fx.GraphModule, *, aligned: bool) -> bytes:
    """The file of a student, not squeezed."""
    tensors = tensors_of(student)
    products = _products(student, tensors)
    stored, records = {}, {}
    for path in (path for path in tensors if path not in products):
        coding, data = _coded(tensors[path], aligned=aligned)
        if coding is not None:
            records[path] = {k: v for k, v in vars(coding).items() if v != getattr(Coding, k, None)}  # no defaults
        if coding is None or coding.value is None:
            stored[path] = data
    text = json.dumps({"graph": graph_to_json(student), "tensors": records | products}, separators=(",", ":"))
    return _sealed(stored | {GRAPH: _as_tensor(zlib.compress(text.encode(), 9))})


def _unpack(stored: dict[str, Tensor], most: int) -> fx.GraphModule:
    """The student of a file's tensors, which take at most so many bytes."""
    if WHOLE in stored:
        stored = _opened(inflated(stored[WHOLE].numpy().tobytes(), most))
    content = json.loads(inflated(stored[GRAPH].numpy().tobytes(), MOST_TEXT))
    _check_sizes(content["tensors"], most)
    tensors = dict(stored)
    for path, record in content["tensors"].items():
        if "of" in record:  # comes behind what it is a product of
            tensors[path] = _product(tensors[record["of"]], record["times"])
        else:
            coding = Coding(**record | {"shape": tuple(record["shape"])})
            data = b"" if coding.value is not None else stored[path].numpy().tobytes()
            tensors[path] = torch.from_numpy(decode(coding, data))
    return graph_from_json(content["graph"], tensors)


def _check_sizes(records: dict[str, dict[str, Any]], most: int) -> None:
    """Before any array is made: constants and zeros take no bytes in a file, whatever their shapes say."""
    shapes = [(record["shape"], record["dtype"]) for record in records.values() if "of" not in record]
    for dtype in (dtype for _, dtype in shapes if dtype not in DTYPES):
        raise ValueError(f"arrays of type {brief(dtype)} are not coded; allowed are {', '.join(DTYPES)}")
    if any(not isinstance(side, int) or side < 0 for shape, _ in shapes for side in shape):
        raise ValueError("a side of a tensor is below 0, or no number")
    total = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes)
    if total > most:
        raise ValueError(f"its tensors take {total} bytes, and {most} are allowed for a file of its size")


def _coded(tensor: Tensor, *, aligned: bool) -> tuple[Coding | None, Tensor]:
    """A tensor in less bytes than it has, and how; None and the tensor where there are none."""
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES or not tensor.numel():
        return None, tensor
    coding, data = encode(tensor.numpy(), aligned=aligned)
    return (coding, _as_tensor(data)) if len(data) < tensor.nbytes else (None, tensor)


def _products(student: fx.GraphModule, tensors: dict[str, Tensor]) -> dict[str, dict[str, str | float]]:
    """Scales of biases that are, bit for bit, the weights' scales times the input's."""
    nodes, found = g.nodes_by_name(student), {}
    for name, layer in g.layers(student).items():
        ours, of = f"{name}.bias_scale", f"{name}.weight_scale"
        if ours in tensors and of in tensors:
            times = float(g.argument(g.operand(nodes[layer.node]), "scale"))  # of what dequantizes the input
            if torch.equal(_product(tensors[of], times), tensors[ours]):
                found[ours] = {"of": of, "times": times}
    return found


def _product(scale: Tensor, times: float) -> Tensor:
    return (scale.double() * times).float()


def _as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))  # torch.frombuffer takes no empty buffer


# ---- the file


def _sealed(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file with this format's version and a checksum of everything in it."""
    content = safetensors.torch.save(tensors, {KEY: f"version {VERSION}, sha256 {BLANK.decode()}"})
    assert SEAL.match(content), "safetensors writes the metadata first"
    return content.replace(BLANK, hashlib.sha256(content).hexdigest().encode(), 1)


def _opened(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file that is what it was when it was written.

    Raises:
        PackedError: it is not, or is of another kind or version.
    """
    seal = SEAL.match(content)
    if seal is None:
        raise PackedError(
            "is a pickle or a zip archive, as torch.save writes; these can hold code and are not opened: give a file "
            "that datafree.save wrote"
            if content.startswith(PICKLES)
            else "is not a packed file, or its first bytes are damaged; give one that datafree.save wrote"
        )
    if int(seal[1]) != VERSION:
        raise PackedError(
            f"has version {int(seal[1])} of the packed format; this datafree reads version {VERSION}: use the one it "
            "was written with, or write it again"
        )
    if hashlib.sha256(content.replace(seal[2], BLANK, 1)).hexdigest().encode() != seal[2]:
        raise PackedError("was cut short or altered: its checksum does not fit; copy it or write it again")
    return safetensors.torch.load(content)


def _squeezed(content: bytes) -> bytes:
    """The whole file inside of another, by that way of zlib that takes less: with repeats, or with none."""
    trials = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        squeezer = zlib.compressobj(9, memLevel=9, strategy=strategy)
        trials.append(squeezer.compress(content) + squeezer.flush())
    return _sealed({WHOLE: _as_tensor(min(trials, key=len))})
