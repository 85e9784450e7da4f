"""Broken and hostile files of every kind: read, or refused in one line; no code runs, and memory stays in its bounds.

The fuzzers of fuzz/ with seeds and faults of their own, without coverage; and the smallest files that led to a fix.
"""

import io
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datafree import Recipe
from datafree.app import cli
from datafree.execution import Checkpoints, most_bytes
from datafree.execution.limits import inflated
from datafree.export.packed import packed
from datafree.images import ImagesError, load_images, load_unlabelled
from datafree.messages import one_line
from datafree.models import ModelError, load_model
from datafree.recipe import RecipeError
from datafree.records import LayerResult
from datafree.run import Run, RunError, graph_to_json, tensors_of
from datafree.run.nesting import NestingError, spec_from_text
from fuzz import checkpoints, images, networks, onnx_files, recipes, runs
from fuzz import packed as packed_files
from fuzz.harness import Finding, Target, check

onnx = pytest.importorskip("onnx")
node = onnx.helper.make_node

TARGETS = {
    module.TARGET.name: module.TARGET for module in (recipes, checkpoints, runs, packed_files, onnx_files, images)
}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@pytest.fixture(scope="module", autouse=True)
def _warm():
    """What is loaded at the first use, and made once, is no file's doing."""
    networks.run()
    for target in TARGETS.values():
        target.seeds()


@every_target
def test_every_seed_is_read_or_refused(target):
    for seed in target.seeds():
        check(target, seed)


@every_target
@pytest.mark.parametrize("count", [8, pytest.param(400, marks=pytest.mark.slow)])
def test_any_fault_is_read_or_refused(target, count):
    seeds = target.seeds()

    @settings(max_examples=count, deadline=None, database=None)
    @given(st.integers(0, 2**32), st.integers(1, 4))
    def one(number, faults):
        dice = random.Random(number)
        data = dice.choice(seeds)
        for _ in range(faults):
            data = target.fault(data, dice)[:200_000]
        check(target, data)

    one()


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda folder: __import__("antigravity" if not sys.modules.pop("this", None) else "this"), "import of"),
        (lambda folder: os.system("true"), "os.system"),
        (lambda folder: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda folder: (folder.parent / "written").write_text("x"), "open of"),
        (lambda folder: bytearray(2**30).count(1), "MiB for a file of 1 bytes"),
        (lambda folder: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["import", "a command", "a program", "a file", "memory", "another error"],
)
def test_the_watch_sees_harm(harm, said, monkeypatch):
    monkeypatch.setenv("BROWSER", "true")
    if said.endswith("bytes") and not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak")
    sys.modules.pop("this", None)
    target = Target("harm", list, lambda data, folder: harm(folder), (ModelError,), lambda data, dice: data)
    try:
        with pytest.raises(Finding, match=said):
            check(target, b"x")
    finally:
        (Path(os.environ.get("TMPDIR", "/tmp")) / "written").unlink(missing_ok=True)


# Recipes


@pytest.mark.parametrize(
    "text, said",
    [
        (recipes.HARM[0], "holds more than 100000 values once its aliases are written out; write fewer"),
        (recipes.HARM[1], "holds more than 100000 values once its aliases are written out; write fewer"),
        ("layers: " + "[" * 5000, "is nested too deeply; a recipe has at most 32 levels"),
        ("- " * 5000, "is nested too deeply; a recipe has at most 32 levels"),
        ("weights: &w {bits: *w}", "holds a value that contains itself; write it without that alias"),
        ("#" * 2**21, "has more than 1048576 characters, which no recipe has"),
        ("x: !!timestamp 1", "is not YAML, a value in it makes no sense"),
        ("x: !!bool y1", "is not YAML, a value in it makes no sense"),
        (f"weights: {{bits: {'9' * 5000}}}", "is not YAML, a value in it makes no sense"),
        ("x: !!python/object/apply:os.system ['true']", "is not YAML: could not determine a constructor"),
        ("distill: {lr: .nan}", "distill.lr: Input should be a finite number, got nan"),
        ("signal: {kind: inverted, smoothness: .inf}", "signal.smoothness: Input should be a finite number, got inf"),
        ("'a\\nb\\e[31m': 1", "unknown key"),
        ("self: 1", "recipe: self: unknown key; allowed here are signal"),
    ],
    ids=lambda value: value[:20].strip(),
)
def test_recipes_that_do_harm_are_refused(text, said):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, source="net.yaml")
    assert said in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 2001


