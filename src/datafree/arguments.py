"""The arguments of `compress` and `inspect`, read from what people have at hand."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datafree.graph import Example, tensors_in
from datafree.images import MOST, ImagesError, load_unlabelled
from datafree.models import check_weights, dtype_of, normalization, plain
from datafree.recipe import Loader, Recipe, RecipeError
from datafree.run import Run

Images = Run | tuple[Tensor, ...]


class ArgumentsError(ValueError):
    """An argument of a kind that is not read."""


@dataclass(frozen=True)
class Arguments:
    """What was asked for.

    model: out of its wrappers, in float32, on the CPU. dtype: what it was in.
    example: of zeros. images: a run that made some, or one tensor for each input; None = they are made.
    """

    model: nn.Module
    dtype: torch.dtype
    recipe: Recipe
    example: Example
    images: Images | None = None


def read_arguments(model: Any, recipe: Any, example: Any, images: Any = None) -> Arguments:
    """Read what was given, and refuse what cannot be right before anything is done.

    Images from elsewhere than from a run are real ones, for which the recipe's signal becomes "loader".

    Raises:
        ValueError: one clear line of an argument that is of no kind that is read, or does not fit the others.
    """
    network, asked = plain(model), read_recipe(recipe)
    check_weights(network)
    zeros = read_example(example, network)
    given = read_images(images, network, zeros)
    is_real = given is not None and not isinstance(images, Run | tuple)
    if is_real and not isinstance(given, Run) and not isinstance(asked.signal, Loader):
        asked = asked.updated(["signal.kind=loader"])
    return Arguments(network, dtype_of(model), asked, zeros, given)


def read_recipe(recipe: Any) -> Recipe:
    """A recipe, a preset by its name, or the path of a .yaml file.

    Raises:
        RecipeError: nothing of that.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str | Path):
        raise RecipeError(f'recipe is {type(recipe).__name__}; give a preset such as "w4a8", a .yaml file, or a Recipe')
    is_file = Path(recipe).suffix in (".yaml", ".yml")
    return Recipe.load(recipe) if is_file else Recipe.preset(str(recipe))


def read_example(example: Any, model: nn.Module) -> Example:
    """Zeros of the shapes and types of one input, of a tuple of them, or of a dictionary by the names of `forward`.

    Args:
        example: each a tensor, a NumPy array, or a shape such as (1, 3, 224, 224); floating ones become float32.

    Raises:
        ArgumentsError: anything else, or a name that `forward` does not have.
    """
    if isinstance(example, Mapping):
        return _in_order({str(name): _zeros(x) for name, x in example.items()}, model)
    if isinstance(example, tuple | list) and example and not _is_shape(example):
        return tuple(map(_zeros, example))
    return _zeros(example)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(isinstance(side, int) for side in value)


def _zeros(x: Any) -> Tensor:
    if _is_shape(x):
        return torch.zeros(*x)
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor):
        raise ArgumentsError(
            f"the example holds {type(x).__name__}; give an input of the network as a tensor, a NumPy array or a shape "
            "such as (1, 3, 224, 224), a tuple of several, or a dictionary of names"
        )
    return torch.zeros(x.shape, dtype=torch.float32 if x.is_floating_point() else x.dtype)


