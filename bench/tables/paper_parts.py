"""What paper.py measures: every part as a list of points, each one student to be made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bench.networks.trained import SIDE
from bench.published.baselines import LAYERWISE, TRIVIAL
from datafree import Recipe
from datafree.recipe import presets

PLAIN = (
    "signal.kind=propagated",
    "equalize=off",
    "solve.method=nearest",
    "solve.sequential=false",
    "solve.mend=false",
)  # bias corrected
MAGNITUDE = (
    "signal.kind=propagated", "equalize=off", "prune.score=magnitude", "solve.method=nearest",
    "solve.bias_correction=false", "solve.sequential=false", "solve.mend=false",
)  # fmt: skip
ALONE = ("signal.kind=propagated", "solve.sequential=false")
TENSOR = ("weights.per=tensor", "first_last=same", "equalize=foldable")  # as the presets `...-tensor`
WIDTHS = {"w8a8": (8, 8), "w6a6": (6, 6), "w5a5": (5, 5), "w4a8": (4, 8), "w4a4": (4, 4)}
ROUNDED = ("plain rounding", "DFQ", "SQuant", "ZeroQ")
ZEROS = (30, 50, 70)  # percent
COMBINED = ("w3a8", "w4a4", "prune50", "prune70")
LOSSES = ("kl", "mse")
STEPS = 100  # of distillation in a combination, and of its images where they are ours
WARM_UP = 200  # of AKD's generator


@dataclass(frozen=True)
class Point:
    """One student: a method of `baselines`, or a recipe whose student is trained as a whole afterwards or is not.

    preset: the row of the table; what is measured may differ from the package's preset of that name.
    given: arguments of a baseline.
    images: settings of the signal that makes images for training; None = no training.
    """

    part: str
    method: str
    preset: str
    recipe: str = ""
    settings: tuple[str, ...] = ()
    baseline: str = ""
    given: Mapping[str, object] = field(default_factory=dict)
    images: tuple[str, ...] | None = None
    distill: tuple[str, ...] = ()

    @property
    def start(self) -> Recipe:
        """How layers are solved."""
        return Recipe.preset(self.recipe).updated(list(self.settings))

    @property
    def training(self) -> Recipe:
        """The same, with training as a whole and the signal of its images."""
        return self.start.updated([*(self.images or ()), *self.distill])


def points(network: str, parts: Iterable[str]) -> list[Point]:
    """All points of some parts."""
    return [point for part in parts for point in PARTS[part](network)]


# ---- images of generative methods


def published(network: str, steps: int) -> tuple[str, ...]:
    """Deep Inversion's own settings, for networks of small images or of large ones; its steps are 2000 and 20000."""
    setting = "cifar10" if SIDE[network] <= 32 else "imagenet"
    return ("signal.kind=inverted", f"signal.setting={setting}", f"signal.steps={steps}", "signal.images=64")


def short(steps: int) -> tuple[str, ...]:
    """Our images."""
    return ("signal.kind=inverted", f"signal.steps={steps}")


def adversarial(warm_up: int) -> tuple[str, ...]:
    """AKD's generator, warmed up for so many steps."""
    return ("signal.kind=adversarial", f"signal.warmup={warm_up}")


def training(images: tuple[str, ...], *, steps: int, loss: str = "kl", guard: bool = False) -> dict[str, tuple]:
    """Training on images; without a guard and with KL as published."""
    kind = "adversarial" if "signal.kind=adversarial" in images else "inverted"
    asked = (f"distill.images={kind}", f"distill.steps={steps}", f"distill.loss={loss}")
    return {"images": images, "distill": (*asked, f"distill.guard={str(guard).lower()}")}


# ---- parts


