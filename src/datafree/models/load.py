"""Models by name: the network, what its input looks like, and where it came from."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datafree.models.onnx_file import files_of, load_onnx
from datafree.models.optional import import_optional
from datafree.models.state_dict import ModelError, existing, load_weights_
from datafree.records import NATURAL_MEAN, NATURAL_STD, InputRange

DEFAULT_SIZE = (3, 224, 224)
LIBRARIES = "timm", "torchvision"  # whose networks are named LIBRARY:NAME


@dataclass(frozen=True)
class Normalization:
    """How pixels in 0..1 become the network's input: (x - mean) / std, one entry a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def load_model(
    name: str,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> tuple[nn.Module, Float[Tensor, "n ..."] | tuple[Tensor, ...]]:
    """Build the network `name` in eval mode, and an example input of zeros in its size.

    The example of an .onnx file with several inputs is a tuple. No code is run from a file.

    Without `weights` and `pretrained`, the weights of timm and torchvision networks are random, and nothing
    is downloaded. The digits network of `demo` is always trained.

    Args:
        name: "timm:NAME", "torchvision:NAME", "demo", a path that ends in .onnx, or "pkg.module:factory". All but files
            may end in "#PART", which takes a part of the network by its path, as in
            "torchvision:fcos_resnet50_fpn#backbone". The factory is called without arguments and returns a module, or
            (module, example) with an example (N, C, H, W); without one the input is (1, 3, 224, 224). The current
            directory is searched first.
    weights: .safetensors, or .pth or .pt holding tensors only; a "state_dict" or "model" entry and a
            "module." prefix are unwrapped. Every tensor must fit.
        pretrained: download the published weights of a timm or torchvision network.
        input_shape: (N, C, H, W) of the example, where it shall be another, or an .onnx file leaves sides open.

    Raises:
        ModelError: an unknown name, a factory that fails, a missing optional package, or weights that cannot
            be read, hold code, or do not fit; one line that says what to do.
    """
    if pretrained and weights is not None:
        raise ModelError(f"pretrained=True and weights={str(weights)!r} exclude each other; give one of them")
    name, _, part = name.partition("#")
    if name.endswith(".onnx"):
        if pretrained or weights is not None:
            raise ModelError(f"{name} holds its own weights; leave weights and pretrained out")
        return load_onnx(name, input_shape)
    _refuse_code(name)
    scheme, _, rest = name.partition(":")
    if scheme == "timm":
        model, size = _timm_model(rest, pretrained=pretrained)
    elif scheme == "torchvision":
        model, size = _torchvision_model(rest, pretrained=pretrained)
    elif pretrained:
        raise ModelError(f"pretrained=True is for timm: and torchvision: names, not {name!r}; give weights=FILE")
    elif name == "demo":
        model, size = _demo_model()
    elif scheme and rest:
        model, size = _factory_model(name)
    else:
        raise ModelError(
            f"unknown model {name!r}; allowed are timm:NAME, torchvision:NAME, FILE.onnx, pkg.module:factory and demo; "
            f'write "timm:{name.rpartition("/")[2]}" for the network of that name in timm'
        )
    if weights is not None:
        load_weights_(model, Path(weights), name=name)
    return (_part(model, name, part) if part else model).eval(), torch.zeros(input_shape or (1, *size))


