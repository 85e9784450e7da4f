"""`datafree inspect`."""

from __future__ import annotations

from datafree.app import tables
from datafree.app.arguments import (
    Debug,
    InputShape,
    Model,
    Pretrained,
    RecipeName,
    Settings,
    Threads,
    Verbose,
    Weights,
    parse_shape,
    read_recipe,
    set_threads,
)
from datafree.app.console import show
from datafree.app.inspect import inspect as inspect_model
from datafree.app.progress import JobProgress
from datafree.app.sentences import forecasts
from datafree.models import load_model, provenance


def inspect(
    model: Model,
    recipe: RecipeName = "w4a8",
    settings: Settings = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    threads: Threads = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Say what compress would do with MODEL."""
    set_threads(threads)
    chosen = read_recipe(recipe, settings)
    network, example = load_model(model, weights=weights, pretrained=pretrained, input_shape=parse_shape(input_shape))
    origin = provenance(model, weights, pretrained=pretrained)
    with JobProgress():
        found = inspect_model(network, example, recipe=chosen)
    if verbose:
        show(tables.inspected_table(found))
    named = {"model": origin, "recipe": " ".join([recipe, *(settings or [])])}
    facts = {**named, **tables.inspection_facts(found, chosen)}
    show(tables.facts_table(f"{found.model}, as compress would take it", facts))
    warnings = (*tables.about_weights(origin), *found.warnings, *forecasts(found.forecast))
    show(*tables.notes(warnings, found.skipped + found.kept))