def cost(network: str) -> Iterator[Point]:
    """Figure 2: top-1 at 4 bits against forward passes; all per channel but the point that says otherwise."""
    whole = {"part": "cost", "preset": "w4a4"}
    yield Point(method="paper", recipe="w4a4", settings=LAYERWISE, **whole)
    yield Point(method="paper, per tensor", recipe="paper-w4a8", settings=("activations.bits=4",), **whole)
    yield Point(method="ours, propagated", recipe="w4a4", settings=ALONE, **whole)
    for n in (25, 50, 100, 200):
        yield Point(method=f"ours, {n} steps", recipe="w4a4", settings=short(n), **whole)
    plain = {**whole, "recipe": "w4a4", "settings": PLAIN}
    for warm_up in (50, 200):
        for n in (10, 70, 500):
            yield Point(method=f"AKD, {warm_up} + {n} steps", **plain, **training(adversarial(warm_up), steps=n))
    for made in (25, 100, 200):
        yield Point(method=f"DI, our images, {made} + 200 steps", **plain, **training(short(made), steps=200))
    for made in (200, 500, 2000):
        for n in (50, 200):
            yield Point(method=f"DI, {made} + {n} steps", **plain, **training(published(network, made), steps=n))


def bits(network: str) -> Iterator[Point]:
    """8 to 4 bits, per channel and per tensor: published methods of one rounding, the paper, ours."""
    for name, (w, a) in WIDTHS.items():
        for per, first_last, label in (("channel", 8, name), ("tensor", "same", f"{name}-tensor")):
            row = {"part": "bits", "preset": label}
            for method in ROUNDED:
                given = {"bits_w": w, "bits_a": a, "per": per, "first_last": first_last}
                yield Point(method=method, baseline=method, given=given, **row)
            if per == "tensor":
                recipe, settings = (f"paper-{name}", ()) if a != 4 else ("paper-w4a8", ("activations.bits=4",))
                yield Point(method="paper", recipe=recipe, settings=settings, **row)
            own = f"{name}-tensor" if per == "tensor" and f"{name}-tensor" in presets() else name
            settings = TENSOR if per == "tensor" else ()
            yield Point(method="ours, propagated", recipe=own, settings=(*settings, *ALONE), **row)
            yield Point(method="ours", recipe=own, settings=settings, **row)


def sparsity(network: str) -> Iterator[Point]:
    """Zeros anywhere: magnitude in two ways, the paper, ours."""
    for share in ZEROS:
        row = {"part": "sparsity", "preset": f"prune{share}"}
        for method in TRIVIAL:
            yield Point(method=method, baseline=method, given={"sparsity": share / 100}, **row)
        yield Point(method="paper", recipe=f"paper-prune{share}", **row)
        yield Point(method="ours, propagated", recipe=f"prune{share}", settings=ALONE, **row)
        yield Point(method="ours", recipe=f"prune{share}", **row)


def combination(network: str) -> Iterator[Point]:
    """DI and AKD as training, from trivial starts, from the paper's students and from ours."""
    made = 2000 if SIDE[network] <= 32 else 500
    ways = {"DI": published(network, made), "DI, our images": short(STEPS), "AKD": adversarial(WARM_UP)}
    for preset in COMBINED:
        for start, (recipe, settings) in starts(preset).items():
            row = {"part": "combination", "preset": preset, "recipe": recipe, "settings": settings}
            yield Point(method=f"none from {start}", **row)
            for way, images in ways.items():
                images = () if (start, way) == ("ours", "DI, our images") else images  # those its layers were solved on
                for loss in LOSSES:
                    trained = training(images, steps=STEPS, loss=loss, guard=start == "ours")
                    yield Point(method=f"{way}, {loss} from {start}", **row, **trained)


def starts(preset: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Students to start training from: preset of the package and settings, by name."""
    if preset.startswith("prune"):
        return {
            "magnitude of each layer": (preset, (*MAGNITUDE, "prune.scope=layer")),
            "AFCLE and magnitude": (preset, (*MAGNITUDE, "equalize=free")),
            "paper": (f"paper-{preset}", ()),
            "ours": (preset, ()),
        }
    return {"plain": (preset, PLAIN), "paper": (preset, LAYERWISE), "ours": (preset, ())}


def blank(part: str, preset: str, method: str) -> str:
    """Why there is no such row; "" where there could be one."""
    if part == "bits" and method == "paper" and not preset.endswith("-tensor"):
        return "the paper's way, one scale a tensor and first and last layer like the others, is in the rows `-tensor`"
    return ""


PARTS = {"cost": cost, "bits": bits, "sparsity": sparsity, "combination": combination}
