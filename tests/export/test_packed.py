"""Packed files: the same bits after a round trip, the real width in bytes, refusal of all else."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import math
import pickle
import re
import resource
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from datafree import Recipe, compress, load_model
from datafree import graph as g
from datafree.export.packed import packed
from datafree.export.packed.coding import Coding, decode, encode, num_bytes, pack, unpack
from datafree.export.packed.packed import PackedError, load, save
from datafree.run.graph_json import graph_to_json, tensors_of
from nets import THREE_FAST, compressed

EXAMPLE = Path(__file__).parents[1].parent / "examples" / "read_packed.py"
FORMAT = Path(__file__).parents[1].parent / "docs" / "format.md"
CHEAP = ("signal.kind=propagated", "signal.images=2", "solve.method=nearest", "solve.clip=false")
FOUR = ("weights.bits=4", "first_last=same")
SPARSE = ("prune.sparsity=0.8", "prune.score=magnitude")
FLOAT = ("weights.bits=null", "activations.bits=null")


def widths(*bits):
    """One for each layer of the net "chain"."""
    names = "0.conv", "1.conv", "2.2"
    return tuple(f"layers.{name}={{weights: {{bits: {width}}}}}" for name, width in zip(names, bits, strict=True))


MOST = settings(deadline=None, max_examples=60)


def made(name="chain", *changes):
    return compressed(name, Recipe.preset("w8a8").updated([*CHEAP, *changes]).dump())


def example_of(graph):
    """Inputs of other values and another number than the graph was captured with."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *g.shape(node)[1:], generator=generator) for node in g.placeholders(graph)]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def assert_same_student(found, student):
    assert graph_to_json(found) == graph_to_json(student) and g.layers(found) == g.layers(student)
    ours, theirs = tensors_of(found), tensors_of(student)
    assert ours.keys() == theirs.keys() and all(same_bits(ours[path], theirs[path]) for path in ours)
    inputs = example_of(student)
    with torch.no_grad():
        outputs, wanted = found(*inputs), student(*inputs)
    assert type(outputs) is type(wanted) and not found.training
    assert all(same_bits(a, b) for a, b in zip(tree_leaves(outputs), tree_leaves(wanted), strict=True))


def content_of(path):
    """The tensors of a file, not compressed, as any safetensors reader sees them, and the records of its index."""
    stored = safetensors.torch.load_file(path)
    return stored, json.loads(zlib.decompress(stored["__graph__"].numpy()))["tensors"]


# Codes


@MOST
@given(st.integers(1, 8).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1), max_size=40))))
def test_codes_come_back_from_as_few_bytes_as_they_have_bits(codes):
    bits, values = codes
    data = pack(np.array(values, np.uint8), bits)
    assert len(data) == math.ceil(bits * len(values) / 8)
    assert unpack(data, bits, len(values)).tolist() == values
    whole = sum(code << (bits * place) for place, code in enumerate(values))  # the same order, said as one number
    assert int.from_bytes(data, "little") == whole


@pytest.mark.parametrize(
    "data, bits, count", [(b"ab", 8, 3), (b"abc", 8, 2), (b"a", 0, 3), (b"abc", 9, 2), (b"", -1, 0)]
)
def test_codes_that_do_not_fill_their_bytes_are_refused(data, bits, count):
    message = f"{count} codes of {bits} bits do not fill {len(data)} bytes; allowed are 1 to 8 bits"
    with pytest.raises(ValueError, match=f"^{message}$"):
        unpack(data, bits, count)


SHAPES = st.sampled_from([(1,), (7,), (5, 3), (4, 2, 3, 3), (1, 40), (40, 1), (600,)])
INTEGERS = st.tuples(SHAPES, st.integers(0, 2**32), st.integers(0, 127), st.integers(-100, 100), st.floats(0, 1))


