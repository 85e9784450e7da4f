"""Probe images: shape, statistics, determinism, and the rasteriser against a plain restatement."""

import math

import pytest
import torch

from alive import Alive
from datafree.signals import probes
from datafree.signals.probes import dead_leaves, pink_noise

KINDS = pytest.mark.parametrize("draw", [dead_leaves, pink_noise], ids=["leaves", "pink"])
SIZES = {
    "rgb": (4, 3, 32, 32),
    "digits": (6, 1, 8, 8),
    "wide": (3, 4, 12, 40),
    "tall": (3, 12, 33, 5),
    "line": (4, 2, 1, 64),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def drawn(draw, size, seed=0):
    n, c, h, w = size
    return draw(n, height=h, width=w, channels=c, generator=seeded(seed))


def power_ratio(images):
    """Mean power below 1/16 cycles a pixel (without the constant) over mean power above 1/4."""
    power = torch.fft.fft2(images).abs().square().mean((0, 1))
    frequency = torch.hypot(torch.fft.fftfreq(images.shape[2])[:, None], torch.fft.fftfreq(images.shape[3]))
    return (power[(frequency > 0) & (frequency < 1 / 16)].mean() / power[frequency > 1 / 4].mean()).item()


def neighbour_correlation(images):
    return (images[..., 1:] * images[..., :-1]).mean().item()


def first_leaf_over(leaves, image, px, py):
    """The front-most leaf over one pixel's centre, by the definition of a disc and of a turned rectangle."""
    fields = (leaves.x, leaves.y, leaves.radius, leaves.half_height, leaves.angle, leaves.is_disc)
    for leaf, (x, y, radius, half_height, angle, is_disc) in enumerate(
        zip(*(f[image].tolist() for f in fields), strict=True)
    ):
        dx, dy = px - x, py - y
        along, across = (
            dx * math.cos(angle) + dy * math.sin(angle),
            dy * math.cos(angle) - dx * math.sin(angle),
        )
        if dx * dx + dy * dy < radius**2 if is_disc else abs(along) < radius and abs(across) < half_height:
            return leaf
    return None


def painted_plainly(leaves, height, width):
    n, channels, _ = leaves.paint.shape
    images = torch.zeros(n, channels, height, width)
    for i in range(n):
        for py in range(height):
            for px in range(width):
                k = first_leaf_over(leaves, i, px, py)
                if k is not None:
                    images[i, :, py, px] = leaves.paint[i, :, k] + leaves.slope_x[i, k] * px + leaves.slope_y[i, k] * py
    return images


@KINDS
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_images_are_float_and_standardised(draw, size):
    images = drawn(draw, size)
    assert images.shape == size and images.dtype == torch.float32
    std, mean = torch.std_mean(images.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-4, rtol=0)


@KINDS
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (1, 3, 1, 1), (2, 1, 1, 1), (1, 1, 2, 1), (1, 1, 1, 3)])
def test_degenerate_sizes_are_finite(draw, size):
    images = drawn(draw, size)
    assert images.shape == size and images.isfinite().all()
    assert images.abs().max() <= math.sqrt(images[:, 0].numel())  # what standardised values can reach
    assert size[0] * size[2] * size[3] > 1 or not images.any()


@KINDS
def test_generator_state_fixes_every_bit(draw):
    generator = seeded(3)
    first, second = (draw(2, height=16, width=16, channels=3, generator=generator) for _ in range(2))
    torch.testing.assert_close(drawn(draw, (2, 3, 16, 16), seed=3), first, atol=0, rtol=0)
    assert not torch.allclose(first, second)  # the generator moved on
    assert not torch.allclose(first, drawn(draw, (2, 3, 16, 16), seed=4))


@KINDS
def test_number_of_threads_changes_nothing(draw):
    for seed in range(2):
        images = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            images.append(drawn(draw, (1, 1, 199, 301), seed))
            assert torch.get_num_threads() == num_threads
        assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_batches_of_the_rasteriser_change_nothing(monkeypatch):
    whole = drawn(dead_leaves, (5, 2, 16, 16))
    monkeypatch.setattr(probes, "LEAF_ROWS", 2 * probes.NUM_LEAVES * 16)  # 2 + 2 + 1 images
    assert torch.equal(drawn(dead_leaves, (5, 2, 16, 16)), whole)


@pytest.mark.parametrize("size", [(3, 3, 8, 8), (2, 1, 9, 23), (2, 2, 31, 6), (4, 1, 1, 1)], ids=str)
def test_rasteriser_equals_plain_restatement(size):
    n, channels, height, width = size
    leaves = probes._draw_leaves(n, height, width, channels, seeded(5))
    expected = painted_plainly(leaves, height, width)
    torch.testing.assert_close(probes._paint(leaves, height, width), expected, atol=1e-5, rtol=0)


