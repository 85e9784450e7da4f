"""Images as unlike one another as photographs: sharp or not, dim or bright, flat or not; the batch as it was."""

import pytest
import torch

from datafree.signals.probes import dead_leaves
from datafree.signals.varied import NEAREST, varied

LIMIT = 2.25


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def leaves():
    return dead_leaves(48, height=32, width=24, channels=3, generator=rng())


def sharpness(images):
    """Steps between neighbouring pixels, of each image's own deviation."""
    return images.diff(dim=3).square().mean((1, 2, 3)).sqrt() / images.std((1, 2, 3))


def contrast(images):
    return images.std((1, 2, 3)).log()


def brightness(images):
    return images.mean((1, 2, 3))


@pytest.mark.parametrize("measure", [sharpness, contrast, brightness])
def test_images_differ_more(leaves, measure):
    assert float(measure(varied(leaves, LIMIT, rng())).std()) > 1.5 * float(measure(leaves).std())


def test_no_image_becomes_sharper(leaves):
    found = sharpness(varied(leaves, 100.0, rng())) / sharpness(leaves)
    assert float(found.mean()) < 0.9 and float(found.min()) > 0.5 / NEAREST


def test_the_batch_keeps_mean_and_deviation(leaves):
    std, mean = torch.std_mean(varied(leaves, 100.0, rng()), (0, 2, 3), correction=0)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-5) and torch.allclose(std, torch.ones(3), atol=1e-4)


def test_no_pixel_is_beyond_the_limit(leaves):
    assert float(varied(leaves, LIMIT, rng()).abs().max()) <= LIMIT


def test_a_seed_fixes_every_bit_and_another_gives_other_images(leaves):
    first, again, other = (varied(leaves, LIMIT, rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (1, 1, 5, 1), (2, 4, 7, 3)])
def test_any_image_is_varied(shape):
    found = varied(torch.randn(shape, generator=rng()), LIMIT, rng())
    assert found.shape == shape and bool(torch.isfinite(found).all())


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 16)])
def test_what_is_no_image_stays_as_it_is(shape):
    x = torch.randn(shape, generator=rng())
    assert varied(x, LIMIT, rng()) is x
