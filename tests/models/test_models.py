"""Models by name: what is built, what its input looks like, and one clear line for what is wrong."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from datafree import Recipe, compress
from datafree.extras import install
from datafree.models import to_bytes
from datafree.models.load import (
    ModelError,
    Normalization,
    check_weights,
    input_range,
    load_model,
    normalization,
    provenance,
)
from datafree.records import InputRange

SMALL_NET = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

def net_with_example():
    return net(), torch.ones(5, 1, 8, 9)

def needs_classes(num_classes):
    return net()

def nothing():
    return None

def pair_of_nothing():
    return net(), (1, 3, 8, 8)

def flat_example():
    return net(), torch.zeros(1, 3)

INSTANCE = net()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the module `small_net`, imported anew by every test."""
    (tmp_path / "small_net.py").write_text(SMALL_NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "small_net", raising=False)
    return tmp_path


def save(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def small_state() -> dict[str, torch.Tensor]:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()


# --- what is built


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("timm:test_resnet", (1, 3, 160, 160)),
        ("timm:test_resnet.r160_in1k", (1, 3, 160, 160)),
        ("torchvision:squeezenet1_1", (1, 3, 224, 224)),
    ],
)
def test_a_library_network_comes_in_eval_mode_with_its_input_size(name, shape):
    model, example = load_model(name)
    assert not model.training
    assert example.shape == shape and example.dtype == torch.float32 and not example.any()
    with torch.no_grad():
        assert model(example).shape == (1, 1000)


@pytest.mark.parametrize(("name", "side"), [("inception_v3", 299), ("vit_h_14", 224)])
def test_a_torchvision_network_without_weights_is_built_for_the_smallest_published_input(name, side):
    with torch.device("meta"):
        _, example = load_model(f"torchvision:{name}")
    assert example.shape == (1, 3, side, side)


