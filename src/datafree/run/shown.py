"""A run as Python shows it: five lines of text, or a small table in a notebook."""

from __future__ import annotations

from html import escape

from datafree.recipe import Recipe
from datafree.records import Summary

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def as_text(summary: Summary, recipe: Recipe) -> str:
    """Five lines."""
    facts = facts_of(summary, recipe)
    return "\n".join([f"Run of {summary.model}", *(f"  {name:<10} {text}" for name, text in facts.items())])


def as_html(summary: Summary, recipe: Recipe) -> str:
    """A table; names and warnings are text, whatever they hold."""
    cells = '<th style="text-align: left">{}</th><td style="text-align: left">{}</td>'
    rows = [f"<tr>{cells.format(escape(k), escape(v))}</tr>" for k, v in facts_of(summary, recipe).items()]
    return f"<table><caption>Run of {escape(summary.model)}</caption>{''.join(rows)}</table>"


def facts_of(summary: Summary, recipe: Recipe) -> dict[str, str]:
    """What was asked, what it is now, and what there is to know of it; each in one line."""
    share = 100 * summary.bytes / max(1, summary.float_bytes)
    macs = "" if summary.macs == summary.float_macs else f", {summary.macs:,} of {summary.float_macs:,} multiply-adds"
    return {
        "asked": _asked(recipe),
        "layers": f"{summary.num_quantized} of {summary.num_layers} compressed, in {summary.seconds:.1f} s",
        "size": f"{num_bytes(summary.bytes)} of {num_bytes(summary.float_bytes)}, {share:.1f} %{macs}",
        "agreement": _agreement(summary) + _warnings(summary),
    }


def _asked(recipe: Recipe) -> str:
    bits = {"weights": recipe.weights.bits, "activations": recipe.activations.bits}
    parts = [f"{what} {f'{width} bits' if width else 'float'}" for what, width in bits.items()]
    if recipe.prune:
        parts.append(f"{100 * recipe.prune.sparsity:.0f} % pruned ({recipe.prune.pattern})")
    return ", ".join(
        [*parts, f"on {recipe.signal.kind} images" if recipe.signal.kind != "loader" else "on images given"]
    )


def _agreement(summary: Summary) -> str:
    if summary.estimate is None:
        return "datafree.estimate(run) predicts it"
    return f"{summary.estimate} of images get the class of the float network, as predicted"


def _warnings(summary: Summary) -> str:
    count = len(summary.warnings)
    return f"; {count} warning{'s' * (count > 1)} in summary.warnings" if count else ""


def num_bytes(count: int) -> str:
    """With the largest unit that fits."""
    size, unit = next(((size, unit) for size, unit in UNITS if count >= size), (1, "bytes"))
    return f"{count / size:.3g} {unit}"
