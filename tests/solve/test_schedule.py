"""Layers in sequence, and images moved towards what BatchNorm remembers."""

from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from alive import Alive
from datafree import Recipe, Run, compress
from datafree import graph as g
from datafree.graph.capture import trace
from datafree.recipe import Gptq, Inverted, Matched
from datafree.records import ChannelStats, InputRange, Moments, WeightSpec
from datafree.run.record import RunError
from datafree.signals.matching import match
from datafree.signals.moving import SHORT, MatchingError
from datafree.solve.compensation import DAMPINGS, best_share, compensated, least_squares
from datafree.solve.jobs import LayerJob
from datafree.solve.solve_layer import compress_layer
from datafree.teacher.batchnorm import fold_batchnorm_
from jobs import signal_job
from nets import NETS, THREE_FAST, calibrate_batchnorm_

UNIT = InputRange((0.0,), (1.0,), "test")


def calibrated(name: str):
    """A tiny net whose BatchNorms remember the inputs it comes with."""
    model, (x,) = NETS[name]()
    x = torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(3))
    calibrate_batchnorm_(model, x)
    return model.eval(), x


def sqnr(run, x) -> float:
    with torch.no_grad():
        wanted, found = run.teacher(x), run.student(x)
    return float(10 * torch.log10(wanted.var() / (wanted - found).square().mean()))


def loader(*settings: str) -> Recipe:
    return Recipe.preset("w4a4").updated(["signal.kind=loader", "first_last=same", *settings])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "residual", "depthwise inverted residual", "concat", "pools"])
def test_sequence_beats_independent_layers_on_average(name):
    model, x = calibrated(name)
    seeds = range(3)
    alone = [sqnr(compress(model, loader(), x[:1], images=(x,), seed=s), x) for s in seeds]
    recipe = loader("solve.sequential=true")
    in_turn = [sqnr(compress(model, recipe, x[:1], images=(x,), seed=s), x) for s in seeds]
    assert sum(in_turn) >= sum(alone) - 0.5 * len(alone)


@pytest.mark.slow
def test_sequence_runs_what_the_student_will_run():
    """The last layer's input in the walk is that of the assembled student: its predicted error is the real one."""
    model, x = calibrated("chain")
    run = compress(model, loader("solve.sequential=true", "solve.compensation=0"), x[:1], images=(x,))
    again = compress(model, loader("solve.sequential=true", "solve.compensation=0"), x[:1], images=(x,))
    with torch.no_grad():
        bias_left = (run.teacher(x) - run.student(x)).mean(0).abs().max() / run.teacher(x).std()
        assert torch.equal(run.student(x), again.student(x))
    assert float(bias_left) < 0.02  # the bias correction of the last layer saw the student's own input


def moments_of(u, own):
    centred, centred_own = u - u.mean(0), own - own.mean(0)
    cov, cross = (a.T @ centred_own / len(u) for a in (centred_own, centred))
    return Moments(u.mean(0)[None].float(), own.mean(0)[None].float(), cov[None].float(), len(u), cross[None].float())


