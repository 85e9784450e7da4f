"""A generator trained against a student: its images, its losses, what is kept of it."""

from __future__ import annotations

import pytest
import torch

from datafree import Recipe, Run, compress
from datafree.execution import SOLVING
from datafree.execution.mac_counter import count_macs
from datafree.graph.capture import trace
from datafree.recipe import Adversarial
from datafree.records import ChannelStats, InputRange
from datafree.signals.adversarial import NOISE, Generator, gaussian_divergence, new_adversary, rounded, train
from datafree.signals.matching import mismatch
from datafree.signals.moving import MatchingError
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import small_network

UNIT = InputRange((0.0,), (1.0,), "given")
SHORT = ["signal.kind=adversarial", "signal.steps=4", "signal.warmup=2", "signal.batch=4", "signal.images=6"]


def folded():
    model, x = small_network()
    graph = trace(model, x[:1])
    stats, _ = fold_batchnorm_(graph)
    return graph, stats


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 16), (3, 224, 224), (4, 9, 23), (3, 5, 5)])
def test_images_have_the_shape_asked_for_and_unit_variance(shape):
    torch.manual_seed(0)
    generator = Generator(shape).train()
    with torch.no_grad():
        images = generator(torch.randn(3, NOISE))
    assert images.shape == (3, *shape)
    assert float(images.mean().abs()) < 0.1 and float(images.std()) == pytest.approx(1, abs=0.1)


def test_a_generator_is_saved_and_reloaded(tmp_path):
    generator = Generator((3, 16, 16)).eval()
    generator.save(tmp_path / "g.safetensors")
    again = Generator.load(tmp_path / "g.safetensors")
    noise = torch.randn(2, NOISE)
    with torch.no_grad():
        assert torch.equal(generator(noise), again(noise))


def test_divergence_is_that_of_gaussians():
    wanted = ChannelStats(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))
    assert float(gaussian_divergence(wanted.mean, wanted.std, wanted)) == pytest.approx(0, abs=1e-6)
    mean, std = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 3.0])
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, std), normal(wanted.mean, wanted.std)).mean()
    assert float(gaussian_divergence(mean, std, wanted)) == pytest.approx(float(kl), rel=0.05)  # less a floor


@pytest.mark.slow
def test_training_brings_statistics_closer_and_is_the_same_for_a_seed():
    graph, stats = folded()
    method = Adversarial(steps=25, warmup=25, batch=16, lr=3e-3)

    def made(steps):
        rng = torch.Generator().manual_seed(0)
        generator = train(graph, stats, method.model_copy(update={"steps": steps}), input_range=UNIT, generator=rng)
        with torch.no_grad():
            return generator(generator.noise(32, torch.Generator().manual_seed(9)))

    with torch.no_grad():
        before, after = (float(mismatch(graph, stats, made(n), gaussian_divergence)[0]) for n in (1, 25))
    assert after < 0.8 * before
    assert torch.equal(made(3), made(3))


@pytest.mark.slow
def test_rivalry_raises_disagreement_with_the_student():
    graph, stats = folded()
    rival = rounded(graph, 2)

    def disagreement(rivalry):
        method = Adversarial(batch=16, lr=3e-3, rivalry=rivalry, statistics=0.1)
        adversary = new_adversary(
            graph, stats, method, input_range=UNIT, rng=torch.Generator().manual_seed(0)
        )  # fmt: skip
        for _ in range(60):
            adversary.step(rival if rivalry else None)
        with torch.no_grad():
            x = adversary.images(64)
            p, q = graph(x).log_softmax(1), rival(x).log_softmax(1)
        return float((p.exp() * (p - q)).sum(1).mean())

    assert disagreement(10.0) > 1.2 * disagreement(0.0)


def test_a_loss_that_is_no_number_says_what_to_lower():
    graph, stats = folded()
    broken = {n: ChannelStats(torch.full_like(s.mean, torch.nan), s.std) for n, s in stats.items()}
    adversary = new_adversary(
        graph, broken, Adversarial(batch=4), input_range=UNIT, rng=torch.Generator().manual_seed(0)
    )
    with pytest.raises(MatchingError, match=r"training the generator: the loss is nan; lower signal.lr \(now 0.001\)"):
        adversary.step(None)


def test_the_generators_work_is_counted():
    generator = Generator((3, 16, 16))
    with count_macs() as spent, torch.no_grad():
        generator(torch.zeros(2, NOISE))
    by_hand = 128 * 64 * 64 + 64 * 32 * 9 * 256 + 32 * 3 * 9 * 256  # linear to 8x8, one stage to 16x16, to the image
    assert spent.macs == 2 * by_hand


def test_the_signal_runs_through_compress_and_is_kept(tmp_path):
    model, x = small_network()
    steps = []
    recipe = Recipe.preset("w4a8").updated(SHORT)
    run = compress(model, recipe, x[:1], on_step=lambda *seen: steps.append(seen))
    assert steps[:4] == [("training the generator", i + 1, 4) for i in range(4)]
    assert steps[4][0] == SOLVING
    assert run.images[0].shape == (6, 3, 16, 16) and run.generator is not None
    run.save(tmp_path / "run")
    again = Run.load(tmp_path / "run")
    noise = run.generator.noise(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert again.generator is not None and torch.equal(again.generator(noise), run.generator(noise))
    assert (tmp_path / "run" / "images.png").read_bytes().startswith(b"\x89PNG")
    other = compress(model, recipe.updated(["weights.bits=3"]), x[:1], images=again)
    assert torch.equal(other.images[0], run.images[0])
