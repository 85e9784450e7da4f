"""What every layer gets: bits, zeros, and whole channels that go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from datafree.allocation.budget import Pareto, apply_budget
from datafree.allocation.channels import choose_channels
from datafree.allocation.sparsity import share_zeros
from datafree.graph import Group
from datafree.recipe import Recipe
from datafree.signals import Signal
from datafree.solve import Plan, plan_layers


@dataclass(frozen=True)
class Allocation:
    """What was decided for all layers together.

    recipe: with a rule for each layer in place of a budget.
    channels: groups of channels to remove.
    pareto: the errors predicted for other budgets.
    """

    recipe: Recipe
    plan: Plan
    channels: tuple[Group, ...]
    pareto: Pareto


def allocate(teacher: fx.GraphModule, plan: Plan, source: Signal, recipe: Recipe, pool: Callable) -> Allocation:
    """Turn a budget into bits and sparsity, move zeros between layers, and choose the channels that go.

    Args:
        plan: of the recipe as it was asked for; a budget makes another.

    Raises:
        BudgetError, PruneError: nothing is so small.
    """
    asked = recipe
    recipe, pareto = apply_budget(teacher, plan, source, recipe, pool)
    plan = plan if recipe is asked else plan_layers(teacher, recipe)
    plan = share_zeros(teacher, plan, source, recipe, pool)
    plan, channels = choose_channels(teacher, plan, source, recipe)
    return Allocation(recipe, plan, channels, pareto)