def _part(model: nn.Module, name: str, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        children = ", ".join(child for child, _ in model.named_children())
        raise ModelError(f"{name} has no part {path!r}; at the top it has {children}") from None


def _refuse_code(name: str) -> None:
    """Refuse a file of PyTorch's own that holds a network, and say how to come from it to one that is read."""
    if name.endswith(".pt2"):
        raise ModelError(
            f"{name} is not read: loading an exported program can run code that is in it; where you trust it, call "
            f'compress(torch.export.load("{name}").module(), recipe, example), or export the network as .onnx'
        )
    if name.endswith((".pt", ".pth", ".ts", ".torchscript", ".ckpt")):
        raise ModelError(
            f"{name} is not read as a network: it holds code, or weights alone. Give weights to their network with "
            "weights=FILE; write TorchScript that you trust as .onnx: torch.onnx.export(torch.jit.load(FILE), example, "
            '"net.onnx", dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)'
        )


def normalization(model: nn.Module) -> Normalization | None:
    """Read from a timm or torchvision network how its pixels are normalised; None where unknown.

    timm: `model.pretrained_cfg`. torchvision: the published weights of that network of the same source file
    whose number of parameters is nearest (a model does not know its name, and efficientnet_v2_l alone
    is normalised in another way than all others).
    """
    module = type(model).__module__
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("mean") and config.get("std"):
        return _normalization(config["mean"], config["std"], source="timm pretrained_cfg")
    if module.startswith("torchvision.models."):
        return _torchvision_normalization(model)
    return None


def input_range(model: nn.Module) -> InputRange | None:
    """Say what natural images look like at the network's input; None where its normalisation is unknown."""
    known = normalization(model)
    return None if known is None or len(known.mean) != len(NATURAL_MEAN) else range_of(known)


def range_of(known: Normalization) -> InputRange:
    """What natural images look like once they are normalised.

    They have mean m = (0.485, 0.456, 0.406) and std s = (0.229, 0.224, 0.225) as pixels in 0..1, so the input
    (x - mean) / std has mean (m - mean) / std and std s / std, per channel; grey ones have the means of both.
    """
    m, s = NATURAL_MEAN, NATURAL_STD
    if len(known.mean) != len(m):
        m, s = ((sum(values) / len(values),) * len(known.mean) for values in (m, s))
    return InputRange(
        mean=tuple((middle - shift) / scale for middle, shift, scale in zip(m, known.mean, known.std, strict=True)),
        std=tuple(spread / scale for spread, scale in zip(s, known.std, strict=True)),
        source=known.source,
    )


def provenance(name: str, weights: str | Path | None = None, *, pretrained: bool = False) -> str:
    """Say in one short line where a model and its weights came from."""
    scheme, _, rest = name.partition(":")
    packaged = scheme in LIBRARIES
    origin = f"{scheme} {importlib.metadata.version(scheme)} {rest}" if packaged else name
    if weights is not None or name.endswith(".onnx"):
        path = existing(Path(weights or name))
        origin = path.name if weights is None else f"{origin}, weights {path.name}"
        return f"{origin} sha256:{_digest(files_of(path))}"
    if packaged:
        return f"{origin}, {'pretrained' if pretrained else 'random'} weights"
    return f"{origin}, weights as it makes them"


def _digest(files: Iterable[Path]) -> str:
    """Sixteen hexadecimal digits of all that these files hold."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    return digest.hexdigest()[:16]


def check_weights(model: nn.Module) -> None:
    """Refuse a model that holds a NaN or an infinity.

    Raises:
        ModelError: names the first such tensor and counts its values.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        counts = {"NaN": int(tensor.isnan().sum()), "inf": int(tensor.isinf().sum())}
        found = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        raise ModelError(
            f"model.{name} holds {found} of {tensor.numel()} values: the file is damaged or the training "
            "diverged; load weights whose values are all finite"
        )


def _timm_model(name: str, *, pretrained: bool) -> tuple[nn.Module, tuple[int, ...]]:
    timm = import_optional("timm")
    known = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if name not in known:
        raise ModelError(_unknown("timm", name, known))
    make = functools.partial(timm.create_model, name, pretrained=pretrained)
    model = _build(make, f"timm:{name}", pretrained=pretrained)
    return model, tuple(timm.data.resolve_model_data_config(model)["input_size"])


def _torchvision_model(name: str, *, pretrained: bool) -> tuple[nn.Module, tuple[int, ...]]:
    models = import_optional("torchvision.models")
    known = [network for network in models.list_models() if not network.startswith("quantized_")]
    if name not in known:
        raise ModelError(_unknown("torchvision", name, known))
    published = models.get_model_weights(name)
    chosen = published.DEFAULT if pretrained else None
    more = {} if name in models.list_models(module=models) else {"weights_backbone": None}  # or it would download them
    make = functools.partial(models.get_model, name, weights=chosen, **more)
    model = _build(make, f"torchvision:{name}", pretrained=pretrained)
    # Some networks are also published for larger images; without weights they are built for the smallest.
    sides = [_crop(entry.transforms()) for entry in ([chosen] if chosen else published)]
    return model, (3, min(sides), min(sides))


def _crop(transforms: Any) -> int:
    """The side of the images a network is published for; of those that take any size, a usual one."""
    found = getattr(transforms, "crop_size", DEFAULT_SIZE[1:])
    return found[0] if isinstance(found, list | tuple) else found


def _build(make: Callable[[], nn.Module], label: str, *, pretrained: bool) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # GoogLeNet and Inception announce another way to draw random weights
            warnings.filterwarnings("ignore", message="The default weight initialization of")
            return make()
    except Exception as error:  # without a network each client raises its own type, not all of them OSError
        if not pretrained:
            raise
        raise ModelError(
            f"the pretrained weights of {label} are not to be had ({_raised(error)}); give weights=FILE, or "
            "leave pretrained out for random weights"
        ) from error


def _unknown(scheme: str, name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name.lower(), sorted(known), n=3)
    if not matches:
        return f"{scheme} has no model {name!r}; see {scheme}'s list_models()"
    return f"{scheme} has no model {name!r}; write {_or(scheme, matches)}"


def _or(prefix: str, names: list[str]) -> str:
    return " or ".join(f'"{prefix}:{name}"' for name in names)


def _torchvision_normalization(model: nn.Module) -> Normalization | None:
    models = import_optional("torchvision.models")
    names = models.list_models(module=models)
    peers = [name for name in names if models.get_model_builder(name).__module__ == type(model).__module__]
    if not peers:
        return None  # detection, segmentation, video: other inputs, some normalise inside
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    published = [models.get_model_weights(name).DEFAULT for name in peers]
    nearest = min(published, key=lambda entry: abs(entry.meta["num_params"] - num_parameters))
    transforms = nearest.transforms()
    return _normalization(transforms.mean, transforms.std, source=f"torchvision {nearest}")


def _normalization(mean: Iterable[float], std: Iterable[float], *, source: str) -> Normalization:
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)), source)


