"""What every layer gets: bits, zeros, and whole channels that go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from datafree.allocation.budget import Pareto, apply_budget
from datafree.allocation.channels import choose_channels
from datafree.allocation.neighbours import with_neighbours
from datafree.allocation.sparsity import share_zeros
from datafree.execution import CHOOSING, OnStep, ignore_steps
from datafree.graph import Group
from datafree.recipe import Recipe
from datafree.solve import Problem, plan_layers


@dataclass(frozen=True)
class Allocation:
    """What was decided for all layers together.

    recipe: with a rule for each layer in place of a budget.
    problem: with the plan that came of it; of n:m patterns, the network's channels in another order.
    channels: groups of channels to remove.
    pareto: the errors predicted for other budgets.
    """

    recipe: Recipe
    problem: Problem
    channels: tuple[Group, ...]
    pareto: Pareto


def allocate(problem: Problem, recipe: Recipe, pool: Callable, on_step: OnStep = ignore_steps) -> Allocation:
    """Turn a budget into bits and sparsity, choose neighbours, move zeros between layers, choose channels that go.

    Args:
        problem: its plan is that of the recipe as it was asked for; a budget makes another.

    Raises:
        BudgetError, PruneError: nothing is so small.
    """
    asked = recipe
    if recipe.budget is not None or recipe.prune is not None:
        on_step(CHOOSING, 0, 1)
    recipe, pareto = apply_budget(problem, recipe, pool)
    if recipe is not asked:
        problem = replace(problem, plan=plan_layers(problem.teacher, recipe))
    if recipe.prune is None:
        return Allocation(recipe, problem, (), pareto)
    problem = with_neighbours(problem)
    problem = replace(problem, plan=share_zeros(problem, recipe.prune, pool))
    plan, channels = choose_channels(problem, recipe.prune)
    return Allocation(recipe, replace(problem, plan=plan), channels, pareto)