def upstream(num_rows=4000, taps=6, noise=0.3, seed=0):
    """A layer whose student's inputs are not its teacher's: rows of both, and the job."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(num_rows, taps, generator=generator, dtype=torch.float64)
    own = u @ torch.randn(taps, taps, generator=generator, dtype=torch.float64) * noise + u
    own = own + noise * torch.randn(num_rows, taps, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 3, taps, generator=generator)
    folds = (moments_of(u[: num_rows // 2], own[: num_rows // 2]), moments_of(u[num_rows // 2 :], own[num_rows // 2 :]))
    spec = WeightSpec(8, True, True)
    return u, own, LayerJob("fc", weight, torch.zeros(3), moments_of(u, own), spec, Gptq(), 0, moment_halves=folds)


def test_compensation_is_damped_least_squares():
    _, _, job = upstream()
    weight, cov, cross = job.weight[0], job.moments.cov[0].double(), job.moments.cross[0].double()
    d = 0.01 * cov.diagonal().mean() * torch.eye(6).double()
    wanted = (weight.double() @ (cross + d)) @ torch.linalg.inv(cov + d)
    found, share = compensated(replace(job, method=Gptq(compensation=1.0)))
    assert torch.allclose(found.weight[0], wanted.float(), atol=1e-4) and share == 1.0
    found, share = compensated(replace(job, method=Gptq(compensation=0.0)))
    assert torch.equal(found.weight, job.weight) and share == 0.0
    half, _ = compensated(replace(job, method=Gptq(compensation=0.5)))
    assert torch.allclose(half.weight[0], (wanted.float() + weight) / 2, atol=1e-4)


@pytest.mark.parametrize("num_rows", [14, 40, 4000])
def test_share_errs_least_on_the_half_that_was_not_seen(num_rows):
    """Against a plain search over shares and dampings, on the rows themselves."""
    u, own, job = upstream(num_rows)
    weight, middle = job.weight.double(), num_rows // 2
    halves = [slice(0, middle), slice(middle, None)]

    def error(damping, share):
        total = 0.0
        for seen, other in ((0, 1), (1, 0)):
            best = torch.lerp(weight, least_squares(weight, job.moment_halves[seen], damping), share)[0]
            off = u[halves[other]] @ weight[0].T - own[halves[other]] @ best.T
            total += float(off.var(0, correction=0).sum())
        return total

    damping, share = best_share(weight, *job.moment_halves)
    tried = {(d, s / 50): error(d, s / 50) for d in DAMPINGS for s in range(51)}
    assert error(damping, share) <= min(tried.values()) * (1 + 1e-5)
    if num_rows == 4000:
        assert share > 0.9 and error(damping, share) < 0.9 * error(0.01, 0.0)
    assert compensated(job)[1] == share


def test_the_share_of_a_wide_layer_is_found_in_few_matrices():
    *_, job = upstream(300, taps=96)
    with Alive() as alive:
        best_share(job.weight.double(), *job.moment_halves)
    h = 4 * 96**2
    assert alive.most < 5 * h  # two in float64


def test_compensation_that_does_not_hold_on_other_images_is_dropped():
    """Halves that contradict each other: what helps on one hurts on the other, and the weights stay."""
    _, _, job = upstream()
    first = job.moment_halves[0]
    mirrored = replace(first, cross=2 * first.cov - first.cross)  # C - H with the other sign
    found, share = compensated(replace(job, moment_halves=(first, mirrored)))
    assert share == 0.0 and torch.equal(found.weight, job.weight)
    assert compress_layer(replace(job, moment_halves=(first, mirrored))).dropped == ("compensation",)
    assert compress_layer(job).dropped == ()


@pytest.mark.parametrize("method", [Matched(steps=30), Inverted(steps=30)], ids=["matched", "inverted"])
def test_matching_brings_statistics_closer(method):
    model, x = calibrated("chain")
    graph = trace(model, x[:1])
    stats, _ = fold_batchnorm_(graph)
    start = torch.randn(16, *x.shape[1:], generator=torch.Generator().manual_seed(1)) * 1.5 + 0.5
    made = [match(signal_job(graph, stats, method, seed=5), start) for _ in range(2)]
    before, after = made[0].distance
    assert after < 0.5 * before
    assert torch.equal(made[0].images, made[1].images), "the same seed gives other images"
    assert not made[0].images.requires_grad and made[0].images.shape == start.shape
    assert (made[0].asked is None) == isinstance(method, Matched)


def test_classes_asked_for_are_given():
    model, x = calibrated("linear after flatten")
    graph = trace(model, x[:1])
    stats, _ = fold_batchnorm_(graph)
    asked = Inverted(steps=60, class_weight=5.0, smoothness=0.0)
    start = torch.randn(32, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    found = match(signal_job(graph, stats, asked, seed=5), start)
    made = found.images
    num_classes = g.shape(g.outputs(graph)[0])[1]
    wanted = torch.randint(num_classes, (32,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        hit = (graph(made).argmax(1) == wanted).float().mean()
        base = (graph(start).argmax(1) == wanted).float().mean()
    assert hit > base + 0.4
    assert found.asked == pytest.approx(100 * float(hit))


def test_loss_that_is_not_a_number_stops_with_its_step():
    model, x = calibrated("chain")
    graph = trace(model, x[:1])
    stats, _ = fold_batchnorm_(graph)
    broken = {n: ChannelStats(torch.full_like(s.mean, torch.nan), s.std) for n, s in stats.items()}
    with pytest.raises(
        MatchingError, match=r"the loss is nan at step 0; take signal.setting=short, .* or signal.kind=propag"
    ):
        match(signal_job(graph, broken, Matched(steps=2)), x[:4])


def test_matched_and_inverted_signals_run_through_compress():
    model, x = calibrated("depthwise inverted residual")
    for kind in ("matched", "inverted"):
        recipe = Recipe.preset("w8a8").updated([f"signal.kind={kind}", "signal.steps=3", "signal.images=4"])
        run = compress(model, recipe, x[:1])
        signal = run.summary.signal
        assert (signal.kind, signal.num_images) == (kind, 4) and signal.distance is not None
        assert (signal.asked is not None) == (kind == "inverted")


@pytest.mark.parametrize("name", THREE_FAST)
def test_sequence_runs_on_every_net(name):
    """Side by side, teacher and student walk through every operator; a chain of 8-bit layers stays near the teacher."""
    model, inputs = NETS[name]()
    settings = ["signal.images=8", "solve.method=gptq"]
    with torch.no_grad():
        runs = [
            compress(model, Recipe.preset("w8a8").updated([*settings, *more]), inputs)
            for more in ([], ["solve.sequential=true"])
        ]
        wanted = [v for v in tree_leaves(runs[0].teacher(*inputs))]
        off = [
            sum(float((a - b).square().sum()) for a, b in zip(tree_leaves(r.student(*inputs)), wanted, strict=True))
            for r in runs
        ]
    assert [r.name for r in runs[0].layers] == sorted(
        [r.name for r in runs[1].layers], key=[r.name for r in runs[0].layers].index
    )
    assert off[1] <= 4 * off[0] + 1e-12


def test_images_of_a_run_serve_other_recipes_and_only_the_same_network(tmp_path):
    model, x = calibrated("depthwise inverted residual")
    first = compress(model, Recipe.preset("w4a8").updated(["signal.steps=3", "signal.images=4"]), x[:1])
    first.save(tmp_path / "run")
    kept = Run.load(tmp_path / "run")
    assert torch.equal(kept.images[0], first.images[0]) and kept.input_range == first.input_range
    assert kept.stats.keys() == first.stats.keys()
    assert all(torch.equal(kept.stats[n].std, s.std) for n, s in first.stats.items())
    again = compress(model, first.recipe, x[:1], images=kept)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first.layers, again.layers, strict=True))
    other, _ = calibrated("depthwise inverted residual")
    next(other.parameters()).data.mul_(1.01)
    with pytest.raises(RunError, match="that run's images were made for other weights; leave them out"):
        compress(other, first.recipe, x[:1], images=kept)
    plain = compress(model, Recipe.preset("w8a8").updated(["signal.images=4"]), x[:1])
    with pytest.raises(RunError, match="that run keeps no images: its signal is 'propagated'"):
        compress(model, first.recipe, x[:1], images=plain)


def test_device_that_is_not_there_is_named():
    model, x = calibrated("chain")
    recipe = Recipe.preset("w4a8").updated(["signal.steps=1", "signal.images=2"])
    with pytest.raises(
        MatchingError, match=r"device 'cuda:99' cannot be used: .*; use 'cpu', or 'cuda' where there is"
    ):
        compress(model, recipe, x[:1], device="cuda:99")


def test_images_stay_within_what_pixels_reach():
    model, x = calibrated("chain")
    graph = trace(model, x[:1])
    stats, _ = fold_batchnorm_(graph)
    start = 3 * torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    made = match(signal_job(graph, stats, Matched(steps=2)), start).images
    assert float(start.abs().max()) > SHORT.pixel_limit + 1e-6 >= float(made.abs().max())
