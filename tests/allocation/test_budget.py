"""Budgets: what may be asked, the best choice, and a student that keeps to it."""

from __future__ import annotations

import functools
import itertools
import random
import re
import sys

import pytest
import torch

from datafree import Recipe, compress
from datafree import graph as g
from datafree.allocation.budget import BudgetError, Option, choose
from datafree.allocation.channels import PruneError
from datafree.extras import install
from datafree.recipe import RecipeError
from datafree.solve.plan import plan_layers
from nets import NETS

ONE_OF = "a budget is one of bytes, mean_bits, mean_activation_bits, bit_operations, macs, sparsity; give exactly one"
SLOW = pytest.mark.slow
CHAIN = ("0.conv", "1.conv", "2.2")
DEPTHWISE = "depthwise inverted residual"


@functools.cache
def made(name, text):
    model, inputs = NETS[name]()
    return compress(model, Recipe.parse(text), inputs)


def run_of(name, *, images=4, **fields):
    return made(name, Recipe(**{"signal": {"images": images}, **fields}).dump())


def bits(run):
    return {r.name: r.bits for r in run.layers}


def sizes(run):
    return {r.name: r.weight.numel() for r in run.layers}


def mean_bits(run):
    return sum(r.bits * r.weight.numel() for r in run.layers) / sum(sizes(run).values())


def zeros(run):
    """Weights that stand for zero, by layer."""
    found = {}
    for r in run.layers:
        zero = 0 if r.weight_qparams is None else r.weight_qparams.zero_point.view(-1, 1)
        found[r.name] = int((r.weight == zero).sum())
    return found


def same_bits(a, b):
    return all(torch.equal(x.weight, y.weight) and torch.equal(x.bias, y.bias) for x, y in zip(a, b, strict=True))


# What may be asked


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "budget: {}",
            f"budget: {ONE_OF}",
        ),
        (
            "budget: {bytes: 1000, macs: 5}",
            ONE_OF,
        ),
        ("budget: {bytes: 0}", "budget.bytes: Input should be greater than 0, got 0"),
        ("budget: {bytes: 1000.5}", "budget.bytes: Input should be a valid integer"),
        ("budget: {mean_bits: 1.9}", "budget.mean_bits: Input should be greater than or equal to 2, got 1.9"),
        ("budget: {mean_bits: 9}", "budget.mean_bits: Input should be less than or equal to 8, got 9"),
        (
            "budget: {mean_activation_bits: 3}",
            "mean_activation_bits: Input should be greater than or equal to 4, got 3",
        ),
        ("budget: {bit_operations: 0}", "budget.bit_operations: Input should be greater than 0, got 0"),
        ("budget: {macs: -1}", "budget.macs: Input should be greater than 0, got -1"),
        ("budget: {sparsity: 1}", "budget.sparsity: Input should be less than 1, got 1"),
        ("budget: {flops: 1}", "budget.flops: unknown key"),
    ],
)
def test_a_budget_that_is_none_is_refused(text, message):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "budget",
    [
        {"bytes": 10**9},
        {"mean_activation_bits": 4.5},
        {"bit_operations": 10**9},
        {"macs": 10**7},
        {"sparsity": 0.3},
        None,
    ],
)
def test_a_recipe_with_a_budget_comes_back_from_its_own_text(budget):
    recipe = Recipe(budget=budget)
    assert Recipe.parse(recipe.dump()) == recipe
    assert (recipe.budget and recipe.budget.model_dump(exclude_none=True)) == budget


def test_a_budget_can_be_set():
    assert Recipe.preset("w4a8").updated(["budget.mean_bits=4"]).budget.mean_bits == 4


# The best choice


def some_options(seed, num_layers=3):
    """Layers of a few options each, dearer ones erring less, but for noise."""
    dice = random.Random(seed)
    return {
        f"layer{i}": [
            Option(b, 0.0, size * b + dice.randint(-3, 3), dice.random() * 4.0 ** (3 - b)) for b in range(2, 7)
        ]
        for i, size in enumerate(dice.choices(range(5, 200), k=num_layers))
    }


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_choice_is_the_best_of_all(seed, share):
    options = some_options(seed)
    least, most = (float(sum(f(o.size for o in row) for row in options.values())) for f in (min, max))
    limit = least + share * (most - least)
    chosen = choose(options, limit)
    assert list(chosen) == list(options) and all(chosen[name] in row for name, row in options.items())
    assert sum(o.size for o in chosen.values()) <= limit
    every = [c for c in itertools.product(*options.values()) if sum(o.size for o in c) <= limit]
    best = min(sum(o.error for o in c) for c in every)
    assert best <= sum(o.error for o in chosen.values()) <= 1.002 * best