def integers_of(drawn):
    """int8 around `offset`, and zeros."""
    shape, seed, reach, offset, density = drawn
    numbers = np.random.default_rng(seed)
    values = (offset + numbers.integers(-reach, reach + 1, shape)).clip(-128, 127)
    return np.where(numbers.random(shape) < density, values, 0).astype(np.int8)


@MOST
@given(INTEGERS, st.booleans())
def test_integers_come_back(drawn, aligned):
    array = integers_of(drawn)
    coding, data = encode(array, aligned=aligned)
    found = decode(coding, data)
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    assert coding.bits in ({None, 1, 2, 4, 8} if aligned else {None, *range(1, 9)})


@MOST
@given(INTEGERS)
def test_integers_take_the_least_of_all_ways_to_say_places(drawn):
    """Sizes counted one by one, as the format has it."""
    array = integers_of(drawn)
    _, data = encode(array)
    if (array == array.flat[0]).all():
        assert data == b""
        return
    rows = array.reshape(len(array) if array.ndim > 1 else 1, -1).tolist()
    mask = "".join("1" if value else "0" for row in rows for value in row)
    runs = [len(zeros) for zeros in re.findall("(0*)1", mask)]
    gaps = [num_bytes(sum(run // (2**bits - 1) + 1 for run in runs), bits) for bits in range(2, 9)]
    everything = size_of_values(rows)
    assert len(data) == min(everything, size_of_values([[v for v in row if v] for row in rows]) + min(
        num_bytes(len(mask), 1), *gaps
    ))  # fmt: skip


def size_of_values(rows):
    """Bytes of lowest values and of what lies above; rows may be empty."""
    width = lambda values: max(1, (max(values) - min(values)).bit_length())  # noqa: E731
    each, together = max(width(row) for row in rows if row), width([value for row in rows for value in row])
    return (1 if together == each else len(rows)) + num_bytes(sum(map(len, rows)), each)


FLOATS = st.sampled_from([0.0, 0.0, 0.0, 0.0, -0.0, 1.5, -3e38, 1e-45, math.inf, -math.inf, math.nan])


@MOST
@given(st.lists(FLOATS, min_size=1, max_size=60), st.sampled_from(["float16", "float32", "float64"]))
def test_floats_come_back_bit_for_bit(values, dtype):
    with np.errstate(over="ignore"):
        array = np.array(values).astype(dtype)
    coding, data = encode(array)
    assert decode(coding, data).tobytes() == array.tobytes()
    zeros = sum(value == 0 and math.copysign(1, value) == 1 for value in values)
    assert len(data) <= (len(values) - zeros) * array.itemsize + num_bytes(len(values), 1)


@pytest.mark.parametrize("array", [np.full((3, 4), -0.0, np.float32), np.zeros(5, np.int64), np.array(True),
                                   np.full(3, 2**40 + 1), np.full((2, 2), 0.1, np.float32)], ids=str)  # fmt: skip
def test_what_is_alike_everywhere_takes_no_bytes(array):
    coding, data = encode(array)
    coding = replace(coding, value=json.loads(json.dumps(coding.value)))
    assert data == b"" and decode(coding, data).dtype == array.dtype
    assert decode(coding, data).tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["object", "str", "complex64", "nosuch"])
def test_arrays_of_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"^arrays of type '{dtype}' are not coded; allowed are bool, uint8, int8, "):
        decode(Coding(dtype, (3,), 0), b"")


@pytest.mark.parametrize("size", [0, 1, 2, 4, 6])
def test_bytes_that_are_too_many_or_too_few_are_refused(size):
    with pytest.raises(ValueError):
        decode(Coding("float32", (1, 3)), bytes(4 * size))


def test_the_example_of_the_format_is_right():
    text = FORMAT.read_text()
    row = np.array([int(n) for n in re.search(r"a row ([-\d, ]+) of int8", text)[1].split(",")], np.int8)
    for coding, name in (
        (Coding("int8", (8,), bits=4, num_lows=1), "All values"),
        (Coding("int8", (8,), bits=4, num_lows=1, num_gaps=0), "With a mask"),
        (Coding("int8", (8,), bits=4, num_lows=1, num_gaps=4, gap_bits=2), "With gaps of 2 bits"),
    ):
        said = re.search(rf"{name}(.*?)\.( |$)", text.replace("\n", " "))[1]
        data = bytes.fromhex("".join(re.findall("0x([0-9a-f]{2})", said)))
        assert decode(coding, data).tolist() == row.tolist(), name
    assert f"It is version {packed.VERSION}." in text


# Round trip


@pytest.mark.parametrize("name", THREE_FAST)
def test_every_network_comes_back_bit_for_bit(name, tmp_path):
    run = made(name, "weights.bits=4", "equalize=free")
    save(run, tmp_path / "net.safetensors")
    assert_same_student(load(tmp_path / "net.safetensors"), run.student)


CASES = {
    "2 to 4 bits": widths(2, 3, 4), "5 to 7 bits": widths(5, 6, 7), "8 bits": (),
    "4 bits tensor": (*FOUR, "weights.per=tensor", "activations.bits=4"),
    "sparse": SPARSE, "sparse float": (*SPARSE, *FLOAT), "n:m": ("prune.pattern='2:4'", *FOUR),
    "channels": ("prune.pattern=channels", "prune.sparsity=0.3"), "vectors": ("equalize=free", "weights.per=tensor"),
    "kept": ("weights.bits=3", "activations.bits=null", "layers.0.conv=keep"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [c if c in ("2 to 4 bits", "sparse", "n:m", "vectors") else pytest.param(c, marks=pytest.mark.slow) for c in CASES],
)
def test_every_recipe_comes_back_bit_for_bit(case, tmp_path):
    run = made("chain", *CASES[case])
    for name in ("plain", "compressed"):
        save(run, tmp_path / name, compress=name == "compressed")
        assert_same_student(load(tmp_path / name), run.student)


@pytest.mark.parametrize("compressing", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "compressed"])
def test_a_run_gives_the_same_file_each_time(compressing, tmp_path):
    for name in "ab":
        save(made("chain", *FOUR), tmp_path / name, compress=compressing)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_loaded_student_is_packed_to_the_same_file(tmp_path):
    save(made("chain", *SPARSE), tmp_path / "a")
    assert packed._pack(load(tmp_path / "a"), aligned=False) == (tmp_path / "a").read_bytes()


# Bytes


@pytest.mark.parametrize("case", ["2 to 4 bits", "5 to 7 bits"])
def test_weights_take_their_real_width(case, tmp_path):
    run = made("chain", *CASES[case])
    save(run, tmp_path / "net.safetensors")
    stored, records = content_of(tmp_path / "net.safetensors")
    for result in run.layers:
        taken, record = stored[f"{result.name}.weight"].nbytes, records.get(f"{result.name}.weight")
        assert taken <= num_bytes(result.weight.numel(), result.bits) + len(result.weight)
        assert record["bits"] <= result.bits if record else taken == result.weight.numel()  # lows would take the rest
    assert len({result.bits for result in run.layers}) == 3


@pytest.mark.parametrize("case, width", [("sparse", 8), ("sparse float", 32)])
def test_sparse_weights_take_their_places_and_what_stays(case, width, tmp_path):
    run = made("chain", *CASES[case])
    save(run, tmp_path / "net.safetensors")
    stored, _ = content_of(tmp_path / "net.safetensors")
    for result in run.layers:
        weight = g.get_tensor(run.student, f"{result.name}.weight")
        count = int(weight.count_nonzero())
        most = num_bytes(weight.numel(), 1) + num_bytes(count, width) + len(weight)
        assert stored[f"{result.name}.weight"].nbytes <= min(most, weight.nbytes)


def test_what_follows_from_the_rest_is_not_stored(tmp_path):
    save(made("chain", *FOUR), tmp_path / "net.safetensors")
    stored, records = content_of(tmp_path / "net.safetensors")
    assert not [name for name in stored if name.endswith(("zero_point", "bias_scale"))]
    assert {r["value"] for name, r in records.items() if name.endswith("zero_point")} == {0}
    assert stored["0.conv.bias"].dtype == torch.int32 and stored["0.conv.weight_scale"].dtype == torch.float32


def test_compressed_files_are_smaller(tmp_path):
    run = made("linear after flatten", "weights.bits=5")
    for name in ("plain", "compressed"):
        save(run, tmp_path / name, compress=name == "compressed")
    assert (tmp_path / "compressed").stat().st_size < (tmp_path / "plain").stat().st_size


BARS = {"int8": (("first_last=same",), 0.26), "int4": (("weights.bits=4", "first_last=same"), 0.15),
        "80 % sparse int8": (SPARSE, 0.08)}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:mobilenetv2_100", "torchvision:resnet18", "torchvision:resnet50"])
@pytest.mark.parametrize("case", BARS)
def test_bytes_against_the_float_network(case, name, tmp_path):
    changes, bar = BARS[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example = load_model(name)
    run = compress(model, Recipe.preset("w8a8").updated([*CHEAP, *changes]), example[:, :, :64, :64])
    save(run, tmp_path / "net.safetensors")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "float.safetensors")
    sizes = [(tmp_path / f"{kind}.safetensors").stat().st_size for kind in ("net", "float")]
    assert sizes[0] <= bar * sizes[1]
    assert same_bits(load(tmp_path / "net.safetensors")(example), run.student(example))


# The reader that needs NumPy alone


def reader():
    spec = importlib.util.spec_from_file_location("read_packed", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value_of(graph, node):
    """A layer's weight or bias as floats."""
    if node.op == "get_attr":
        return g.get_tensor(graph, node.target)
    return node.target(*torch.fx.node.map_arg(node.args, lambda n: g.get_tensor(graph, n.target)))


@pytest.mark.parametrize("compressing", [False, True], ids=["", "compressed"])
@pytest.mark.parametrize("name, case", [*(("chain", case) for case in CASES), ("shared module", "4 bits tensor")])
def test_a_reader_of_numpy_alone_finds_the_same_weights(name, case, compressing, tmp_path):
    save(made(name, *CASES[case]), tmp_path / "net.safetensors", compress=compressing)
    found, student = reader().read(tmp_path / "net.safetensors"), load(tmp_path / "net.safetensors")
    layers, nodes = g.layers(student), g.nodes_by_name(student)
    assert list(found) == list(layers)
    for layer in layers.values():
        for array, argument in zip(found[layer.name], nodes[layer.node].args[1:3], strict=True):
            assert same_bits(torch.from_numpy(np.array(array)), value_of(student, argument)), layer.name


def test_the_reader_is_short_and_stands_alone(tmp_path):
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 80
    tree = ast.walk(ast.parse(text))
    names = {getattr(n, "module", None) or n.names[0].name for n in tree if isinstance(n, ast.Import | ast.ImportFrom)}
    assert names <= {"numpy", *sys.stdlib_module_names}
    save(made("chain", *FOUR), tmp_path / "net.safetensors")
    done = subprocess.run([sys.executable, EXAMPLE, tmp_path / "net.safetensors"], capture_output=True, text=True)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 3)
    assert re.match(r"0\.conv +\(8, 3, 3, 3\) +\d+\.\d% zero, largest \d", done.stdout)


def test_the_reader_refuses_altered_files(tmp_path):
    save(made("chain", *FOUR), tmp_path / "net.safetensors")
    flip(tmp_path / "net.safetensors", -1)
    with pytest.raises(ValueError, match="cut short or altered"):
        reader().read(tmp_path / "net.safetensors")


# Writing


def test_a_file_is_replaced_only_with_force(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_text("mine")
    with pytest.raises(
        PackedError, match=rf"^{path} exists; choose another name, or force=True \(--force\) to replace"
    ):
        save(made(), path)
    assert path.read_text() == "mine"
    save(made(), path, force=True)
    assert_same_student(load(path), made().student)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_folders_on_the_way_are_made_and_a_name_may_be_text(tmp_path):
    save(made(), str(tmp_path / "a" / "b" / "net.safetensors"))
    assert_same_student(load(str(tmp_path / "a" / "b" / "net.safetensors")), made().student)


@pytest.mark.parametrize("force", [False, True], ids=["", "force"])
def test_a_directory_is_never_replaced(force, tmp_path):
    with pytest.raises(
        PackedError, match=rf"^{tmp_path} is a directory; give the name of a file, as .*net\.safetensors$"
    ):
        save(made(), tmp_path, force=force)
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def files_no_larger_than(size):
    """The system refuses to write more, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1000])
def test_a_disk_that_is_full_leaves_nothing_behind(size, tmp_path):
    path, run = tmp_path / "net.safetensors", made()
    message = rf"^{path} cannot be written \(file too large\) and nothing is left behind; free some space or choose "
    with files_no_larger_than(size), pytest.raises(PackedError, match=message):
        save(run, path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_text("mine")
    run = made()
    with files_no_larger_than(1000), pytest.raises(PackedError, match="cannot be written"):
        save(run, path, force=True)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_place_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PackedError, match=r"cannot be written \(.*\) and nothing is left behind"):
        save(made(), tmp_path / "file" / "net.safetensors")


# Reading what is no packed file


def refused(path, message):
    """The load fails with one line that names the file."""
    with pytest.raises(PackedError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{path} ") and re.search(message, text), text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "net.safetensors"
    save(made("chain", *FOUR), path)
    return path.read_bytes()


@pytest.fixture
def file(tmp_path, whole):
    path = tmp_path / "net.safetensors"
    path.write_bytes(whole)
    return path


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_any_flipped_bit_is_found(file, whole):
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(160), *range(160, start, 37), *range(start, len(whole), 53), len(whole) - 1]:
        file.write_bytes(whole)
        flip(file, place, place % 8)
        refused(
            file, "checksum does not fit|not a packed file, or its first bytes are damaged|has version .* of the pack"
        )


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.999])
def test_a_file_cut_short_is_refused(share, file, whole):
    file.write_bytes(whole[: int(share * len(whole))])
    refused(file, "was cut short or altered: its checksum does not fit|is not a packed file, or its first bytes are")


def test_a_file_with_more_behind_it_is_refused(file, whole):
    file.write_bytes(whole + b"\0")
    refused(file, "was cut short or altered: its checksum does not fit; copy it or write it again$")


@pytest.mark.parametrize("number", [0, 2, 10])
def test_another_version_is_refused_with_both_numbers(number, file, whole):
    file.write_bytes(whole.replace(b"version 1,", b"version %d," % number))
    refused(file, rf"has version {number} of the packed format; this datafree reads version 1: use the one it was writ")


def test_a_directory_or_nothing_is_refused(tmp_path):
    refused(tmp_path, "is a directory; Run.load reads a run; give one that datafree.save wrote$")
    refused(tmp_path / "nothing", r"is not a file \(looked from .*\); give one that datafree.save wrote$")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc/self/mem, a file nobody can read")
def test_a_file_that_cannot_be_read_is_refused():
    refused(Path("/proc/self/mem"), r"cannot be read \(.*\); look at its permissions and its disk$")


OTHERS = {
    "nothing": b"", "text": b"weights: {bits: 4}", "noise": bytes(range(256)) * 8,
    "tensors alone": safetensors.torch.save({"weight": torch.zeros(3)}),
    "tensors and words": safetensors.torch.save({"weight": torch.zeros(3)}, {"format": "pt"}),
}  # fmt: skip


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_other_files_are_refused(content, file):
    file.write_bytes(content)
    refused(file, "is not a packed file, or its first bytes are damaged; give one that datafree.save wrote$")


class Harmful:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def bare_pickle(value):
    return pickle.dumps(value)


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def saved_before_zip(value):
    return saved(value, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [saved, saved_before_zip, bare_pickle])
def test_pickles_are_never_opened(write, file, tmp_path):
    file.write_bytes(write({"weight": Harmful(tmp_path / "touched")}))
    refused(file, "is a pickle or a zip archive, as torch.save writes; these can hold code and are not opened: give a ")
    assert not (tmp_path / "touched").exists()


def test_a_packed_file_may_begin_with_the_bytes_of_a_pickle():
    contents = [packed._sealed({"x" * length: torch.zeros(1)}) for length in range(1, 300)]
    assert any(content.startswith(b"\x80") for content in contents)  # the length of the header
    assert all(len(packed._opened(content)) == 1 for content in contents)


# Files that somebody else sealed


def edited(stored, change):
    """The tensors of a file whose index `change` edited."""
    content = json.loads(zlib.decompress(stored["__graph__"].numpy()))
    change(content)
    data = zlib.compress(json.dumps(content).encode())
    return {**stored, "__graph__": torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def record_of(content):
    return content["tensors"]["1.conv.weight"]


def first_call(content):
    return next(node for node in content["graph"]["nodes"] if node["op"] == "call_function")


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


DAMAGE = {
    "no index": lambda t: without(t, "__graph__"),
    "an index that is none": lambda t: {**t, "__graph__": torch.zeros(9, dtype=torch.uint8)},
    "no bytes": lambda t: without(t, "1.conv.weight"),
    "no tensor": lambda t: without(t, "1.conv.bias"),
    "too few bytes": lambda t: {**t, "1.conv.weight": t["1.conv.weight"][:-1].clone()},
    "too many bytes": lambda t: {**t, "1.conv.weight": torch.cat([t["1.conv.weight"]] * 2)},
    "no shape": lambda t: edited(t, lambda c: record_of(c).pop("shape")),
    "an unknown field": lambda t: edited(t, lambda c: record_of(c).update(nosuch=1)),
    "no lowest values": lambda t: edited(t, lambda c: record_of(c).pop("num_lows")),
    "a type that is none": lambda t: edited(t, lambda c: record_of(c).update(dtype="object")),
    "nine bits": lambda t: edited(t, lambda c: record_of(c).update(bits=9)),
    "gaps that lead outside": lambda t: edited(t, lambda c: record_of(c).update(num_gaps=150, gap_bits=8, bits=1)),
    "records are a list": lambda t: edited(t, lambda c: c.update(tensors=[])),
    "a product of nothing": lambda t: edited(t, lambda c: c["tensors"].update(a={"of": "nosuch", "times": 1.0})),
    "an unknown operator": lambda t: edited(t, lambda c: first_call(c).update(target="os.system")),
    "code for a name": lambda t: edited(t, lambda c: c["graph"]["inputs"].update(names=["x=print()"])),
    "a file in a file in a file": lambda t: wrapped(wrapped(t)),
}  # fmt: skip


def wrapped(tensors):
    data = zlib.compress(packed._sealed(tensors))
    return {"__file__": torch.frombuffer(bytearray(data), dtype=torch.uint8)}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_contents_that_make_no_sense_are_refused(damage, file):
    file.write_bytes(packed._sealed(damage(safetensors.torch.load_file(file))))
    refused(file, "is damaged: .*; write it again$")


def test_an_altered_file_in_a_compressed_one_is_refused(file, whole):
    data = zlib.compress(whole[:-1] + b"?")
    file.write_bytes(packed._sealed({"__file__": torch.frombuffer(bytearray(data), dtype=torch.uint8)}))
    refused(file, "was cut short or altered")


def test_packed_errors_are_value_errors():
    assert issubclass(PackedError, ValueError)
