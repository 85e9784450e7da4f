"""Arrays as few bytes: integers at their real width, zeros left out. Nothing here knows files or graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int8, Num, UInt8

DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64")
GAP_WIDTHS = range(2, 9)  # gaps of one bit would be a mask

Array = Num[np.ndarray, "..."] | Bool[np.ndarray, "..."]
Codes = UInt8[np.ndarray, " codes"]


@dataclass(frozen=True)
class Coding:
    """How an array lies in its bytes: lowest values, then places, then values; each part starts on a whole byte.

    dtype, shape: of the array; NumPy's name.
    value: of every entry, where all are alike; then there are no bytes.
    bits: of one stored value, which is added to the lowest of its row; None = values as they are, little-endian.
    num_lows: lowest values, int8: one, or one for every entry of dimension 0; none where `bits` is None.
    num_gaps: None = all values are stored; 0 = a bit mask tells which, else so many gaps do.
    gap_bits: of one gap; the mask has 1 for every value.
    """

    dtype: str
    shape: tuple[int, ...]
    value: bool | int | float | None = None
    bits: int | None = None
    num_lows: int = 0
    num_gaps: int | None = None
    gap_bits: int = 1


@dataclass(frozen=True)
class _Places:
    """Which values are stored, and the bytes that tell."""

    kept: Bool[np.ndarray, " n"]
    data: bytes = b""
    num_gaps: int | None = None
    gap_bits: int = 1


def encode(array: Array, *, aligned: bool = False) -> tuple[Coding, bytes]:
    """The least bytes of four: one value for all; all values; a mask and what is not zero; gaps and what is not zero.

    Args:
        array: of one of DTYPES, not empty; int8 takes its real width, other types keep theirs.
        aligned: 4 bits for 3 and 8 for 5 to 7: more here, but less behind a compressor, which sees whole bytes.
    """
    value = array.flat[0].item()
    if np.isfinite(value) and array.tobytes() == np.full_like(array, value).tobytes():
        return Coding(array.dtype.name, array.shape, value), b""
    kept = array.view(f"u{array.dtype.itemsize}").ravel() != 0  # the bits, so that -0.0 is not zero
    trials = [_Places(np.ones_like(kept)), _Places(kept, pack(kept.astype(np.uint8), 1), 0)]
    if 2 * kept.sum() < kept.size:  # a gap takes two bits at least
        bits, gaps = _gaps(np.flatnonzero(kept))
        trials.append(_Places(kept, pack(gaps, bits), len(gaps), bits))
    return min((_encoded(array, places, aligned) for places in trials), key=lambda trial: len(trial[1]))


def decode(coding: Coding, data: bytes) -> Array:
    """The array `encode` was given, bit for bit.

    Raises:
        ValueError: a type that is not coded, or more or fewer bytes than the coding says.
    """
    if coding.dtype not in DTYPES:
        raise ValueError(f"arrays of type {coding.dtype!r} are not coded; allowed are {', '.join(DTYPES)}")
    if coding.value is not None:
        return np.full(coding.shape, coding.value, coding.dtype)
    size, start = math.prod(coding.shape), coding.num_lows
    lows, kept = np.frombuffer(data[:start], np.int8), np.ones(size, bool)
    if coding.num_gaps is not None:
        bits, count = coding.gap_bits, coding.num_gaps or size
        end = start + num_bytes(count, bits)
        codes, start = unpack(data[start:end], bits, count), end
        kept = _kept(codes, bits, size) if coding.num_gaps else codes.view(bool)
    array, num_kept = np.zeros(size, coding.dtype), int(np.count_nonzero(kept))
    if coding.bits is None:
        array[kept] = np.frombuffer(data[start:], array.dtype.newbyteorder("<")).reshape(num_kept)
    else:
        each = np.count_nonzero(kept.reshape(len(lows), -1), axis=1)  # values of every row
        array[kept] = unpack(data[start:], coding.bits, num_kept) + np.repeat(lows.astype(np.int16), each)
    return array.reshape(coding.shape)


def pack(codes: Codes, bits: int) -> bytes:
    """Codes below 2**bits one after another, lowest bit first: bit k of all is bit k % 8 of byte k // 8."""
    planes = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")  # (n, bits)
    return np.packbits(planes, bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int) -> Codes:
    """The codes `pack` was given.

    Raises:
        ValueError: codes that are not of 1 to 8 bits, or do not fill these bytes.
    """
    if not 1 <= bits <= 8 or len(data) != num_bytes(count, bits):
        raise ValueError(f"{count} codes of {bits} bits do not fill {len(data)} bytes; allowed are 1 to 8 bits")
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=bits * count, bitorder="little")
    return np.packbits(planes.reshape(count, bits), axis=1, bitorder="little")[:, 0]