def test_a_limit_between_whole_numbers_is_no_reason_to_go_over_it():
    options = {"a": [Option(2, 0.0, 10, 1.0), Option(3, 0.0, 11, 0.0)]}
    assert choose(options, 10.9)["a"].size == 10
    assert choose(options, 11.0)["a"].size == 11


def test_what_costs_nothing_is_taken():
    options = {"a": [Option(2, 0.0, 5, 0.0), Option(8, 0.0, 5, 0.0)], "b": [Option(4, 0.0, 7, 0.0)]}
    assert [o.size for o in choose(options, 12.0).values()] == [5, 7]


# Bits


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, budget", [(DEPTHWISE, 4), *(pytest.param(n, 3.3, marks=SLOW) for n in ("dict output", "two inputs"))]
)
def test_bits_are_as_many_as_asked_on_average(name, budget):
    run = run_of(name, budget={"mean_bits": budget})
    assert budget - 1 < mean_bits(run) <= budget
    assert len(set(bits(run).values())) > 1 and run.summary.num_quantized == run.summary.num_layers
    recipe = run.recipe
    assert recipe.budget is None and {n: r.weights.bits for n, r in recipe.layers.items()} == bits(run)
    assert all(list(r.given()) == ["weights"] for r in recipe.layers.values())
    model, inputs = NETS[name]()
    again = compress(model, Recipe.parse(recipe.dump()), inputs)
    assert again.recipe == recipe and bits(again) == bits(run) and same_bits(again.layers, run.layers)
    assert again.summary.pareto == ()


@pytest.mark.slow
def test_two_bits_can_be_had_where_sizes_are_no_whole_bytes():
    run = run_of("residual", budget={"mean_bits": 2})
    assert any(2 * size % 8 for size in sizes(run).values()) and set(bits(run).values()) == {2}


@SLOW
def test_a_mean_of_eight_bits_is_the_least_error_of_all():
    run = run_of("chain", budget={"mean_bits": 8})
    assert mean_bits(run) > 6 and run.summary.pareto[-1][0] == 8


@pytest.mark.slow
def test_budgets_and_their_errors_are_told():
    """Each budget's error is the sum over layers, so it falls; the choice is on the curve or below it."""
    run = run_of("residual", budget={"mean_bits": 4})
    budgets, errors = zip(*run.summary.pareto, strict=True)
    assert budgets[0] == 2 and budgets[-1] == 8 and list(budgets) == sorted(set(budgets))
    assert all(after <= 1.002 * before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.2 * errors[0] and min(errors) >= 0


@pytest.mark.slow
def test_more_bits_err_less():
    """Of the whole student, on noise."""
    x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for budget in (2.5, 7):
        run = run_of("chain", budget={"mean_bits": budget})
        with torch.no_grad():
            found.append(float((run.student(x) - run.teacher(x)).square().mean()))
    assert found[0] > 3 * found[1] > 0


@SLOW
def test_a_rule_of_the_users_stays_and_is_counted():
    rules = {"1.*": {"weights": {"bits": 8}}, "1.0.conv": {"weights": {"bits": 7}}}
    run = run_of("residual", budget={"mean_bits": 6}, layers=rules)
    assert (bits(run)["1.0.conv"], bits(run)["1.1.conv"]) == (7, 8)
    assert mean_bits(run) <= 6 and max(bits(run)[n] for n in ("0.conv", "3.0.conv", "3.1.conv")) < 7
    assert list(run.recipe.layers)[-2:] == list(rules), "the last match wins, so their order stays"
    assert set(run.recipe.layers) == {"0.conv", "3.0.conv", "3.1.conv", "5.2", *rules}


@pytest.mark.slow
def test_a_kept_layer_is_no_part_of_the_mean():
    run = run_of("residual", budget={"mean_bits": 3}, layers={"3.*": "keep"})
    assert set(bits(run)) == {"0.conv", "1.0.conv", "1.1.conv", "5.2"} and 2 < mean_bits(run) <= 3
    assert {s.name for s in run.summary.skipped} == {"3.0.conv", "3.1.conv"}


@pytest.mark.parametrize("method", [pytest.param("nearest", marks=SLOW), pytest.param("straight_through", marks=SLOW)])
def test_every_method_can_be_budgeted(method):
    solve = {"method": method} | ({"steps": 2, "rows": 32} if method == "straight_through" else {})
    run = run_of("chain", budget={"mean_bits": 4}, solve=solve)
    assert 3 < mean_bits(run) <= 4 and {r.method for r in run.layers} == {method}


@SLOW
def test_in_sequence_and_on_draws():
    run = run_of("chain", budget={"mean_bits": 4}, solve={"sequential": True}, signal={"kind": "gaussian", "images": 4})
    assert 3 < mean_bits(run) <= 4 and run.recipe.solve.sequential


# Bytes


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, marks=SLOW),
        pytest.param({"weights": {"per": "tensor"}, "equalize": "free"}, marks=SLOW),
        pytest.param({"prune": {"sparsity": 0.5}}, marks=SLOW),
        pytest.param({"prune": {"pattern": "2:4"}}, marks=SLOW),
        pytest.param({"layers": {"1.conv": "keep"}}, marks=SLOW),
    ],
    ids=["bits", "one scale a tensor", "zeros", "2:4", "a kept layer"],
)
def test_bytes_are_no_more_than_asked(fields):
    """From the least there is, so that an account that is off by one shows."""
    with pytest.raises(BudgetError) as caught:
        run_of("chain", budget={"bytes": 1}, **fields)
    least = int(re.fullmatch(r"budget: bytes 1 cannot be met; the least is bytes (\d+)", str(caught.value))[1])
    run = run_of("chain", budget={"bytes": least}, **fields)
    assert least - 30 < run.summary.bytes <= least and run.summary.pareto[0][0] == least
    more = run_of("chain", budget={"bytes": least + 41}, **fields)
    assert least - 30 < more.summary.bytes <= least + 41 and not same_bits(more.layers, run.layers)


