"""What people have at hand is read; what cannot be right is refused in one line before anything is done."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from datafree import Recipe, compress, inspect
from datafree.app.cli import main
from datafree.arguments import ArgumentsError, read_arguments, read_example, read_images, read_recipe
from datafree.images import ImagesError
from datafree.recipe import RecipeError
from nets import NETS

FEW = "weights: {bits: 8}\nsignal: {images: 2}\n"
X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@functools.cache
def chain():
    return NETS["chain"]()[0]


def student_of(recipe, example=(1, 3, 8, 8), **more):
    """Everything a student holds."""
    return compress(chain(), recipe, example, **more).student.state_dict()


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# Recipes


def test_a_recipe_is_a_preset_a_file_or_itself(tmp_path):
    (tmp_path / "my.yaml").write_text(FEW)
    recipe = Recipe.parse(FEW)
    assert read_recipe(recipe) is recipe
    assert read_recipe(tmp_path / "my.yaml") == read_recipe(str(tmp_path / "my.yaml")) == recipe
    assert read_recipe("w4a8") == Recipe.preset("w4a8")


def test_other_recipes_are_refused():
    with pytest.raises(RecipeError, match=r'^recipe is dict; give a preset such as "w4a8", a \.yaml file, or a Recipe'):
        read_recipe({"weights": {"bits": 4}})
    with pytest.raises(RecipeError, match=r"there is no preset 'w4a9'; did you mean w4a8\? Presets are"):
        read_recipe("w4a9")


# Examples


@pytest.mark.parametrize(
    "example",
    [X[:1], X[:1].numpy(), X[:1].double().numpy(), (1, 3, 8, 8), [1, 3, 8, 8], X[:1].shape, X[:1].half(), (X[:1],)],
    ids=["tensor", "array", "array of float64", "shape", "list", "torch.Size", "float16", "tuple"],
)
def test_an_example_is_a_tensor_an_array_or_a_shape(example):
    read = read_example(example, chain())
    (read,) = read if isinstance(read, tuple) else (read,)
    assert read.shape == (1, 3, 8, 8) and read.dtype == torch.float32 and not read.any()


def test_a_shape_gives_the_student_that_a_tensor_gives():
    recipe = Recipe.parse(FEW)
    assert same(student_of(recipe), student_of(recipe, X[:1]))


def test_several_inputs_may_be_shapes():
    read = read_example(((1, 3, 8, 8), X[:1]), chain())
    assert isinstance(read, tuple) and [x.shape for x in read] == [(1, 3, 8, 8)] * 2


def test_integers_stay_integers():
    assert read_example(torch.zeros(1, 4, dtype=torch.int64), chain()).dtype == torch.int64


@pytest.mark.parametrize("example, kind", [("photo.png", "str"), (None, "NoneType"), ((X, "y"), "str"), ([], "list")])
def test_other_examples_are_refused(example, kind):
    with pytest.raises(ArgumentsError, match=rf"^the example holds {kind}; give an input of the network as a tensor"):
        read_example(example, chain())


# Inputs by name


class Named(nn.Module):
    """An image by keyword alone, and a shift of it."""

    def __init__(self):
        super().__init__()
        self.net = NETS["chain"]()[0]

    def forward(self, *, image, scale=2.0, shift=None):
        return self.net(image * scale if shift is None else image * scale + shift)


def test_inputs_may_be_given_by_name(tmp_path):
    model = Named().eval()
    run = compress(model, Recipe.parse(FEW), {"shift": X[:1], "image": (1, 3, 8, 8)})
    with torch.no_grad():
        by_name = run.student(image=X, shift=X + 1)
        assert torch.equal(by_name, run.student(X, X + 1))
        torch.testing.assert_close(run.teacher(image=X, shift=X + 1), model(image=X, shift=X + 1), rtol=1e-3, atol=1e-3)
        run.save(tmp_path / "run")
        assert torch.equal(type(run).load(tmp_path / "run").student(image=X, shift=X + 1), by_name)


def test_a_name_that_forward_does_not_have_is_refused():
    with pytest.raises(ArgumentsError, match=r"the example names picture; forward of Named takes .*image.*, .*scale"):
        read_example({"picture": X}, Named())
    with pytest.raises(ArgumentsError, match="the example names no inputs; forward of Named"):
        read_example({}, Named())


# Images


def loader(*batches):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batches), batch_size=2)


@pytest.mark.parametrize(
    "images",
    [X, X.numpy(), X.double(), loader(X), loader(X, torch.arange(5)), [X[:3], X[3:]], iter([{"input 0": X}]), (X,)],
    ids=["tensor", "array", "float64", "loader", "loader with labels", "list", "dictionaries", "tuple"],
)
def test_images_come_from_everywhere(images):
    (found,) = read_images(images, chain(), X[:1])
    torch.testing.assert_close(found, X)


def test_of_many_batches_the_first_are_taken():
    (found,) = read_images((torch.full((50, 3, 8, 8), float(i)) for i in range(100)), chain(), X[:1])
    assert len(found) == 128 and found[-1, 0, 0, 0] == 2


def test_several_inputs_are_read_from_batches_and_by_name():
    example = {"image": X[:1], "shift": X[:1]}
    for images in (loader(X, X + 1, torch.arange(5)), {"shift": X + 1, "image": X}, (X, X + 1)):
        image, shift = read_images(images, Named(), example)
        assert torch.equal(image, X) and torch.equal(shift, X + 1)


def test_a_folder_and_a_run_are_read(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "photos").mkdir()
    image.fromarray(np.full((8, 8, 3), 51, np.uint8)).save(tmp_path / "photos/one.png")
    (found,) = read_images(str(tmp_path / "photos"), chain(), X[:1])
    torch.testing.assert_close(found, torch.full((1, 3, 8, 8), 0.2))
    run = compress(chain(), Recipe.parse(FEW), X[:1])
    run.save(tmp_path / "run")
    assert read_images(tmp_path / "run", chain(), X[:1]).summary == run.summary
    assert read_images(run, chain(), X[:1]) is run


def test_real_images_need_no_word_in_the_recipe():
    read = read_arguments(chain(), "w4a8", X[:1], X)
    assert read.recipe.signal.kind == "loader" and read.recipe.weights == Recipe.preset("w4a8").weights
    assert read_arguments(chain(), "w4a8", X[:1], (X,)).recipe == Recipe.preset("w4a8"), "those that a run made"
    assert read_arguments(chain(), "w4a8", X[:1]).recipe == Recipe.preset("w4a8")
    asked = Recipe.parse(FEW).updated(["signal.kind=loader", "signal.restandardise=true"])
    assert read_arguments(chain(), asked, X[:1], X).recipe == asked


def test_images_of_a_tensor_are_those_of_a_loader():
    asked = Recipe.parse(FEW).updated(["signal.kind=loader"])
    assert same(student_of(Recipe.parse(FEW), images=loader(X, torch.arange(5))), student_of(asked, images=(X,)))


BROKEN = X.clone()
BROKEN[0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])


@pytest.mark.parametrize(
    "images, message",
    [
        (BROKEN, r"^images hold 2 of 960 values that are NaN or inf; look at how they are read"),
        (X[:, :1], r"^images are \(5, 1, 8, 8\), the network's example is \(N, 3, 8, 8\); they have 1 channels, it"),
        (X.permute(0, 2, 3, 1), r"they have 8 channels, it takes 3 \(they are last here; use x.permute\(0, 3, 1"),
        (X[..., :4], r"resize them, or give an example of their size"),
        (X[0], r"^images are \(3, 8, 8\), .*; give them in that shape"),
        (X[:0], r"none; give some, or leave them out and they are made"),
        (X.to(torch.uint8), r"^images are 8-bit pixels; give what the network sees, \(x / 255 - mean\) / std"),
        ((X, X), r"^images hold 2 tensors, the network has 1 inputs; give one for each"),
        ([], r"^images hold no batch"),
        ([()], r"^a batch holds 0 tensors; expected input 0, and labels or none"),
        ([["a"]], r"^images hold str; give tensors \(N, C, H, W\)"),
        (3, r"^images are int; give a tensor, a DataLoader, a folder or a run, or leave them out"),
        ({"image": X}, r"^images are of image; the network takes input 0"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_right_are_refused(images, message):
    with pytest.raises(ImagesError, match=message):
        compress(chain(), Recipe.parse(FEW), X[:1], images=images)


def test_only_one_input_is_read_from_a_folder(tmp_path):
    with pytest.raises(ImagesError, match="the network has 2 inputs; give their images as a tuple of tensors"):
        read_images(tmp_path, Named(), {"image": X[:1], "shift": X[:1]})


# Networks


@pytest.mark.parametrize("act", [compress, lambda model, recipe, x: inspect(model, x, recipe=recipe)])
def test_networks_without_layers_are_refused(act):
    with pytest.raises(
        ValueError, match=r"no layer that can be compressed \(conv2d, .*\), it computes relu; give the part"
    ):
        act(nn.Sequential(nn.ReLU()), "w8a8", (1, 3, 8, 8))
    with pytest.raises(ValueError, match="it computes nothing"):
        act(nn.Identity(), "w8a8", (1, 3, 8, 8))


def test_the_command_line_refuses_them_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "factory_of_nothing.py").write_text("from torch import nn\ndef net():\n    return nn.ReLU()\n")
    monkeypatch.chdir(tmp_path)
    for command in (["inspect"], ["compress", "--out", "run"]):
        assert main([command[0], "factory_of_nothing:net", *command[1:]]) == 2
        assert "no layer that can be compressed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []


def test_attention_is_left_in_float_and_said():
    """A class token is a constant that is joined to what comes in."""
    run = compress(Transformer().eval(), Recipe.parse(FEW), X[:1])
    assert run.summary.num_quantized == 4
    assert [s.reason.split(" is ")[0] for s in run.summary.skipped] == [
        "left in float: aten.scaled_dot_product_attention.default"
    ]
    with torch.no_grad():
        wanted = run.teacher(X)
        assert float((run.student(X) - wanted).norm()) < 0.2 * float(wanted.norm())


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_encoder_of_torch_is_compressed(batch_first):
    """Its attention takes views of queries, keys and values that lie apart."""
    torch.manual_seed(0)
    model = Encoder(batch_first).eval()
    run = compress(model, Recipe.parse(FEW), X[:1])
    names = [
        "patches",
        *(f"encoder.{name}" for name in ("self_attn", "self_attn.out_proj", "linear1", "linear2")),
        "head",
    ]
    assert [layer.name for layer in run.layers] == names
    with torch.no_grad():
        wanted = model(X)
        assert torch.allclose(run.teacher(X), wanted, atol=1e-5)
        assert float((run.student(X) - wanted).norm()) < 0.2 * float(wanted.norm())


class Encoder(nn.Module):
    """Patches, one layer of PyTorch's own encoder, and a class."""

    def __init__(self, batch_first):
        super().__init__()
        self.patches, self.head, self.batch_first = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5), batch_first
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)

    def forward(self, x):
        x = self.patches(x).flatten(2)
        x = x.permute(0, 2, 1) if self.batch_first else x.permute(2, 0, 1)
        return self.head(self.encoder(x).mean(1 if self.batch_first else 0))


class Transformer(nn.Module):
    """Patches, a class token, attention, and a class."""

    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.qkv, self.out, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.head(x[:, 0])