def test_aliases_may_be_used():
    text = "layers:\n  a*: &four {weights: {bits: 4}}\n  b*: *four\n  c*: {<<: *four}\n"
    assert {rule.weights.bits for rule in Recipe.parse(text).layers.values()} == {4}


@pytest.mark.parametrize("name", ["signal.images", "distill.lr"])
def test_settings_are_plain_values_too(name):
    with pytest.raises(RecipeError, match=rf"^{name}: '\[\[.* is nested too deeply"):
        Recipe().updated([f"{name}={'[' * 200}"])


def test_a_message_is_one_printable_line():
    assert one_line("a\n\tb \x1b[31m\u202e") == "a b \\x1b[31m\\u202e"
    assert one_line("x" * 5000).startswith("x" * 990 + " [...] x") and len(one_line("x" * 5000)) < 2001
    assert str(ModelError("a\nb")) == "a b"


# Checkpoints


def loaded(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    return load_model("fuzz.networks:network", weights=tmp_path / name)


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    packed_twice = io.BytesIO()
    whole = zipfile.ZipFile(io.BytesIO(checkpoints.saved({"x": torch.zeros(2**20)})))
    with zipfile.ZipFile(packed_twice, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    with pytest.raises(ModelError, match=r"net.pth \(\d+ bytes\) unpack to 4\d+ bytes, .* save model.state_dict"):
        loaded(packed_twice.getvalue(), "net.pth", tmp_path)


STRANGE = {
    "sparse": (lambda x: x.to_sparse(), "hold a sparse tensor under 'last.weight'; save plain tensors"),
    "meta": (lambda x: x.to("meta"), r"hold a tensor without values \(device meta\) under 'last.weight'"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "hold a quantized tensor under"),
    "complex": (lambda x: x.to(torch.complex64), r"last.weight \(3, 4\) complex for \(3, 4\)"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("change, said", STRANGE.values(), ids=STRANGE)
def test_tensors_of_other_kinds_are_refused(change, said, tmp_path):
    state = networks.network()[0].state_dict()
    with pytest.raises(ModelError, match=said):
        loaded(checkpoints.saved({**state, "last.weight": change(state["last.weight"])}), "net.pth", tmp_path)


def test_names_of_tensors_are_escaped(tmp_path):
    with pytest.raises(ModelError) as caught:
        loaded(safetensors.torch.save({"a\nb\x1b[31m": torch.zeros(1)}), "net.safetensors", tmp_path)
    assert "a b\\x1b[31m" in str(caught.value)


# Run directories


@pytest.fixture
def saved(tmp_path):
    networks.run().save(tmp_path / "run")
    return tmp_path / "run"


def refused(path, said):
    with pytest.raises(RunError) as caught:
        Run.load(path)
    assert said in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["student", "teacher", "signal", "layers/0001"])
def test_a_flipped_bit_of_a_tensor_is_found(name, saved):
    path = saved / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(saved, f"{path.name}: its checksum does not fit: it was altered")


def test_directories_of_before_have_no_checksum(saved):
    for path in saved.rglob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            known = {key: text for key, text in (file.metadata() or {}).items() if key != "crc32"}
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, known or None)
    assert Run.load(saved).summary == networks.run().summary


HARM = {
    "an enum of a module": ({"type": "builtins.tuple", "context": '{"__enum__": true, "fqn": "this:x", "name": "x"}',
                             "children_spec": []}, "is no tuple, list or dictionary"),
    "a factory of a module": ({"type": "collections.defaultdict", "children_spec": [], "context": {
        "default_factory_module": "this", "default_factory_name": "x", "dict_context": []}}, "is no tuple, list"),
    "a class": ({"type": "torch.Size", "context": "null", "children_spec": []}, "is no tuple, list or dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("spec, said", HARM.values(), ids=HARM)
def test_no_module_is_imported_for_a_graph(spec, said, saved):
    """As torch's own reader of nested structures would."""
    graph = json.loads((saved / "student.json").read_text())
    graph["inputs"]["spec"] = json.dumps([1, spec])
    (saved / "student.json").write_text(json.dumps(graph))
    sys.modules.pop("this", None)
    refused(saved, said)
    assert "this" not in sys.modules


def test_nested_structures_are_read_as_torch_writes_them():
    from torch.utils import _pytree as pytree

    for value in ((1, [2, ()], {"a": 3, 4: [5]}), ((), {}), 1):
        spec = pytree.tree_structure(value)
        assert spec_from_text(pytree.treespec_dumps(spec)) == spec
    with pytest.raises(NestingError, match="in the form 2 of torch, and 1 is read"):
        spec_from_text("[2, null]")


@pytest.mark.parametrize("name", ["aten.save.default", "aten._print.default", "aten.from_file.default",
                                  "aten.manual_seed.default", "aten.warn.default"])  # fmt: skip
def test_operators_that_do_more_than_compute_are_refused(name, saved, tmp_path):
    graph = json.loads((saved / "student.json").read_text())
    image = graph["nodes"][0]["name"]
    call = {"name": "harm", "op": "call_function", "target": name, "layer": None, "v_o": None, "kwargs": {"dict": {}}}
    graph["nodes"].insert(1, {**call, "args": [{"node": image}, str(tmp_path / "written")], "shape": []})
    (saved / "student.json").write_text(json.dumps(graph))
    refused(saved, f"operator {name!r} is not one this package writes")


@pytest.mark.parametrize("name", ["summary.json", "student.json"])
def test_json_nested_too_deeply_is_damage(name, saved):
    (saved / name).write_text("[" * 100_000)
    refused(saved, "is damaged: RecursionError")


def test_values_of_a_layer_have_their_kinds(saved):
    path = saved / "layers" / "0000.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["layer"])
    text = json.dumps({**record, "error_db": {"a": 1}})
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"layer": text})
    refused(saved, "error_db of a layer is {'a': 1}")


# Unfinished work


def layer(name):
    return LayerResult(name, torch.zeros(2, 3), None, torch.zeros(2), 1.0, 32, "nearest", 0.0)


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\\b", "x" * 300, "\u00e9" * 200, ".."])
def test_layers_of_any_name_stay_in_the_folder(name, tmp_path):
    kept = Checkpoints(tmp_path / "a" / "b" / "work")
    kept.write_layer(layer(name))
    assert kept.read_layer(name).name == name
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {kept.folder}


def test_a_name_that_means_the_file_of_another_is_refused(tmp_path):
    kept = Checkpoints(tmp_path / "work")
    kept.write_layer(layer("a/b"))
    with pytest.raises(
        ValueError, match=r"layer.a_b.safetensors is damaged: it holds the layer 'a/b'; delete that file"
    ):
        kept.read_layer("a_b")


def test_unfinished_work_that_was_altered_is_refused(tmp_path):
    kept = Checkpoints(tmp_path / "work")
    kept.write_layer(layer("conv"))
    path = tmp_path / "work" / "layer.conv.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"layer.conv.safetensors is damaged: its checksum does not fit"):
        kept.read_layer("conv")


# Packed files


def sealed(tmp_path, tensors, records):
    """A packed file of the student with other records of its tensors."""
    student = networks.run().student
    text = json.dumps({"graph": graph_to_json(student), "tensors": records})
    content = {**tensors_of(student), **tensors, packed.GRAPH: packed._as_tensor(zlib.compress(text.encode()))}
    (tmp_path / "net.safetensors").write_bytes(packed._sealed({k: v for k, v in content.items() if k not in records}))
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(
    "record, said",
    [
        ({"dtype": "float32", "shape": [2**20, 2**20], "value": 0.0}, "its tensors take 4398046511104 bytes, and 26"),
        (
            {"dtype": "float32", "shape": [2**62, 2], "value": 0.0},
            "bytes are allowed|are allowed for a file of its size",
        ),
        ({"dtype": "int8", "shape": [-1, 4], "value": 0}, "a side of a tensor is below 0"),
        ({"dtype": "int8", "shape": ["x"], "value": 0}, "a side of a tensor is below 0, or no number"),
        ({"dtype": "9" * 5000, "shape": [1], "value": 0}, "are not coded; allowed are bool"),
        ({"dtype": "int8", "shape": [2**40], "bits": 1, "num_gaps": 0, "num_lows": 1}, "are allowed for a file of its"),
    ],
)
def test_constants_of_absurd_shapes_are_refused(record, said, tmp_path):
    path = sealed(tmp_path, {}, {"last.weight": record})
    with pytest.raises(packed.PackedError, match=said):
        packed.load(path)


@pytest.mark.slow
def test_a_packed_bomb_is_refused(tmp_path):
    bomb = packed._as_tensor(zlib.compress(bytes(2**28 + 2**25)))
    (tmp_path / "net.safetensors").write_bytes(packed._sealed({packed.WHOLE: bomb}))
    with pytest.raises(packed.PackedError, match=r"squeezed bytes hold more than \d+, which are allowed"):
        packed.load(tmp_path / "net.safetensors")


def test_squeezed_bytes_are_whole():
    data = zlib.compress(b"x" * 100)
    assert inflated(data, 100) == b"x" * 100
    with pytest.raises(ValueError, match="hold more than 99, which are allowed"):
        inflated(data, 99)
    with pytest.raises(ValueError, match="squeezed bytes are cut short"):
        inflated(data[:-3], 100)


# ONNX files


def written(tmp_path, *nodes, shape=("n", 3, 8, 8), **constants):
    made = onnx_files.model(*nodes, **constants)
    made.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", 1, shape))
    (tmp_path / "net.onnx").write_bytes(made.SerializeToString())
    return str(tmp_path / "net.onnx")


def ints(*values):
    return np.array(values, np.int64)


END = node("Add", ["c", "k"], ["y"])
SIDES = node("Shape", ["c"], ["d"])


def chained(operator, names, *more, count, **attributes):
    """A node of this kind after another, each on what the one before gave."""
    steps = [names[0], *(f"{names[1]}{i}" for i in range(count))]
    given = [[x, *(more or [x])] for x in steps]
    return [node(operator, given[i], [steps[i + 1]], **attributes) for i in range(count)]


ONE = np.float32(1)
TABLE = {"a": np.zeros((60_000, 1), np.float32), "b": np.zeros((1, 60_000), np.float32)}
COLUMNS = [node("ReduceProd", ["e23"], ["k"], keepdims=0), node("Reshape", ["c", "k"], ["y"])]
COUNTED = [
    node("Gather", ["d", "two"], ["f"]), node("Mul", ["f", "s"], ["e"]), node("Range", ["zero", "e", "one"], ["k"]),
    node("Reshape", ["c", "k"], ["y"]),
]  # fmt: skip
NUMBERS = {"zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "s": np.int64(2**40)}
RESHAPED = node("Reshape", ["c", "k"], ["y"])
BOMBS = {
    "a constant of a shape": ([node("ConstantOfShape", ["s"], ["k"]), END], {"s": ints(2**30, 2**10)}, "makes"),
    "an expanded constant": ([node("Expand", ["o", "s"], ["k"]), END], {"o": ONE, "s": ints(2**40)}, "makes"),
    "a tile": ([node("Tile", ["o", "s"], ["k"]), END], {"o": ints(1), "s": ints(2**40)}, "makes 1099511627776"),
    "a range": ([node("Range", ["zero", "s", "one"], ["k"]), END], NUMBERS, "of constants makes"),
    "a table of two columns": ([node("Add", ["a", "b"], ["k"]), END], TABLE, "of constants makes 3600000000 values"),
    "images of a size": (
        [node("Resize", ["c", "", "s"], ["y"])], {"s": np.array([1, 1, 1e4, 1e4], np.float32)}, "makes a value of"),
    "a border": ([node("Pad", ["c", "p"], ["y"])], {"p": ints(0, 0, 2**20, 0, 0, 0, 0, 2**20)}, "makes a value of"),
    "sizes of sizes": ([SIDES, *chained("Concat", "de", count=24, axis=0), *COLUMNS], {}, "numbers of a shape"),
    "a power": (
        [SIDES, *chained("Pow", "de", "t", count=3), node("Reshape", ["c", "e2"], ["y"])], {"t": ints(64)},
        "comes to a size that no tensor has"),
    "a higher power": ([SIDES, node("Pow", ["d", "s"], ["k"]), RESHAPED], NUMBERS, "to more than the 64th power"),
    "a range over sizes": ([SIDES, *COUNTED], NUMBERS, "numbers of a shape"),
}  # fmt: skip


@pytest.mark.parametrize("nodes, constants, said", BOMBS.values(), ids=BOMBS)
def test_what_a_file_makes_too_large_is_refused(nodes, constants, said, tmp_path):
    with pytest.raises(ModelError) as caught:
        load_model(written(tmp_path, *nodes, **constants))
    assert said in str(caught.value) and str(caught.value).startswith(str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("side", [2**62, 2**31, 40_000])
def test_absurd_images_are_refused(side, tmp_path):
    path = written(tmp_path, node("Relu", ["c"], ["y"]), shape=(1, 3, side, side))
    with pytest.raises(ModelError, match="is larger than any image; say another size"):
        load_model(path)


def test_a_network_that_reads_no_input_is_refused(tmp_path):
    made = onnx_files.model(node("Relu", ["c"], ["y"]))
    made.graph.node[0].input[0] = "z"
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 3, 8, 8), np.float32), "z"))
    (tmp_path / "net.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=r"net\.onnx"):
        load_model(str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/../../secret", ".", "link"])
def test_weights_outside_of_the_folder_are_refused(place, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(432))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "link").symlink_to(tmp_path / "secret")
    made = onnx_files.outside(onnx_files.model(node("Relu", ["c"], ["y"])), place)
    (tmp_path / "net" / "net.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=r"which cannot be read|which is not there"):
        load_model(str(tmp_path / "net" / "net.onnx"))


# Images


def picture_of(side):
    """A .png that says it is so large and holds nothing."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def lying(content, size):
    """The archive whose directory says that its first member has `size` bytes."""
    place = content.index(b"PK\x01\x02") + 24
    return content[:place] + struct.pack("<I", size) + content[place + 4 :]


PIXELS = np.zeros((1, 8, 8, 3), np.uint8)
FLOATS = np.ones((1, 3, 8, 8))
NOT_FINITE = "x.npy: images hold 192 of 192 values that are NaN or inf; write finite ones"


def with_shape(shape):
    """A .npy whose header says so."""
    return images.array(PIXELS).replace(b"(1, 8, 8, 3)", shape)


FILES = {
    "a huge picture": ("x.png", picture_of(12_000), r"x.png has 12000 x 12000 pixels; \d+ are allowed for a file of"),
    "a larger picture": ("x.png", picture_of(60_000), "x.png cannot be read as an image"),
    "PostScript": ("x.png", images.picture("EPS"), "cannot be read as an image"),
    "a bomb": (
        "x.npz", lying(images.archive(x=PIXELS, y=np.arange(1)), 2**32 - 2),
        r"x.npz unpacks to 4\d+ bytes; \d+ are allowed for a file of its size"),
    "a huge array": ("x.npy", with_shape(b"(9999999999, 8, 8, 3)"), "x.npy cannot be read"),
    "a negative side": ("x.npy", with_shape(b"(-1, 8, 8, 3)"), "x.npy"),
    "NaN": ("x.npy", images.array(FLOATS * np.nan), NOT_FINITE),
    "too large for float32": ("x.npy", images.array(FLOATS * 1e300), NOT_FINITE),
    "nothing": ("x.npz", b"", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, said", FILES.values(), ids=FILES)
def test_images_that_do_harm_are_refused(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    path = tmp_path if name.endswith("png") else tmp_path / name
    with pytest.raises(ImagesError, match=said):
        load_unlabelled(path, shape=(3, 8, 8), used=None)


def test_members_that_are_no_arrays_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x", b"text")
        archive.writestr("y", b"text")
    with pytest.raises(ImagesError, match="holds the arrays x, y; expected x"):
        load_images(tmp_path / "x.npz", size=(8, 8), channels=3)
    with pytest.raises(ImagesError, match="holds the arrays x, y; expected x"):
        load_unlabelled(tmp_path / "x.npz", shape=(3, 8, 8), used=None)


def test_labelled_images_that_are_not_finite_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.full((2, 3, 8, 8), np.inf, np.float32), y=np.arange(2))
    with pytest.raises(ImagesError, match="images hold 384 of 384 values that are NaN or inf; write finite ones"):
        list(load_images(tmp_path / "x.npz", size=(8, 8), channels=3))


# All of it


def test_the_bound_is_what_security_states():
    text = (Path(__file__).parents[1] / "SECURITY.md").read_text()
    assert most_bytes(0) == 256 * 2**20 and most_bytes(1000) - most_bytes(0) == 64_000
    assert "64 times" in text and "256 MiB" in text


COMMANDS = {
    "bomb.yaml": "compress fuzz.networks:network --recipe bomb.yaml --out new",
    "bomb.pth": "inspect fuzz.networks:network --weights bomb.pth",
    "bomb.onnx": "inspect bomb.onnx",
    "bomb.npz": "compress fuzz.networks:network --recipe w8a8 --images bomb.npz --out new",
    "run": "evaluate run --data x.npz",
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_the_command_line_says_one_line(line, saved, tmp_path, monkeypatch, capsys):
    (tmp_path / "bomb.yaml").write_text(recipes.HARM[0])
    (tmp_path / "bomb.pth").write_bytes(checkpoints.saved({"x\n\x1b": torch.zeros(1)}))
    nodes, constants, _ = BOMBS["a constant of a shape"]
    Path(written(tmp_path, *nodes, **constants)).rename(tmp_path / "bomb.onnx")
    (tmp_path / "bomb.npz").write_bytes(FILES["a bomb"][1])
    (saved / "student.json").write_text("[" * 100_000)
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ") and err[:-1].isprintable(), err
    assert not (tmp_path / "new").exists()