def test_a_byte_less_than_the_least_is_refused():
    with pytest.raises(BudgetError, match=r"^budget: bytes 375 cannot be met; the least is bytes 376$"):
        run_of("chain", budget={"bytes": 375})
    assert run_of("chain", budget={"bytes": 376}).summary.bytes <= 376


@SLOW
def test_all_there_is_may_be_spent():
    run = run_of("chain", budget={"bytes": 10**6})
    assert run.summary.bytes <= 1010 and min(bits(run).values()) >= 6


def test_channels_and_bytes():
    """Channels go after the bits are chosen: fewer bytes than asked."""
    run = run_of("chain", budget={"bytes": 600}, prune={"pattern": "channels", "sparsity": 0.2})
    assert run.summary.bytes <= 600 and run.summary.macs <= 0.8 * run.summary.float_macs
    assert set(run.recipe.layers) == set(CHAIN) and all("prune" not in r.given() for r in run.recipe.layers.values())


# Zeros


@pytest.mark.slow
@pytest.mark.parametrize("budget", [{"bytes": 440}, {"mean_bits": 2.5}], ids=["bytes", "mean_bits"])
def test_zeros_are_chosen_with_the_bits(budget):
    run = run_of("chain", budget=budget, prune={})
    rules = run.recipe.layers
    assert set(rules) == set(CHAIN) and max(rule.prune.sparsity for rule in rules.values()) > 0
    for name, size in sizes(run).items():
        assert zeros(run)[name] >= round(rules[name].prune.sparsity * size)
    specs = plan_layers(run.teacher, run.recipe).layers
    assert all((specs[n].weights.prune is None) == (rules[n].prune.sparsity == 0) for n in CHAIN)
    stored = {
        n: min(bits(run)[n] * s, s + bits(run)[n] * (s - round(rules[n].prune.sparsity * s)))
        for n, s in sizes(run).items()
    }
    assert "bytes" in budget or sum(stored.values()) <= 2.5 * sum(sizes(run).values())
    assert run.summary.bytes <= budget.get("bytes", run.summary.bytes)


@pytest.mark.slow
def test_a_users_sparsity_stays():
    rules = {"1.conv": {"prune": {"sparsity": 0.75}}}
    run = run_of("chain", budget={"mean_bits": 5}, prune={}, layers=rules)
    assert run.recipe.layers["1.conv"].given() == rules["1.conv"] and bits(run)["1.conv"] == 8
    assert zeros(run)["1.conv"] >= round(0.75 * sizes(run)["1.conv"])