def num_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes, the last byte filled up with zero bits."""
    return -(-count * bits // 8)


def _encoded(array: Array, places: _Places, aligned: bool) -> tuple[Coding, bytes]:
    dtype, shape, where = array.dtype, array.shape, (places.num_gaps, places.gap_bits)
    if dtype != np.int8:
        values = array.ravel()[places.kept].astype(dtype.newbyteorder("<"))
        return Coding(dtype.name, shape, None, None, 0, *where), places.data + values.tobytes()
    lows, bits = _lows(array, places.kept)
    bits = 1 << (bits - 1).bit_length() if aligned else bits
    above = array.reshape(len(lows), -1) - lows[:, None].astype(np.int16)
    codes = above.astype(np.uint8).ravel()[places.kept]
    return Coding("int8", shape, None, bits, len(lows), *where), lows.tobytes() + places.data + pack(codes, bits)


def _lows(array: Int8[np.ndarray, "..."], kept: Bool[np.ndarray, " n"]) -> tuple[Int8[np.ndarray, " r"], int]:
    """The lowest value kept in every row and the bits of what lies above; one for all rows where that costs no bit."""
    shape = (len(array) if array.ndim > 1 else 1, -1)
    rows, kept = array.reshape(shape), kept.reshape(shape)
    lows, highs = rows.min(1, where=kept, initial=127), rows.max(1, where=kept, initial=-128)
    bits = max(map(_width, lows.tolist(), highs.tolist()))
    lowest = lows.min(keepdims=True)
    return (lowest if _width(int(lowest[0]), int(highs.max())) == bits else lows), bits


def _width(low: int, high: int) -> int:
    """Bits of the integers 0 to high - low, at least one; a row that keeps nothing has high < low."""
    return max(1, max(0, high - low).bit_length())


def _gaps(places: Int[np.ndarray, " n"]) -> tuple[int, Codes]:
    """The zeros before each place, as codes of that width of which they take the least bits.

    The highest code of w bits, 2**w - 1, skips so many zeros and stores nothing; a gap of g zeros takes
    g // (2**w - 1) of them and the code g % (2**w - 1).
    """
    gaps = np.diff(places, prepend=-1) - 1
    counts = np.bincount(gaps)
    num_codes = lambda w: int(counts @ (1 + np.arange(len(counts)) // (2**w - 1)))  # noqa: E731
    bits = min(GAP_WIDTHS, key=lambda w: w * num_codes(w))
    skips = gaps // (2**bits - 1)
    codes = np.full(num_codes(bits), 2**bits - 1, np.uint8)
    codes[np.cumsum(skips + 1) - 1] = gaps % (2**bits - 1)
    return bits, codes


def _kept(codes: Codes, bits: int, size: int) -> Bool[np.ndarray, " size"]:
    """Whether a value is at each place of those that `_gaps` was given."""
    stored, kept = codes < 2**bits - 1, np.zeros(size, bool)
    kept[(np.cumsum(codes.astype(np.int64) + stored) - 1)[stored]] = True
    return kept
