"""What goes wrong with files, by accident and on purpose: bytes, JSON, safetensors, zip archives, arrays, ONNX."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable, MutableSequence
from typing import Any

Fault = Callable[[bytes, random.Random], bytes]

NUMBERS = (0, -1, 1, 2, 255, 2**31, 2**32, 2**62, -(2**62), 2**70, 0.5, 1e30, 1e-30, 1e999, -1e999, float("nan"))
TEXTS = (
    "", ".", "..", "../../x", "/etc/passwd", "a\nb", "\x1b[31m", "x" * 5000, "\0", "self", "__class__", "os:system",
    "module.", "\u202e", "torch.load", "aten.save.default", "{}", "[" * 3000, "1" * 5000,
)  # fmt: skip
VALUES = (*NUMBERS, *TEXTS, None, True, [], {}, [[]], {"__enum__": True, "fqn": "antigravity:x", "name": "x"})


def of_bytes(data: bytes, dice: random.Random) -> bytes:
    """Cut off, flip, overwrite, repeat or leave out."""
    if not data:
        return bytes(dice.randrange(256) for _ in range(8))
    start = dice.randrange(len(data))
    stop = min(len(data), start + dice.choice((1, 1, 4, 8, 64, 1024)))
    return dice.choice((
        lambda: data[:start],
        lambda: data[:start] + bytes([data[start] ^ 1 << dice.randrange(8)]) + data[start + 1 :],
        lambda: data[:start] + bytes([dice.choice((0, 255, 127, 128))]) * (stop - start) + data[stop:],
        lambda: data[:stop] + data[start:],
        lambda: data[:start] + data[stop:],
        lambda: data[:start] + struct.pack("<Q", dice.choice((0, 1, 2**31, 2**62, 2**64 - 1))) + data[start + 8 :],
    ))()  # fmt: skip


def of_text(data: bytes, dice: random.Random) -> bytes:
    """Another number, word or line."""
    found = list(re.finditer(dice.choice((rb"-?\d+(\.\d+)?", rb"[A-Za-z_.]+", rb"[^\n]+\n", rb"[\[\]{}:,&*!-]")), data))
    if not found:
        return of_bytes(data, dice)
    place = dice.choice(found)
    new = str(dice.choice((*VALUES, place[0].decode(errors="replace") * 2))).encode(errors="replace")
    return data[: place.start()] + new + data[place.end() :]


def of_json(data: bytes, dice: random.Random) -> bytes:
    """Another value somewhere, or none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(data, dice)
    holders = _holders(value)
    if not holders or dice.random() < 0.05:
        return of_text(data, dice)
    holder, key = dice.choice(holders)
    match dice.randrange(4):
        case 0:
            del holder[key]
        case 1:
            other, place = dice.choice(holders)
            holder[key] = other[place] if holder is not other else None
        case _:
            holder[key] = dice.choice(VALUES)
    try:
        return json.dumps(value).encode(errors="replace")
    except (ValueError, RecursionError):
        return of_bytes(data, dice)


def _holders(value: Any) -> list[tuple[Any, Any]]:
    """Every place in nested lists and dictionaries, as what holds it and the key in there."""
    found, left = [], [value]
    while left and len(found) < 20_000:
        holder = left.pop()
        keys = (
            list(holder) if isinstance(holder, dict) else list(range(len(holder))) if isinstance(holder, list) else []
        )
        found += [(holder, key) for key in keys]
        left += [holder[key] for key in keys]
    return found


def of_safetensors(data: bytes, dice: random.Random) -> bytes:
    """Another header, with the length that belongs to it."""
    if dice.random() < 0.3 or len(data) < 9:
        return of_bytes(data, dice)
    length = int.from_bytes(data[:8], "little")
    header = of_json(data[8 : 8 + length], dice)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def of_array(data: bytes, dice: random.Random) -> bytes:
    """Another header of a .npy, with the length that belongs to it; or values that are no numbers."""
    if dice.random() < 0.3 or len(data) < 128:
        return of_bytes(data, dice)
    if dice.random() < 0.2:
        place = dice.randrange(128, len(data) + 1)
        return data[:place] + struct.pack("<f", dice.choice((1e30, float("nan"), float("inf")))) + data[place + 4 :]
    length = int.from_bytes(data[8:10], "little")
    header = of_text(data[10 : 10 + length], dice)[: 2**16 - 1]
    return data[:8] + len(header).to_bytes(2, "little") + header + data[10 + length :]


def of_zip(data: bytes, dice: random.Random, *, inside: Fault) -> bytes:
    """A fault of one member, another name, one that is missing, or a bomb in its place."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()[:50]}
    except Exception:  # whatever zipfile raises where there were faults before
        return of_bytes(data, dice)
    if not members or dice.random() < 0.2:
        return of_bytes(data, dice)
    name = dice.choice(list(members))
    way = zipfile.ZIP_STORED
    match dice.randrange(8):
        case 0:
            del members[name]
        case 1:
            members[dice.choice(("../../x", "/x", "x.npy", "y.npy", "a/data.pkl"))] = members.pop(name)
        case 2:
            members[name], way = members[name] + bytes(2**25), zipfile.ZIP_DEFLATED
        case _:
            members[name] = inside(members[name], dice)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", way) as archive:
        for key, content in members.items():
            archive.writestr(key, content)
    return written.getvalue()


def of_onnx(data: bytes, dice: random.Random) -> bytes:
    """Another value in some field of some message, as protobuf allows it."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # of protobuf
        return of_bytes(data, dice)
    if dice.random() < 0.1:
        return of_bytes(data, dice)
    messages = _messages(model)
    for _ in range(dice.randint(1, 3)):
        message = dice.choice(messages)
        field = dice.choice(message.DESCRIPTOR.fields)
        _change(message, field, dice)
    return model.SerializeToString()


def _messages(message: Any) -> list[Any]:
    found, left = [], [message]
    while left and len(found) < 5000:
        found.append(left.pop())
        for field, value in found[-1].ListFields():
            if field.type == field.TYPE_MESSAGE:
                left += list(value) if isinstance(value, MutableSequence) else [value]
    return found


def _change(message: Any, field: Any, dice: random.Random) -> None:
    """Set, add to or clear one field."""
    held = getattr(message, field.name)
    repeated = isinstance(held, MutableSequence)
    if dice.random() < 0.2:
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        if repeated and held:
            held.add().CopyFrom(dice.choice(list(held)))
    else:
        kinds = {field.TYPE_STRING: TEXTS, field.TYPE_BYTES: [text.encode() for text in TEXTS]}
        numbers = [0, 1, 2, 3, 7, 11, -1, 255, 2**20, 2**31 - 1, 2**62, -(2**62)]
        value = dice.choice(kinds.get(field.type) or (NUMBERS if field.cpp_type in (5, 6) else numbers))
        try:
            if not repeated:
                setattr(message, field.name, value)
            elif held and dice.random() < 0.7:
                held[dice.randrange(len(held))] = value
            else:
                held.append(value)
        except (ValueError, TypeError, OverflowError):  # a number that this field has no room for
            message.ClearField(field.name)