@pytest.mark.slow
@pytest.mark.parametrize("prune", [None, {"sparsity": 0.9, "scope": "layer", "score": "magnitude"}])
def test_a_budget_of_sparsity_is_a_global_share_of_zeros(prune):
    parts = {"weights": {"bits": None}, "activations": {"bits": None}}
    run = run_of("chain", budget={"sparsity": 0.3}, prune=prune, **parts)
    wanted = {**(prune or {}), "sparsity": 0.3, "scope": "global"}
    same = run_of("chain", prune=wanted, **parts)
    assert run.recipe == same.recipe and same_bits(run.layers, same.layers)
    assert sum(zeros(run).values()) == round(0.3 * sum(sizes(run).values())) and run.summary.pareto == ()


# Multiply-adds


@pytest.mark.parametrize("share", [0.4, pytest.param(0.9, marks=SLOW)])
def test_channels_go_until_the_multiply_adds_are_few_enough(share):
    most = round(share * run_of("chain").summary.macs)
    run = run_of("chain", budget={"macs": most})
    assert 0.6 * most < run.summary.macs <= most < run.summary.float_macs
    assert run.recipe.budget is None and run.recipe.prune.pattern == "channels"
    assert run.recipe.prune.sparsity == pytest.approx(1 - most / run.summary.float_macs)


def test_few_enough_multiply_adds_are_left_alone():
    whole = run_of("chain")
    for budget in (whole.summary.macs, 10**9):
        run = run_of("chain", budget={"macs": budget})
        assert run.summary.macs == whole.summary.macs and same_bits(run.layers, whole.layers)


def test_the_least_multiply_adds_are_told_and_can_be_had():
    with pytest.raises(PruneError) as caught:
        run_of("chain", budget={"macs": 10})
    least = int(
        re.search(r"at most 9\d % .* 99\.\d+ % were asked for; .* raise budget\.macs to (\d+)$", str(caught.value))[1]
    )
    assert run_of("chain", budget={"macs": least}).summary.macs == least


# Errors


def test_the_least_mean_is_told_and_can_be_had():
    rules = {"1.conv": {"weights": {"bits": 8}}}
    with pytest.raises(BudgetError) as caught:
        run_of("chain", budget={"mean_bits": 3}, layers=rules)
    least = re.fullmatch(r"budget: mean_bits 3 cannot be met; the least is mean_bits ([\d.]+)", str(caught.value))[1]
    run = run_of("chain", budget={"mean_bits": float(least)}, layers=rules)
    assert bits(run) == {"0.conv": 2, "1.conv": 8, "2.2": 2} and mean_bits(run) <= float(least)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"budget": {"mean_bits": 4}, "weights": {"bits": None}}, "no layer's weights .* set weights.bits"),
        ({"budget": {"bytes": 10**6}, "layers": {"*": "keep"}}, "no layer's weights are quantized"),
        ({"budget": {"sparsity": 0.3}, "prune": {"pattern": "2:4"}}, "pattern '2:4' says how sparse; leave one out"),
        ({"budget": {"macs": 1000}, "prune": {}}, "macs removes channels, .* is 'unstructured'; leave prune out$"),
        ({"budget": {"mean_activation_bits": 5}, "activations": {"bits": None}}, "no .* set activations.bits$"),
        ({"budget": {"mean_activation_bits": 5}, "layers": {"*": {"activations": {"bits": 8}}}}, "no layer's"),
        ({"budget": {"bit_operations": 10**6}, "prune": {}}, "bit_operations chooses bits, .*; leave prune out$"),
        ({"budget": {"bit_operations": 10**6}, "weights": {"bits": None}}, "no layer has both .* set weights and act"),
    ],
    ids=[
        "float weights", "all kept", "2:4 and sparsity", "zeros and macs", "float inputs", "inputs ruled", "two wishes",
        "nothing to round",
    ],
)  # fmt: skip
def test_a_budget_that_says_nothing_or_contradicts_is_refused(fields, message):
    with pytest.raises(BudgetError, match=f"^budget.*{message}"):
        run_of("chain", **fields)


# Bits of what layers read


def input_bits(run):
    plan = plan_layers(run.teacher, run.recipe)
    return {name: item.input_bits for name, item in plan.layers.items()}


def mean_input_bits(run, names):
    nodes, layers = g.nodes_by_name(run.teacher), g.layers(run.teacher)
    macs = {name: g.num_macs(nodes[layers[name].node]) for name in names}
    return sum(macs[name] * input_bits(run)[name] for name in names) / sum(macs.values())


