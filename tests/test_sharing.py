"""Recipes of one network share its graph and their images, and every bit is as of each alone."""

import pytest
import torch
from torch import Generator, nn

from datafree import Recipe, compress
from datafree.execution import MAKING_IMAGES
from datafree.sharing import sharing
from nets import randomise_batchnorm_

IMAGES = {"kind": "matched", "images": 4, "steps": 2}
RECIPES = {
    "8 bits": Recipe(signal=IMAGES, solve={"method": "nearest"}, equalize="off"),
    "4 bits": Recipe(signal=IMAGES, weights={"bits": 4}, equalize="off"),
    "4 bits, pruned": Recipe(signal=IMAGES, weights={"bits": 4}, prune={"sparsity": 0.5}, equalize="off"),
    "equalized": Recipe(signal=IMAGES, equalize="depthwise"),
    "one scale a layer": Recipe(signal=IMAGES, weights={"per": "tensor"}, equalize="foldable"),
    "other images": Recipe(signal={**IMAGES, "steps": 3}, equalize="off"),
}
ON_OWN_IMAGES = {"8 bits", "equalized", "one scale a layer", "other images"}  # the first that ask for theirs


class Counted(nn.Sequential):
    """A network that counts how often its forward pass is read, in whichever copy."""

    read: list[None] = []  # noqa: RUF012  one of all copies

    def forward(self, x):
        self.read.append(None)
        return super().forward(x)


def network(norm):
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(8) if norm else nn.Identity() for _ in range(2)]
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = Counted(nn.Conv2d(3, 8, 3), norms[0], nn.ReLU(), depthwise, norms[1], nn.ReLU(), *ends).eval()
    randomise_batchnorm_(model, Generator().manual_seed(0))
    model.of_its_own = lambda: None  # cannot be pickled: the suite's memory of exports leaves it alone
    return model


@pytest.mark.parametrize(
    "norm, names, makes",
    [
        (True, [*RECIPES], ON_OWN_IMAGES),
        (False, ["8 bits", "equalized", "other images"], {"8 bits", "other images"}),
        pytest.param(False, [*RECIPES], {"8 bits", "other images"}, marks=pytest.mark.slow),
    ],
    ids=["BatchNorm", "none", "none, all"],
)
def test_captured_once_and_images_made_once(norm, names, makes):
    """Without BatchNorm images come before equalizing, and all that ask for the same share them."""
    model, shared = network(norm), sharing()
    Counted.read.clear()
    made, runs, recipes = set(), {}, {name: RECIPES[name] for name in names}
    for name, recipe in recipes.items():
        steps = []
        runs[name] = compress(model, recipe, (1, 3, 12, 12), on_step=lambda *s, to=steps: to.append(s), shared=shared)
        if any(what == MAKING_IMAGES for what, _, _ in steps):
            made.add(name)
    assert len(Counted.read) == 1 and made == makes
    for name, recipe in recipes.items():
        alone = compress(model, recipe, (1, 3, 12, 12))
        for graph in ("student", "teacher"):
            own, of_it = (getattr(run, graph).state_dict() for run in (runs[name], alone))
            assert own.keys() == of_it.keys() and all(torch.equal(own[key], of_it[key]) for key in own), name
        assert torch.equal(runs[name].images[0], alone.images[0])
        assert runs[name].layers and [x.error_db for x in runs[name].layers] == [x.error_db for x in alone.layers]
    assert len(Counted.read) == 1 + len(recipes)


def test_another_seed_and_given_images_are_not_the_same():
    model, shared = network(norm=True), sharing()
    first, other, given = (
        compress(model, RECIPES["8 bits"], (1, 3, 12, 12), shared=shared, **asked)
        for asked in ({}, {"seed": 1}, {"images": torch.rand(4, 3, 12, 12)})
    )
    alone = compress(model, RECIPES["8 bits"], (1, 3, 12, 12), seed=1)
    assert torch.equal(other.images[0], alone.images[0]) and not torch.equal(first.images[0], other.images[0])
    assert not torch.equal(given.student(first.images[0]), first.student(first.images[0]))