def _in_order(named: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """As `forward` has them."""
    parameters = inspect.signature(model.forward).parameters
    unknown = [name for name in named if name not in parameters]
    if unknown or not named:
        raise ArgumentsError(
            f"the example names {', '.join(unknown) or 'no inputs'}; forward of {type(model).__name__} takes "
            f"{', '.join(map(str, parameters.values())) or 'nothing'}"
        )
    return {name: named[name] for name in parameters if name in named}


# ---- images


def read_images(images: Any, model: nn.Module, example: Example) -> Images | None:
    """A run whose images are used again; or images as the network sees them, one tensor (N, ...) for each input.

    Args:
        images: a run, or the directory of one; a folder of .png or .jpg, .npy or .npz; a tensor or NumPy array; a tuple
            or a dictionary of these, one for each input; or batches, as of a DataLoader: tensors, or tuples that begin
            with the inputs, of which about the first 128 images are taken.

    Raises:
        ImagesError: nothing of that, values that are not finite, or what does not fit the network.
    """
    if images is None or isinstance(images, Run):
        return images
    inputs = tensors_in(example)
    if isinstance(images, str | Path):
        return _from_path(Path(images), model, list(inputs.values()))
    found = _tensors(images, list(inputs))
    if len(found) != len(inputs):
        raise ImagesError(f"images hold {len(found)} tensors, the network has {len(inputs)} inputs; give one for each")
    for x, (name, one) in zip(found, inputs.items(), strict=True):
        check_images(x, one, f"images of {name}" if len(inputs) > 1 else "images")
    return found


def _from_path(path: Path, model: nn.Module, inputs: list[Tensor]) -> Images:
    if (path / "summary.json").is_file():
        return Run.load(path)
    if len(inputs) != 1:
        raise ImagesError(f"the network has {len(inputs)} inputs; give their images as a tuple of tensors")
    x = load_unlabelled(path, shape=tuple(inputs[0].shape[1:]), used=normalization(model))
    check_images(x, inputs[0], f"images of {path}")
    return (x,)


def _tensors(images: Any, names: list[str]) -> tuple[Tensor, ...]:
    if isinstance(images, Tensor | np.ndarray):
        return (as_tensor(images),)
    if isinstance(images, Mapping):
        if set(images) != set(names):
            raise ImagesError(f"images are of {', '.join(map(str, images))}; the network takes {', '.join(names)}")
        return tuple(as_tensor(images[name]) for name in names)
    if isinstance(images, tuple):
        return tuple(map(as_tensor, images))
    if not isinstance(images, Iterable):
        raise ImagesError(
            f"images are {type(images).__name__}; give a tensor, a DataLoader, a folder or a run, or leave them out"
        )
    return _collected(images, names)


def _collected(batches: Iterable[Any], names: list[str]) -> tuple[Tensor, ...]:
    """The first batches; what comes behind the inputs, as labels do, is not read."""
    parts, count = [], 0
    for batch in batches:
        if isinstance(batch, Mapping):
            batch = tuple(batch[name] for name in names if name in batch)
        values = tuple(batch) if isinstance(batch, Sequence) else (batch,)
        if len(values) < len(names):
            raise ImagesError(f"a batch holds {len(values)} tensors; expected {', '.join(names)}, and labels or none")
        parts.append([as_tensor(x) for x in values[: len(names)]])
        count += len(parts[-1][0])
        if count >= MOST:
            break
    if not parts:
        raise ImagesError("images hold no batch; give some, or leave them out and they are made")
    return tuple(torch.cat(part)[:MOST] for part in zip(*parts, strict=True))


def as_tensor(x: Any) -> Tensor:
    """A tensor on the CPU; floating values as float32."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor):
        raise ImagesError(f"images hold {type(x).__name__}; give tensors (N, C, H, W) as the network sees them")
    x = x.detach().cpu()
    return x.float() if x.is_floating_point() else x


def check_images(x: Tensor, example: Tensor, what: str) -> None:
    """Refuse images that are not finite, still pixels, or of another shape than the network's input."""
    found, shape = tuple(x.shape), tuple(example.shape[1:])
    if found[1:] != shape:
        sizes = ", ".join(map(str, shape))
        raise ImagesError(f"{what} are {found}, the network's example is (N, {sizes}); {_way_out(found, shape)}")
    if not len(x):
        raise ImagesError(f"{what} are {found}: none; give some, or leave them out and they are made")
    if x.dtype == torch.uint8 and example.is_floating_point():
        raise ImagesError(f"{what} are 8-bit pixels; give what the network sees, (x / 255 - mean) / std")
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ImagesError(f"{what} hold {bad} of {x.numel()} values that are NaN or inf; look at how they are read")


def _way_out(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if len(found) == 4 and len(shape) == 3:
        if found[1] != shape[0]:
            last = " (they are last here; use x.permute(0, 3, 1, 2))" if found[3] == shape[0] else ""
            return f"they have {found[1]} channels, it takes {shape[0]}{last}"
        return "resize them, or give an example of their size"
    return "give them in that shape"