def test_axis_aligned_rectangle_covers_the_right_pixels():
    one = torch.ones(1, 1)
    leaves = probes._Leaves(3 * one, 2 * one, 2.5 * one, 1.5 * one, 0 * one, one < 0, one[None], 0 * one, 0 * one)
    expected = torch.zeros(1, 1, 6, 8)
    expected[..., 1:4, 1:6] = 1
    assert torch.equal(probes._paint(leaves, 6, 8), expected)


def test_sizes_of_leaves_follow_the_power_law():
    leaves = probes._draw_leaves(50, 101, 51, 1, seeded(0))  # side 100
    radius = leaves.radius / 100
    assert radius.min() >= 0.02 and radius.max() <= 0.5
    for r in (0.025, 0.05, 0.1):
        expected = (r**-2 - 0.5**-2) / (0.02**-2 - 0.5**-2)  # P(radius > r)
        assert (radius > r).float().mean().item() == pytest.approx(
            expected, abs=4 * math.sqrt(expected / radius.numel())
        )
    assert leaves.is_disc.float().mean().item() == pytest.approx(0.5, abs=0.02)
    aspect = leaves.half_height / leaves.radius
    assert aspect.min() >= 0.6 - 1e-6 and aspect.max() <= 1 + 1e-6
    assert leaves.x.min() > -10.1 and leaves.x.max() < 60.1 and leaves.y.max() > 105


def test_bare_pixels_are_few():
    painted = probes._paint(probes._draw_leaves(8, 64, 64, 1, seeded(0)), 64, 64)
    assert 0.03 < (painted == 0).float().mean() < 0.2


@KINDS
def test_power_falls_with_frequency(draw):
    images = drawn(draw, (16, 3, 64, 64))
    white = torch.randn(16, 3, 64, 64, generator=seeded(0))
    assert power_ratio(white) == pytest.approx(1, abs=0.15)
    assert power_ratio(images) > 30 * power_ratio(white)


def test_pink_power_is_inverse_square_of_frequency():
    power = torch.fft.fft(drawn(pink_noise, (64, 1, 1, 256))).abs().square().mean((0, 1, 2))
    assert (power[4:8].mean() / power[32:64].mean()).item() == pytest.approx(64, rel=0.3)


@KINDS
def test_neighbouring_pixels_are_alike(draw):
    assert abs(neighbour_correlation(torch.randn(16, 3, 64, 64, generator=seeded(0)))) < 0.02
    assert neighbour_correlation(drawn(draw, (16, 3, 64, 64))) > 0.6


@pytest.mark.parametrize("channels, expected", [(3, [[0.40, 0.55], [0.55]]), (4, [[0.5] * 3, [0.5] * 2, [0.5]])])
def test_pink_channels_are_correlated(channels, expected):
    images = drawn(pink_noise, (256, channels, 16, 16))
    correlation = torch.corrcoef(images.transpose(0, 1).flatten(1))
    for row, values in enumerate(expected):
        assert correlation[row, row + 1 :].tolist() == pytest.approx(values, abs=0.06)


def test_leaf_colours_are_correlated():
    correlation = torch.corrcoef(drawn(dead_leaves, (32, 3, 32, 32)).transpose(0, 1).flatten(1))
    assert 0.5 < correlation[~torch.eye(3, dtype=torch.bool)].mean() < 0.85


@KINDS
@pytest.mark.parametrize("name", ["num_images", "height", "width", "channels"])
def test_sizes_below_one_are_refused(draw, name):
    sizes = {"num_images": 2, "height": 8, "width": 8, "channels": 3, name: 0}
    with pytest.raises(ValueError, match=rf"{name} is 0; probe images need 1 or more; num_images is signal\.images"):
        draw(sizes.pop("num_images"), **sizes, generator=seeded(0))


def test_noise_takes_little_more_than_the_memory_of_the_images(monkeypatch):
    """The noise, and mixed; of all spectra at once it would take four times the images."""
    monkeypatch.setattr(probes, "NUMBERS", 4 * 3 * 32**2)
    with Alive() as alive:
        x = pink_noise(16, height=32, width=32, channels=3, generator=seeded(0))
    assert alive.most < 3.5 * x.nbytes


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_made_in_parts_is_the_same(channels, monkeypatch):
    asked = {"height": 16, "width": 20, "channels": channels}
    whole = pink_noise(10, **asked, generator=seeded(0))
    monkeypatch.setattr(probes, "NUMBERS", 2 * channels * 16 * 20)
    assert torch.allclose(whole, pink_noise(10, **asked, generator=seeded(0)), atol=1e-5)
