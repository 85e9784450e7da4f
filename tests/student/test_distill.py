"""The student trained as a whole: the same function at the start, the teacher's answers at the end, zeros kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from datafree import Recipe, compress
from datafree.recipe import RecipeError
from datafree.student.distill_images import DistillError
from datafree.student.trainable import Trainable
from nets import NETS, THREE_FAST, small_network

MOVED = ["signal.kind=inverted", "signal.steps=6", "signal.images=32"]
CHEAP = ["signal.kind=propagated", "signal.images=4", "solve.sequential=false", "equalize=foldable"]


@pytest.mark.parametrize(
    "preset", ["w4a8", *(pytest.param(p, marks=pytest.mark.slow) for p in ("w8a8-tensor", "prune50-w8a8", "prune50"))]
)
@pytest.mark.parametrize("name", THREE_FAST)
def test_untrained_it_is_the_student(name, preset):
    """Rounding passed through is rounding still; integers stay the same after the way there and back."""
    model, inputs = NETS[name]()
    run = compress(model, Recipe.preset(preset).updated(CHEAP), inputs)
    results = {r.name: r for r in run.layers}
    trainable = Trainable(run.student, results)
    with torch.no_grad():
        wanted, found = tree_leaves(run.student(*inputs))[0], trainable(*inputs)
    assert float((found - wanted).abs().max()) <= 0.02 * float(wanted.abs().max()) + 1e-6  # a step, where a tie rounds
    for layer in trainable.results(results).values():
        assert torch.equal(layer.weight, results[layer.name].weight), layer.name
        assert torch.equal(layer.bias, results[layer.name].bias)


def off(run, x):
    with torch.no_grad():
        return float((run.student(x) - run.teacher(x)).square().mean())


@pytest.mark.parametrize("loss", ["mse", pytest.param("kl", marks=pytest.mark.slow)])
def test_plain_rounding_is_made_up_for(loss):
    model, x = small_network()
    plain = ["solve.method=nearest", "solve.clip=false", "solve.bias_correction=false", "equalize=off", *MOVED]
    recipe = Recipe.preset("w4a8").updated([*plain, "solve.sequential=false", "weights.bits=2"])
    before = compress(model, recipe, x[:1])
    after = compress(model, recipe.updated(["distill.steps=60", "distill.batch=16", f"distill.loss={loss}"]), x[:1])
    assert off(after, x) < 0.7 * off(before, x)
    assert after.summary.distilled.loss == loss and after.summary.distilled.after < after.summary.distilled.before
    assert after.summary.forward_equivalents > before.summary.forward_equivalents + 60 * 16 * 2
    assert any(not torch.equal(a.weight, b.weight) for a, b in zip(before.layers, after.layers, strict=True))


@pytest.mark.slow
def test_zeros_stay_zero_and_bits_stay_bits():
    model, x = small_network()
    for preset in ("prune50", "prune50-w4a8"):
        recipe = Recipe.preset(preset).updated([*MOVED, "distill.steps=8", "distill.batch=8", "prune.steps=2"])
        before = compress(model, recipe.model_copy(update={"distill": None}), x[:1])
        after = compress(model, recipe, x[:1])
        for a, b in zip(before.layers, after.layers, strict=True):
            zero = [torch.zeros(()) if r.weight_qparams is None else r.weight_qparams.zero_point for r in (a, b)]
            zero = [z[:, None] if z.dim() and len(z) > 1 else z for z in zero]
            gone = a.weight == zero[0]
            assert bool((b.weight == zero[1])[gone].all())
            assert (a.bits, a.sparsity) == (b.bits, b.sparsity)


@pytest.mark.parametrize(
    "images", ["matched", *(pytest.param(n, marks=pytest.mark.slow) for n in ("inverted", "adversarial"))]
)
def test_every_kind_of_image_runs(images):
    model, x = small_network()
    steps = []
    settings = [*MOVED, f"distill.images={images}", "distill.steps=4", "distill.batch=4", "signal.images=8"]
    run = compress(model, Recipe.preset("w4a8").updated(settings), x[:1], on_step=lambda what, *_: steps.append(what))
    assert steps.count("distilling") == 4
    assert steps.count("warming up the generator") == (200 if images == "adversarial" else 0)
    assert run.summary.distilled.steps == 4


def test_images_are_made_anew_where_the_student_errs():
    model, x = small_network()
    settings = [*MOVED, "distill.steps=4", "distill.batch=4", "signal.images=8", "distill.compete=10"]
    steps = []
    compress(model, Recipe.preset("w4a8").updated(settings), x[:1], on_step=lambda what, *_: steps.append(what))
    assert steps.count("making images") == 12  # for the layers, and again against the student


def test_real_images_are_used_where_they_are_given():
    model, x = small_network()
    settings = ["signal.kind=loader", "distill.images=loader", "distill.steps=4", "distill.batch=4"]
    assert compress(model, Recipe.preset("w4a8").updated(settings), x[:1], images=(x,)).summary.distilled


def test_images_that_are_not_there_are_asked_for():
    model, x = small_network()
    settings = [*MOVED, "distill.images=loader"]
    with pytest.raises(DistillError, match=r"'loader' but no images were given; set signal.kind=loader too"):
        compress(model, Recipe.preset("w4a8").updated(settings), x[:1])


def test_only_moved_images_compete():
    with pytest.raises(RecipeError, match=r"images 'adversarial' are not moved to where the student errs; leave comp"):
        Recipe(distill={"images": "adversarial", "compete": 1})


def test_classes_are_needed_for_kl():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval(), torch.zeros(1, 3, 8, 8)
    with pytest.raises(
        DistillError, match=r"distill.loss is 'kl', of classes \(N, C\), but this network returns \(2, 2"
    ):
        compress(model, Recipe(distill={"loss": "kl"}), x)


def test_a_network_of_two_inputs_is_refused():
    model, inputs = NETS["two inputs"]()
    with pytest.raises(DistillError, match=r"distillation needs one image input \(C, H, W\), this network takes"):
        compress(model, Recipe.preset("w8a8").updated(["signal.images=2", "distill.steps=2"]), inputs)


def test_a_rate_too_high_stops_with_the_step_and_what_to_change():
    model, x = small_network()
    settings = [*MOVED, "distill.steps=40", "distill.batch=8", "distill.lr=3"]
    with pytest.raises(
        DistillError,
        match=r"distillation diverges: the loss is .* at step \d+, above .*, 3 times that of the start; lower dist",
    ):
        compress(model, Recipe.preset("w4a8").updated(settings), x[:1])


def test_without_a_guard_only_a_loss_that_is_no_number_stops():
    model, x = small_network()
    settings = [*MOVED, "distill.steps=5", "distill.batch=8", "distill.guard=false"]
    run = compress(model, Recipe.preset("w4a8").updated([*settings, "distill.lr=3"]), x[:1])
    assert run.summary.distilled.step == 5
    with pytest.raises(DistillError, match=r"the loss is (nan|inf) at step \d+; lower distill.lr"):
        compress(model, Recipe.preset("w4a8").updated([*settings, "distill.lr=1e30"]), x[:1])


def test_batches_harder_than_the_images_held_out_are_trained_on():
    """The student errs on its first batch already far more than three times as much as on the image held out."""
    model, x = small_network()
    held_out = int(torch.randperm(4, generator=torch.Generator().manual_seed(1))[0])
    images = 3 * x[:4]  # much larger, and they are refused as read in the wrong scale
    images[held_out] = 0.01 * x[held_out]
    settings = ["signal.kind=loader", "distill.images=loader", "distill.loss=mse", "distill.steps=3", "distill.batch=3"]
    run = compress(model, Recipe.preset("w4a4").updated(settings), x[:1], images=(images,))
    assert run.summary.distilled.steps == 3


def test_where_nothing_is_gained_the_start_is_kept():
    model, x = small_network()
    recipe = Recipe.preset("w8a8").updated([*MOVED, "distill.steps=10", "distill.batch=8", "distill.lr=1e-9"])
    before = compress(model, recipe.model_copy(update={"distill": None}), x[:1])
    after = compress(model, recipe, x[:1])
    if not after.summary.distilled.step:
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(before.layers, after.layers, strict=True))
    assert off(after, x) == pytest.approx(off(before, x), rel=0.05)


@pytest.mark.slow  # the step is asked above, too
def test_without_a_guard_the_last_step_is_taken():
    """As in the papers of Deep Inversion and AKD."""
    model, inputs = NETS["chain"]()
    recipe = Recipe.preset("w8a8").updated([*MOVED, "distill.steps=3", "distill.batch=8", "distill.guard=false"])
    start = compress(model, recipe.model_copy(update={"distill": None}), inputs)
    taken = compress(model, recipe, inputs)
    assert taken.summary.distilled.step == 3
    assert any(not torch.equal(a.bias, b.bias) for a, b in zip(start.layers, taken.layers, strict=True))


def test_unknown_fields_are_listed():
    with pytest.raises(RecipeError, match=r"distill.rate: unknown key; allowed here are images, steps, lr, loss"):
        Recipe(distill={"rate": 1})