MIXED = {"weights": {"bits": 4}, "activations": {"bits": 4}}


@pytest.mark.parametrize("name", ["residual", DEPTHWISE])
def test_inputs_have_the_bits_asked_for_on_average_and_both_ends_keep_eight(name):
    run = run_of(name, **MIXED, budget={"mean_activation_bits": 5.5})
    first, *between, last = input_bits(run)
    assert input_bits(run)[first] == input_bits(run)[last] == 8
    assert 4 < mean_input_bits(run, between) <= 5.5 and len({input_bits(run)[n] for n in between}) > 1
    assert {input_bits(run)[n] for n in between} <= {4, 5, 6, 8} and {bits(run)[n] for n in between} == {4}


def test_inputs_of_the_least_bits_are_as_without_a_budget():
    run = run_of("residual", **MIXED, budget={"mean_activation_bits": 4})
    assert same_bits(run.layers, run_of("residual", **MIXED).layers)


def test_more_bits_on_average_are_predicted_to_cost_less():
    pareto = run_of("residual", **MIXED, budget={"mean_activation_bits": 5}).summary.pareto
    assert pareto[0][0] == 4 and pareto[-1][0] == 8
    assert all(b[1] <= a[1] for a, b in itertools.pairwise(pareto)) and pareto[-1][1] < pareto[0][1]


def test_an_input_with_a_rule_keeps_it_and_is_counted():
    rules = {"1.0.conv": {"activations": {"bits": 8}}}
    run = run_of("residual", **MIXED, budget={"mean_activation_bits": 6}, layers=rules)
    _, *between, _ = input_bits(run)
    assert input_bits(run)["1.0.conv"] == 8 and mean_input_bits(run, between) <= 6
    with pytest.raises(
        BudgetError, match=r"^budget: mean_activation_bits 4 cannot be met; the least is mean_act.* [\d.]+$"
    ):
        run_of("residual", **MIXED, budget={"mean_activation_bits": 4}, layers=rules)


@pytest.mark.parametrize("share", [0.3, pytest.param(0.7, marks=SLOW)])
def test_bit_operations_are_no_more_than_asked_for(share):
    uniform = {width: run_of("residual", weights={"bits": width}, activations={"bits": width}) for width in (4, 8)}
    least, most = (uniform[width].summary.bit_operations for width in (4, 8))
    asked = round(least + share * (most - least))
    run = run_of("residual", budget={"bit_operations": asked})
    assert 0.8 * asked < run.summary.bit_operations <= asked
    assert list(run.recipe.layers) == list(g.layers(run.teacher))  # the same in every process, whatever strings hash to
    assert len(set(bits(run).values()) | set(input_bits(run).values())) > 1


def test_the_least_bit_operations_are_told_and_can_be_asked_for():
    with pytest.raises(
        BudgetError, match=r"^budget: bit_operations 1 cannot be met; the least is bit_operations \d+$"
    ) as caught:
        run_of("chain", budget={"bit_operations": 1})
    least = int(str(caught.value).split()[-1])
    assert run_of("chain", budget={"bit_operations": least}).summary.bit_operations == least


@pytest.mark.parametrize("budget", [{"bytes": 1000}, {"mean_bits": 4}, {"mean_activation_bits": 5}])
def test_without_scipy_it_says_how_to_install_it(budget, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    model, inputs = NETS["chain"]()
    with pytest.raises(
        BudgetError, match=re.escape(f"a budget of bytes, bits or bit operations needs scipy; {install('budget')}")
    ):
        compress(model, Recipe(budget=budget, signal={"images": 2}), inputs)


@pytest.mark.parametrize("budget", [{"sparsity": 0.3}, {"macs": 60_000}])
def test_other_budgets_need_no_scipy(budget, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    model, inputs = NETS["chain"]()
    run = compress(model, Recipe(budget=budget, signal={"images": 2}), inputs)
    assert run.recipe.budget is None and run.recipe.prune is not None


def test_the_teacher_and_the_model_stay_as_they_are():
    model, inputs = NETS["chain"]()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    run = compress(model, Recipe(budget={"mean_bits": 3}, signal={"images": 2}, equalize="off"), inputs)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(run.teacher(*inputs), model(*inputs), rtol=1e-3, atol=1e-4)
    assert list(g.layers(run.teacher)) == list(CHAIN)
