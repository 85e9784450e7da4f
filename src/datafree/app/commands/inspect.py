"""`datafree inspect`."""

from __future__ import annotations

from dataclasses import asdict

from datafree.app.arguments import (
    Debug,
    InputShape,
    Json,
    Model,
    Pretrained,
    Quiet,
    RecipeName,
    Settings,
    Threads,
    Verbose,
    Weights,
    read_recipe,
    set_threads,
)
from datafree.app.console import show, show_json


def inspect(
    model: Model,
    recipe: RecipeName = "w4a8",
    settings: Settings = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Say what compress would do with MODEL."""
    from datafree.app import tables
    from datafree.app.inspection import inspect as inspect_model
    from datafree.app.opened import open_network
    from datafree.app.progress import job_progress
    from datafree.app.sentences import forecasts

    set_threads(threads)
    chosen = read_recipe(recipe, settings)
    with job_progress():
        opened = open_network(model, weights=weights, pretrained=pretrained, input_shape=input_shape)
        found = inspect_model(opened.network, opened.example, recipe=chosen)
    warnings = (*tables.about_weights(opened.origin), *found.warnings, *forecasts(found.forecast))
    named = {"model": opened.origin, "recipe": " ".join([recipe, *(settings or [])])}
    if as_json:
        show_json({**asdict(found), **named, "warnings": warnings})
        return
    if verbose:
        show(tables.inspected_table(found))
    facts = {**named, **tables.inspection_facts(found, chosen)}
    show(tables.facts_table(f"{found.model}, as compress would take it", facts))
    show(*tables.notes(warnings, found.skipped + found.kept))
