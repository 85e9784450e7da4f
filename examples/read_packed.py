"""Print a packed file's layers, with NumPy alone (docs/format.md): python examples/read_packed.py FILE"""

import hashlib
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np

DTYPES = {"BOOL": "?", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}


def read(path):
    """Layer name -> (weight (C_out, ...), bias (C_out,)), float32."""
    stored = arrays_of(Path(path).read_bytes())
    content = json.loads(zlib.decompress(stored["__graph__"]))
    tensors = dict(stored)
    for name, record in content["tensors"].items():
        if "of" in record:
            tensors[name] = (tensors[record["of"]].astype(np.float64) * record["times"]).astype(np.float32)
        else:
            tensors[name] = decode(stored.get(name), **record)
    nodes = {node["name"]: node for node in content["graph"]["nodes"]}
    of = lambda node, i: floats(nodes, tensors, node["args"][i]["node"])  # noqa: E731
    return {node["layer"]: (of(node, 1), of(node, 2)) for node in nodes.values() if node["layer"]}


def arrays_of(content):
    """The arrays of a file by name, once its checksum is found to fit."""
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), memoryview(content)[start:]
    digest = header.pop("__metadata__")["datafree.packed"].removeprefix("version 1, sha256 ").encode()
    if hashlib.sha256(content.replace(digest, b"0" * 64, 1)).hexdigest().encode() != digest:
        raise ValueError("the file is of another version, was cut short or altered")
    arrays = {}
    for name, entry in header.items():
        part = data[slice(*entry["data_offsets"])]
        arrays[name] = np.frombuffer(part, DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays_of(zlib.decompress(arrays["__file__"])) if "__file__" in arrays else arrays


def decode(data, dtype, shape, value=None, bits=None, num_lows=0, num_gaps=None, gap_bits=1):
    """An array of its bytes: lowest values, then places, then values."""
    if value is not None:
        return np.full(shape, value, dtype)
    array = np.zeros(math.prod(shape), dtype)
    (lows, data), places = np.split(data, [num_lows]), np.arange(array.size)
    if num_gaps is not None:
        codes, data = unpack(data, gap_bits, num_gaps or array.size)
        kept = codes < 2**gap_bits - 1 if num_gaps else codes == 1
        places = np.cumsum(codes + kept)[kept] - 1 if num_gaps else np.flatnonzero(kept)
    low = lows.view(np.int8)[places * num_lows // array.size] if num_lows else 0
    array[places] = data.view(dtype) if bits is None else unpack(data, bits, len(places))[0] + low
    return array.reshape(shape)


def unpack(data, bits, count):
    """So many codes, the lowest bit of each first, and the bytes behind them."""
    end = -(-count * bits // 8)
    planes = np.unpackbits(data[:end], count=bits * count, bitorder="little").reshape(count, bits)
    return planes @ (1 << np.arange(bits)), data[end:]


def floats(nodes, tensors, name):
    """What a node of the graph gives: a stored tensor, or integers times their scale."""
    if nodes[name]["op"] == "get_attr":
        return tensors[nodes[name]["target"]]
    integers, scale = nodes[name]["args"][:2]
    integers = floats(nodes, tensors, integers["node"]).astype(np.float32)
    scale = floats(nodes, tensors, scale["node"]) if isinstance(scale, dict) else np.float32(scale)
    return (integers.T * scale).T  # one scale, or one for every entry of dimension 0


if __name__ == "__main__":
    for layer, (weight, _) in read(sys.argv[1]).items():
        print(f"{layer:40} {weight.shape!s:22} {np.mean(weight == 0):6.1%} zero, largest {abs(weight).max():.4g}")
