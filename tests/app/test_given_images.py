"""Images without labels: read from folders and arrays, and those of a run written for other tools."""

import numpy as np
import pytest
import torch

from datafree import Recipe, compress
from datafree.app.cli import main
from datafree.app.given_images import write_images
from datafree.images import ImagesError, load_unlabelled
from datafree.models import Normalization
from datafree.records import InputRange
from datafree.run import RunError
from nets import NETS, compressed

Image = pytest.importorskip("PIL.Image")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "test")
SHAPE = (3, 8, 8)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The same five images as files, as pixels and as floats."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/deep").mkdir(parents=True)
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "photos/deep" / f"{number}.png")
    np.save("pixels.npy", PIXELS)
    np.savez("pixels.npz", x=PIXELS)
    np.save("floats.npy", (PIXELS.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32))
    np.savez("other.npz", y=PIXELS)
    np.save("none.npy", PIXELS[:0])
    np.save("grey.npy", PIXELS[..., :1])
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["photos", "pixels.npy", "pixels.npz", "floats.npy"])
def test_every_place_gives_the_same_images(places, name):
    found = load_unlabelled(places / name, shape=SHAPE, used=HALF)
    torch.testing.assert_close(found, torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 127.5 - 1)


def test_many_images_are_taken_from_all_over(places):
    np.save("many.npy", np.arange(1000, dtype=np.float32).reshape(-1, 1, 1, 1).repeat(3, 1).repeat(8, 2).repeat(8, 3))
    found = load_unlabelled(places / "many.npy", shape=SHAPE, used=None)[:, 0, 0, 0]
    assert len(found) == 128 and found[0] == 0 and found[-1] > 980 and (found.diff() > 6).all()


@pytest.mark.parametrize(
    "name, message",
    [
        ("empty", r"empty holds no run \(summary.json\) and no .png or .jpg; give a folder that does"),
        ("gone.npy", "gone.npy do not exist; give a run, a folder"),
        ("photo.gif", "photo.gif are no folder, .npy or .npz"),
        ("other.npz", "holds the arrays y; expected x"),
        ("none.npy", "none.npy holds no images"),
        ("grey.npy", "with 1 channels; the network takes 3"),
    ],
)
def test_what_does_not_fit_is_named(places, name, message):
    with pytest.raises(ImagesError, match=message):
        load_unlabelled(places / name, shape=SHAPE, used=None)


def test_only_pictures_are_read_from_disk(places):
    with pytest.raises(ImagesError, match=r"images are \(C, H, W\), this network takes \(5,\); give tensors"):
        load_unlabelled(places / "pixels.npy", shape=(5,), used=None)


def test_made_images_are_written_as_pixels_and_as_the_network_sees_them(tmp_path):
    net, inputs = NETS["residual"]()
    recipe = Recipe.preset("w8a8").updated(["signal.kind=matched", "signal.images=3", "signal.steps=1"])
    run = compress(net, recipe, inputs, on_range=InputRange((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "test"))
    assert write_images(run, tmp_path / "out") == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0000.png", "0001.png", "0002.png", "images.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "out/images.npy"), run.images[0].numpy())
    shown = np.array(Image.open(tmp_path / "out/0000.png"))
    grey = run.images[0][0] == run.images[0][0].clamp(-1, 1)  # not cut off at black or white
    wanted = run.images[0][0] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    wanted = 255 * (wanted + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
    assert (torch.from_numpy(shown).permute(2, 0, 1).float() - wanted)[grey].abs().max() <= 0.51
    with pytest.raises(RunError, match=r"out exists; choose another --out"):
        write_images(run, tmp_path / "out")


def test_a_run_without_images_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"keeps no pictures: its signal is 'propagated'; compress with signal.kind=inv"):
        write_images(compressed("residual", "signal: {images: 2}\nsolve: {method: nearest}\n"), tmp_path / "out")


def test_the_commands(places, capsys):
    """Made images of one run, real ones, and both together."""
    (places / "tiny_factory_of_given_images.py").write_text(
        "import torch\nfrom nets import NETS\ndef net():\n    return NETS['residual']()[0], torch.zeros(1, 3, 8, 8)\n"
    )
    few = ["--recipe", "w8a8", "--estimate", "none", "--set", "signal.images=2"]
    first = ["compress", "tiny_factory_of_given_images:net", *few]
    made = ["--set", "signal.kind=matched", "--set", "signal.steps=1"]
    assert main([*first, *made, "--out", "made"]) == 0
    assert main(["images", "made", "--out", "shown"]) == 0
    assert "2 images of made are in shown" in capsys.readouterr().out
    normal = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    real = [*first, "--images", "photos", *normal, "--out", "real"]
    assert main(real) == 0
    assert "loader, 5 images; distance from BatchNorm" in " ".join(capsys.readouterr().out.split())
    assert main([*real[:-1], "both", "--images", "made"]) == 0
    assert "loader, 7 images" in capsys.readouterr().out