def _demo_model() -> tuple[nn.Module, tuple[int, ...]]:
    from datafree.demo import IMAGE_SHAPE, digits_net

    return digits_net(), IMAGE_SHAPE


def _factory_model(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    with _current_directory_first():
        factory = _find_factory(name)
        try:
            built = factory()
        except Exception as error:  # the user's code may raise anything
            raise ModelError(f"model {name!r}: the factory, called with no arguments, {_raised(error)}") from error
    pair = built if isinstance(built, tuple) and len(built) == 2 else (built, torch.zeros(1, *DEFAULT_SIZE))
    model, example = pair
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ModelError(f"model {name!r}: the factory returned {kind}; return nn.Module or (nn.Module, example)")
    if not isinstance(example, Tensor) or example.dim() != 4:
        kind = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ModelError(f"model {name!r}: the factory's example is {kind}; return a tensor (N, C, H, W)")
    return model, tuple(example.shape[1:])


def _find_factory(name: str) -> Callable[[], Any]:
    module_name, _, attribute = name.rpartition(":")
    path = Path(module_name)
    if path.suffix == ".py" or path.name != module_name:
        raise ModelError(
            f'model {name!r} is a path; write "{path.stem}:{attribute}" and run in {path.parent.resolve()}'
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise ModelError(
            f"model {name!r}: import {module_name} {_raised(error)}; it must be importable from {Path.cwd()}"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory) or isinstance(factory, nn.Module):
        known = [key for key, value in vars(module).items() if callable(value)]
        matches = difflib.get_close_matches(attribute, known, n=3)
        hint = f"; write {_or(module_name, matches)}" if matches else ""
        raise ModelError(
            f"model {name!r}: {module_name}.{attribute} is {type(factory).__name__}; it must be a function "
            f"without arguments that returns the network{hint}"
        )
    return factory


@contextmanager
def _current_directory_first() -> Iterator[None]:
    entry = str(Path.cwd())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()  # the module may have been written a moment ago
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have removed it itself
            sys.path.remove(entry)


def _raised(error: Exception) -> str:
    return f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
