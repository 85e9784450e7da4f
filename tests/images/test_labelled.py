"""Labelled images: every layout gives the same batches, and one clear line for everything that is wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datafree.extras import install
from datafree.images.labelled import ImagesError, Pixels, load_images


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save_npz(folder: Path, **arrays: object) -> Path:
    path = folder / "images.npz"
    np.savez(path, **arrays)
    return path


def save_image(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def all_of(images) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(images)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


# --- what is read


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pixels_of_an_archive_are_normalised_batch_by_batch(tmp_path, save):
    pixels, labels = random_pixels(205, 6, 5, 3), np.arange(205) % 7
    save(tmp_path / "a.npz", x=pixels, y=labels)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    images = load_images(tmp_path / "a.npz", size=(6, 5), channels=3, mean=mean, std=std)
    assert images.num_images == 205
    assert [tuple(x.shape) for x, _ in images] == [(100, 3, 6, 5), (100, 3, 6, 5), (5, 3, 6, 5)]
    x, y = all_of(images)
    expected = torch.from_numpy(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    torch.testing.assert_close(x, expected)
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and y.tolist() == labels.tolist()
    again, _ = all_of(images)
    assert torch.equal(x, again)


def test_without_mean_and_std_pixels_are_in_0_to_1(tmp_path):
    pixels = np.array([0, 51, 255], dtype=np.uint8).reshape(1, 1, 3, 1)
    x, _ = all_of(load_images(save_npz(tmp_path, x=pixels, y=[4]), size=(1, 3), channels=1))
    torch.testing.assert_close(x.flatten(), torch.tensor([0, 0.2, 1]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_float_arrays_are_used_as_they_are(tmp_path, dtype):
    values = np.linspace(-2, 2, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4).astype(dtype)
    path = save_npz(tmp_path, x=values, y=np.array([1, 0], dtype=np.uint8))
    x, y = all_of(load_images(path, size=(4, 4), channels=3, mean=(9.0,) * 3, std=(9.0,) * 3))
    assert np.array_equal(x.numpy(), values.astype(np.float32))
    assert x.dtype == torch.float32 and y.tolist() == [1, 0]


def test_an_archive_is_read_lazily(tmp_path):
    """A damaged last batch is met only when it is read."""
    path = save_npz(tmp_path, x=random_pixels(300, 8, 8, 3), y=np.zeros(300, int))
    content = bytearray(path.read_bytes())
    content[290 * 8 * 8 * 3] ^= 0xFF
    path.write_bytes(content)
    batches = iter(load_images(path, size=(8, 8), channels=3))
    assert next(batches)[0].shape == (100, 3, 8, 8)
    assert next(batches)[0].shape == (100, 3, 8, 8)
    with pytest.raises(ImagesError, match=r"images.npz cannot be read \(Bad CRC-32.*write it again with np.savez"):
        next(batches)


def test_a_folder_gives_sorted_classes_and_what_an_archive_gives(tmp_path):
    pixels = random_pixels(5, 9, 7, 3)
    names = ["dog/2.png", "cat/1.PNG", "cat/0.png", "emu/deep/er/0.png", "dog/1.png"]
    for name, image in zip(names, pixels, strict=True):
        save_image(tmp_path / "folder" / name, image)
    (tmp_path / "folder" / ".cache").mkdir()
    (tmp_path / "folder" / "cat" / "notes.txt").write_text("no image")
    images = load_images(tmp_path / "folder", size=(4, 6), channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    x, y = all_of(images)
    assert images.num_images == 5 and y.tolist() == [0, 0, 1, 1, 2]
    archive = save_npz(tmp_path, x=pixels[[2, 1, 4, 0, 3]], y=y.numpy())
    expected, _ = all_of(load_images(archive, size=(4, 6), channels=3, mean=(0.5,) * 3, std=(0.2,) * 3))
    assert x.shape == (5, 3, 4, 6) and torch.equal(x, expected)


def test_resizing_is_pillows_bilinear(tmp_path):
    pixels = random_pixels(20, 30, 3)
    save_image(tmp_path / "c" / "0.png", pixels)
    x, _ = all_of(load_images(tmp_path, size=(8, 12), channels=3))
    expected = np.asarray(Image.fromarray(pixels).resize((12, 8), Image.Resampling.BILINEAR))
    assert np.array_equal((x[0] * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_integer_class_folders_are_the_labels_themselves(tmp_path):
    for label in ("10", "2", "007"):
        save_image(tmp_path / label / "0.jpg", random_pixels(8, 8, 3))
    _, y = all_of(load_images(tmp_path, size=(8, 8), channels=3))
    assert sorted(y.tolist()) == [2, 7, 10]


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 8, 3)), (3, (8, 8)), (3, (8, 8, 4))])
def test_files_are_converted_to_the_networks_channels(tmp_path, channels, shape):
    save_image(tmp_path / "c" / "0.png", random_pixels(*shape))
    x, _ = all_of(load_images(tmp_path, size=(8, 8), channels=channels))
    assert x.shape == (1, channels, 8, 8)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "mean and std go together: give both, or neither"),
        ({"mean": (0.5,) * 2, "std": (1.0,) * 2}, "mean has 2 values; give one for each of 3 channels"),
        ({"mean": (0.5,) * 3, "std": (1.0,) * 2}, "std has 2 values; give one for each of 3 channels"),
        (
            {"mean": (0.5,) * 3, "std": (1.0, 0.0, 1.0)},
            r"std is \(1.0, 0.0, 1.0\); every value must be above 0",
        ),
    ],
)
def test_mean_and_std_must_fit(options, message):
    with pytest.raises(ImagesError, match=message):
        Pixels(size=(8, 8), channels=3, **options)


def test_the_path_must_be_a_folder_or_an_archive(tmp_path):
    with pytest.raises(ImagesError, match=r"nowhere do not exist; give a folder of CLASS/\*.png or an .npz"):
        load_images(tmp_path / "nowhere", size=(8, 8), channels=3)
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(ImagesError, match=r"x.npy are neither a folder nor .npz"):
        load_images(str(tmp_path / "x.npy"), size=(8, 8), channels=3)


FLOATS = np.zeros((2, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        pytest.param({"images": FLOATS}, "holds the arrays images; expected x and y", id="names"),
        pytest.param({"x": FLOATS}, "holds the arrays x; expected x and y", id="no labels"),
        pytest.param({}, "holds the arrays none; expected x and y", id="nothing"),
        pytest.param(
            {"x": FLOATS.astype(int), "y": [0, 1]},
            r"x is int64 \(2, 3, 8, 8\); expected uint8",
            id="integers",
        ),
        pytest.param({"x": FLOATS[0], "y": [0]}, r"x is float32 \(3, 8, 8\); expected uint8 \(N, H", id="one image"),
        pytest.param(
            {"x": random_pixels(2, 3, 8, 8), "y": [0, 1]},
            r"x is uint8 \(2, 3, 8, 8\), read as \(N, H, W, C\) with 8 channels; the network takes 3;",
            id="pixels with channels first",
        ),
        pytest.param({"x": FLOATS[:, :1], "y": [0, 1]}, r"with 1 channels; the network takes 3", id="grey"),
        pytest.param(
            {"x": FLOATS[..., :6], "y": [0, 1]},
            r"used as it is, but the network takes \(8, 8\) \(H, W\); resize x, or give uint8",
            id="float of another size",
        ),
        pytest.param({"x": FLOATS, "y": [0, 1, 2]}, "holds 2 images and 3 labels; expected one", id="lengths"),
        pytest.param({"x": FLOATS, "y": [0, -1]}, "the label -1 is negative; expected class indices", id="negative"),
        pytest.param({"x": FLOATS, "y": [0.0, 1]}, r"y is float64 \(2,\); expected integer class", id="float labels"),
        pytest.param({"x": FLOATS, "y": [[0], [1]]}, r"y is int64 \(2, 1\); expected integer class", id="one-hot"),
        pytest.param({"x": FLOATS[:0], "y": np.zeros(0, int)}, r"holds no images; x is \(0, 3, 8, 8\)", id="empty"),
        pytest.param({"x": np.asfortranarray(FLOATS), "y": [0, 1]}, "x is in Fortran order; save np.asc", id="order"),
        pytest.param({"x": FLOATS, "y": [{}, None]}, "cannot be read .*allow_pickle=False", id="pickled labels"),
        pytest.param({"x": np.array([{}]), "y": [0]}, r"x is object \(1,\); expected uint8", id="pickled images"),
    ],
)
def test_a_wrong_archive_is_refused(tmp_path, arrays, message):
    with pytest.raises(ImagesError, match=message) as caught:
        load_images(save_npz(tmp_path, **arrays), size=(8, 8), channels=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_archive_cut_short_is_refused(tmp_path, share):
    path = save_npz(tmp_path, x=FLOATS, y=[0, 1])
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImagesError, match=r"images.npz cannot be read \(.*\); write it again with np.savez"):
        load_images(path, size=(8, 8), channels=3)


def test_a_folder_without_images_is_refused(tmp_path):
    save_image(tmp_path / "0.png", random_pixels(8, 8, 3))
    with pytest.raises(ImagesError, match=r"holds no images; expected .*/CLASS/\*.png or \*.jpg, one folder a class"):
        load_images(tmp_path, size=(8, 8), channels=3)


def test_a_negative_class_folder_is_refused(tmp_path):
    save_image(tmp_path / "-3" / "0.png", random_pixels(8, 8, 3))
    with pytest.raises(ImagesError, match="the label -3 is negative"):
        load_images(tmp_path, size=(8, 8), channels=3)


def test_image_files_have_1_or_3_channels(tmp_path):
    save_image(tmp_path / "c" / "0.png", random_pixels(8, 8, 3))
    with pytest.raises(ImagesError, match=r"image files have 1 or 3 channels, the network takes 4; give an .npz"):
        load_images(tmp_path, size=(8, 8), channels=4)


@pytest.mark.parametrize("damage", ["text", "cut short", "empty"])
@pytest.mark.parametrize("name", ["0.png", "0.jpg"])
def test_a_damaged_file_is_named(tmp_path, damage, name):
    path = save_image(tmp_path / "c" / name, random_pixels(64, 64, 3))
    content = path.read_bytes()
    path.write_bytes({"text": b"no image", "cut short": content[: len(content) // 2], "empty": b""}[damage])
    images = load_images(tmp_path, size=(8, 8), channels=3)
    with pytest.raises(ImagesError, match=rf"c/{name} cannot be read as an image \(.*\); replace or remove it"):
        list(images)


def test_more_than_8_bits_a_pixel_are_refused(tmp_path):
    save_image(tmp_path / "c" / "0.png", random_pixels(8, 8).astype(np.uint16) * 200)
    with pytest.raises(ImagesError, match=r"has more than 8 bits a pixel \(mode I;16\); save it with 8 bits"):
        list(load_images(tmp_path, size=(8, 8), channels=1))


def test_without_pillow_the_error_names_the_extra(tmp_path, monkeypatch):
    save_image(tmp_path / "c" / "0.png", random_pixels(8, 8, 3))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImagesError, match=re.escape(f"needs Pillow; {install('models')}")):
        list(load_images(tmp_path, size=(8, 8), channels=3))
