"""Images that were read in the wrong way are told from those that BatchNorm saw."""

import pytest
import torch

from datafree import Recipe, compress
from datafree.graph.capture import trace
from datafree.records import NATURAL_MEAN, NATURAL_STD
from datafree.signals.fit import fit
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS, calibrate_batchnorm_

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in (NATURAL_MEAN, NATURAL_STD))


def photographs(count):
    """Pixels in 0..1 whose channels differ."""
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (x + torch.tensor([0.0, 0.1, 0.5]).view(1, 3, 1, 1)) / 1.5


@pytest.fixture(scope="module")
def trained():
    """A network whose BatchNorm saw normalised photographs."""
    net, _ = NETS["residual"]()
    calibrate_batchnorm_(net, (photographs(64) - MEAN) / STD)
    return net.eval()


@pytest.mark.parametrize(
    "read, said",
    [
        (lambda x: (x - MEAN) / STD, ""),
        (lambda x: x, "normalised with ImageNet's mean and std"),
        (lambda x: 255 * x, "normalised with ImageNet's mean and std, from pixels of 0 to 255"),
        (lambda x: 255 * (x - MEAN) / STD, "divided by 255"),
        (lambda x: (x - MEAN) / STD / 255, "times 255"),
        (lambda x: ((x - MEAN) / STD).flip(1), "with their channels in the other order (RGB for BGR)"),
        (lambda x: 2 * (x - MEAN) / STD - 1, "from 0 to 1 instead of -1 to 1"),
        (lambda x: ((x - MEAN) / STD + 1) / 2, "from -1 to 1 instead of 0 to 1"),
        (lambda x: ((x - MEAN) / STD - MEAN) / STD, "not normalised"),
    ],
)
def test_what_is_wrong_is_named(trained, read, said):
    graph = trace(trained, photographs(1))
    stats, _ = fold_batchnorm_(graph)
    found = fit(graph, stats, read(photographs(64)))
    assert found is not None and found.nearer == said
    assert not said or found.other < 0.5 * found.distance


def test_without_batchnorm_there_is_nothing_to_compare_with():
    net, [x] = NETS["no batchnorm at all"]()
    assert fit(trace(net, x), {}, x) is None


def test_a_run_warns(trained):
    recipe = Recipe.preset("w8a8").updated(["signal.kind=loader"])
    right, wrong = (
        compress(trained, recipe, x[:1], images=(x,)).summary for x in ((photographs(16) - MEAN) / STD, photographs(16))
    )
    assert right.signal.fit and not right.signal.fit.nearer
    assert [w for w in right.warnings if "BatchNorm remembers" in w] == []
    [said] = [w for w in wrong.warnings if "BatchNorm remembers" in w]
    assert "much nearer to what BatchNorm remembers normalised with ImageNet's mean and std: a distance of" in said


@pytest.mark.parametrize(
    "read, said", [(lambda x: 255 * x, "normalised with ImageNet's mean and std, from pixels of 0 to 255"),
                   (lambda x: 255 * (x - MEAN) / STD, "divided by 255")],
)  # fmt: skip
def test_images_far_off_are_refused(trained, read, said):
    x = read(photographs(16))
    with pytest.raises(ValueError, match=rf"^the images given are not as the network .* {said}; give them so"):
        compress(trained, "w8a8", x[:1], images=x)


def test_signals_that_are_no_pictures_are_not_compared():
    model, (x,) = NETS["keyword spotting"]()
    assert compress(model, "w8a8", x[:1], images=x).summary.signal.fit is None