@pytest.mark.slow
def test_a_fresh_process_imports_timm_and_torchvision_without_a_warning():
    code = """if True:
        import sys, datafree.models
        assert not {"timm", "torchvision"} & set(sys.modules)
        print(datafree.models.load_model("timm:test_resnet")[1].shape)
        import torchvision.ops
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "" and "[1, 3, 160, 160]" in done.stdout


def test_other_errors_of_torchvision_are_not_hidden(tmp_path, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('compiled with another CUDA')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="compiled with another CUDA"):
        load_model("timm:test_resnet")


def test_a_factory_is_found_in_the_current_directory(here):
    before = list(sys.path)
    model, example = load_model("small_net:net")
    assert isinstance(model, nn.Sequential) and not model.training
    assert example.shape == (1, 3, 224, 224)
    assert sys.path == before


def test_a_factory_may_give_its_own_example(here):
    _, example = load_model("small_net:net_with_example")
    assert example.shape == (1, 1, 8, 9) and not example.any()


def test_the_demo_network_takes_grey_digits():
    pytest.importorskip("datafree.demo", reason="the demo package is not written yet")
    model, example = load_model("demo")
    assert not model.training and example.shape == (1, 1, 16, 16)
    with torch.no_grad():
        assert model(example).shape == (1, 10)


# --- names that do not work


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:mobilnetv2_100", r'timm has no model \'mobilnetv2_100\'; write .*"timm:mobilenetv2_100"'),
        ("timm:test_resnet.nope", r'write .*"timm:test_resnet.r160_in1k"'),
        ("timm:hf-hub:timm/resnet18", "timm has no model 'hf-hub:timm/resnet18'"),
        ("torchvision:ResNet-18", r'torchvision has no model \'ResNet-18\'; write .*"torchvision:resnet18"'),
        ("torchvision:qqqqqqqq", r"see torchvision's list_models\(\)"),
        ("resnet18", r'allowed are timm:NAME.* and demo; write "timm:resnet18"'),
        ("small_net:", "unknown model"),
        ("small_net.py:net", r'is a path; write "small_net:net" and run in '),
        ("sub/small_net:net", r'is a path; write "small_net:net" and run in .*sub'),
        ("no_such_module:net", "import no_such_module raised ModuleNotFoundError.* importable from /"),
        ("small_net:nett", r'small_net.nett is NoneType; it must be a function.*; write .*"small_net:net"'),
        ("small_net:INSTANCE", "small_net.INSTANCE is Sequential; it must be a function without arguments"),
        ("small_net:needs_classes", "the factory, called with no arguments, raised TypeError: .*num_classes"),
        ("small_net:nothing", "the factory returned NoneType; return nn.Module"),
        ("small_net:pair_of_nothing", "the factory's example is tuple; return a tensor"),
        ("small_net:flat_example", r"the factory's example is \(1, 3\); return a tensor \(N, C, H, W\)"),
    ],
)
def test_a_wrong_name_says_what_to_write(here, name, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=re.escape(f"timm is not installed; {install('models')}")):
        load_model("timm:resnet18")


# --- pretrained


def test_pretrained_and_weights_exclude_each_other():
    with pytest.raises(ModelError, match=r"pretrained=True and weights='net.pth' exclude each other"):
        load_model("timm:test_resnet", weights="net.pth", pretrained=True)


def test_pretrained_is_refused_for_a_factory(here):
    with pytest.raises(ModelError, match=r"pretrained=True is for timm: and torchvision: names, not 'small_net:net'"):
        load_model("small_net:net", pretrained=True)


def test_pretrained_weights_that_do_not_exist():
    with pytest.raises(ModelError, match=r"timm:mobilenetv2_035 are not to be had \(raised .*give weights=FILE"):
        load_model("timm:mobilenetv2_035", pretrained=True)


def test_pretrained_weights_that_cannot_be_stored(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file where the download folder should be")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="torchvision:squeezenet1_1 are not to be had"):
        load_model("torchvision:squeezenet1_1", pretrained=True)


def test_an_error_while_building_without_pretrained_is_not_hidden():
    from datafree.models.load import _build

    with pytest.raises(KeyError, match="boom"):
        _build(lambda: {}["boom"], "timm:x", pretrained=False)


# --- weights


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        pytest.param("net.safetensors", lambda state: state, id="safetensors"),
        pytest.param("net.pth", lambda state: state, id="pth"),
        pytest.param("net.pt", lambda state: {"state_dict": state, "epoch": 3}, id="state_dict"),
        pytest.param("net.pt", lambda state: {"model": {"state_dict": state}}, id="model of state_dict"),
        pytest.param("net.pth", lambda state: {"model": state, "args": {}}, id="model"),
        pytest.param("net.pth", lambda state: {f"module.{k}": v for k, v in state.items()}, id="module."),
        pytest.param(
            "net.safetensors",
            lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
            id="without counters",
        ),
        pytest.param("net.pth", lambda state: {k: v.double() if v.dim() else v for k, v in state.items()}, id="double"),
    ],
)
def test_weights_are_loaded_from_every_common_form(here, file, wrap):
    state = small_state()
    path = save(here, file, wrap(state))
    model, _ = load_model("small_net:net", weights=path)
    loaded = model.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)


def test_a_model_whose_own_names_start_with_module_keeps_them(here):
    (here / "wrapped_net.py").write_text(
        "from torch import nn\ndef net(): return nn.ModuleDict({'module': nn.Linear(2, 2)})"
    )
    state = {"module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)}
    model, _ = load_model("wrapped_net:net", weights=save(here, "net.pth", state))
    assert bool((model.state_dict()["module.weight"] == 1).all())


def test_weights_that_do_not_fit_are_counted_and_named(here):
    state = small_state()
    for name in ("0.weight", "1.weight", "1.bias", "1.running_mean"):
        state[f"x{name}"] = state.pop(name)
    state["0.bias"] = torch.zeros(7)
    path = save(here, "net.safetensors", state)
    message = (
        r"weights .*net.safetensors do not fit 'small_net:net': 4 missing "
        r"\(0.weight, 1.weight, 1.bias, ...\), "
        r"4 unexpected \(x0.weight, x1.bias, x1.running_mean, ...\), "
        r"1 of another shape or kind \(0.bias \(7,\) for \(4,\)\); give the file saved from this very network"
    )
    with pytest.raises(ModelError, match=message):
        load_model("small_net:net", weights=path)


def test_integer_weights_are_refused_in_place_of_float(here):
    state = small_state()
    state["0.weight"] = state["0.weight"].to(torch.int8)
    with pytest.raises(ModelError, match=r"0.weight \(4, 3, 3, 3\) integer for \(4, 3, 3, 3\)"):
        load_model("small_net:net", weights=save(here, "net.pth", state))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param("net.pth", nn.Linear(2, 2), r"hold code \(torch.nn.modules.linear.Linear\)", id="module"),
        pytest.param("net.pth", {"state_dict": {}, "f": Path("x")}, r"hold code \(pathlib\S*\), not", id="object"),
        pytest.param("net.pth", [torch.zeros(1)], "hold list, not tensors by name", id="list"),
        pytest.param("net.pth", {}, "hold dict, not tensors by name", id="empty"),
        pytest.param("net.pth", {"epoch": 3}, "hold int under 'epoch', not a tensor", id="number"),
        pytest.param("net.pth", {3: torch.zeros(1)}, "hold Tensor under 3, not a tensor", id="unnamed"),
    ],
)
def test_files_that_hold_something_else_are_refused(here, file, content, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model("small_net:net", weights=save(here, file, content))
    assert "\n" not in str(caught.value)


def test_torchscript_is_refused(here):
    path = here / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says in several kinds that it will go
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(ModelError, match=r"hold code \(TorchScript\)"):
        load_model("small_net:net", weights=path)


@pytest.mark.parametrize("file", ["net.safetensors", "net.pth", "net.pt"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_refused(here, file, share):
    path = save(here, file, small_state())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    size = path.stat().st_size
    message = rf"{file} \({size} bytes\) cannot be read as \.\w+ \(\w+\); the file is damaged, cut short"
    with pytest.raises(ModelError, match=message):
        load_model("small_net:net", weights=path)


def test_a_weights_file_must_exist_and_have_a_known_suffix(here):
    with pytest.raises(ModelError, match=r"weights no.pth are not a file \(looked from /.*; give .safetensors"):
        load_model("small_net:net", weights="no.pth")
    (here / "net.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"weights net.onnx are .onnx; give .safetensors, .pth or .pt"):
        load_model("small_net:net", weights="net.onnx")


# --- what the input looks like


def test_timm_input_range_follows_from_its_configuration():
    model, _ = load_model("timm:test_resnet")
    assert normalization(model) == Normalization((0.5,) * 3, (0.5,) * 3, "timm pretrained_cfg")
    found = input_range(model)
    assert found.source == "timm pretrained_cfg"
    assert found.mean == pytest.approx((-0.03, -0.088, -0.188))
    assert found.std == pytest.approx((0.458, 0.448, 0.45))


def test_imagenet_normalised_input_has_mean_0_and_std_1():
    model, _ = load_model("torchvision:squeezenet1_1")
    found = input_range(model)
    assert isinstance(found, InputRange) and "SqueezeNet1_1_Weights" in found.source
    assert found.mean == (0, 0, 0) and found.std == (1, 1, 1)


@pytest.mark.parametrize(("name", "mean"), [("efficientnet_v2_l", 0.5), ("efficientnet_v2_m", 0.485)])
@pytest.mark.parametrize("num_classes", [pytest.param(1000, marks=pytest.mark.slow), 10])
def test_torchvision_networks_are_told_apart_by_their_parameters(name, mean, num_classes):
    load_model("torchvision:squeezenet1_1")  # torchvision is importable from here on
    from torchvision.models import get_model

    with torch.device("meta"):
        model = get_model(name, weights=None, num_classes=num_classes)
    assert normalization(model).mean[0] == mean


def test_the_input_range_of_other_networks_is_unknown():
    assert normalization(nn.Conv2d(3, 3, 1)) is None
    assert input_range(nn.Conv2d(3, 3, 1)) is None
    load_model("torchvision:squeezenet1_1")
    from torchvision.models.segmentation.fcn import FCN

    assert input_range(FCN(nn.Identity(), nn.Identity())) is None


def test_a_grey_network_has_a_normalization_but_no_natural_range():
    class Grey(nn.Module):
        pretrained_cfg = {"mean": (0.1,), "std": (0.3,)}  # noqa: RUF012

    assert normalization(Grey()).std == (0.3,)
    assert input_range(Grey()) is None


# --- provenance, damaged values


def test_provenance_names_package_version_and_weights(tmp_path):
    import importlib.metadata

    version = importlib.metadata.version("timm")
    assert provenance("timm:resnet18") == f"timm {version} resnet18, random weights"
    assert provenance("timm:resnet18", pretrained=True) == f"timm {version} resnet18, pretrained weights"
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"some bytes")
    digest = hashlib.sha256(b"some bytes").hexdigest()[:16]
    assert provenance("pkg.nets:make", path) == f"pkg.nets:make, weights net.safetensors sha256:{digest}"
    assert provenance("pkg.nets:make") == "pkg.nets:make, weights as it makes them"
    with pytest.raises(ModelError, match="are not a file"):
        provenance("timm:resnet18", tmp_path / "no.pth")


def test_finite_weights_pass_and_integer_buffers_are_left_alone():
    check_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def test_the_first_damaged_tensor_is_named_with_its_counts():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].running_var[0] = float("inf")
    message = "model.1.running_var holds 1 inf of 4 values: .* load weights whose values are all finite"
    with pytest.raises(ModelError, match=message):
        check_weights(model)
    with torch.no_grad():
        model[0].weight.view(-1)[:3] = float("nan")
        model[0].weight.view(-1)[5] = -float("inf")
    with pytest.raises(ModelError, match=r"model.0.weight holds 3 NaN and 1 inf of 108 values"):
        check_weights(model)


@pytest.mark.parametrize("name", ["net.pt", "net.ts", "nets/net.torchscript"])
def test_files_of_torchscript_are_refused(name):
    with pytest.raises(
        ModelError, match=rf"{name} is not read as a network.*weights=FILE.*torch.onnx.export\(torch.jit"
    ):
        load_model(name)


def test_exported_programs_are_refused_and_compressed_as_the_message_says(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(ModelError, match=r"can run code that is in it.*compress\(torch.export.load\(.*\).module\(\)"):
        load_model(str(path))
    net, example = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.zeros(2, 3, 8, 8)
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own pytrees
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
        run = compress(loaded, Recipe.preset("w8a8").updated(["signal.images=8"]), example)
    assert [layer.name for layer in run.layers] == ["0"]


def test_a_part_of_a_network_is_a_model(tmp_path, monkeypatch):
    (tmp_path / "parted_net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.ReLU())\n"
    )
    monkeypatch.chdir(tmp_path)
    model, example = load_model("parted_net:net#0.0")
    assert (type(model), tuple(example.shape)) == (nn.Conv2d, (1, 3, 224, 224))
    with pytest.raises(ModelError, match=r"parted_net:net has no part 'head'; at the top it has 0, 1"):
        load_model("parted_net:net#head")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large#backbone"])
def test_segmentation_and_detection_networks_of_torchvision_are_built_without_a_download(name):
    model, example = load_model(f"torchvision:{name}")
    assert model(example)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_resnet"])
def test_a_network_is_whole_in_a_process_that_has_not_loaded_its_library(name, tmp_path):
    model, x = load_model(name)[0].eval(), torch.rand(1, 3, 64, 64)
    torch.save(x, tmp_path / "x")
    (tmp_path / "model").write_bytes(to_bytes(model) or b"")
    code = (
        "import pathlib, torch; from datafree.models import from_bytes; "
        "torch.save(from_bytes(pathlib.Path('model').read_bytes())(torch.load('x')), 'y')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "y"), model(x), atol=1e-5)
