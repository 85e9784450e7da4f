"""Tiny nets, one hazard each: every pass over a graph runs on all of them.

    @pytest.mark.parametrize("make", NETS.values(), ids=NETS)
    def test_something(make):
        model, inputs = make()          # eval mode, BatchNorm randomised, the same bits at every call

Module names such as `0.conv` are the user's names, so tests may ask for them.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from datafree import Recipe, compress

Make = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
NETS: dict[str, Make] = {}
IMAGE = (2, 3, 16, 16)


def net(name: str, *shapes: tuple[int, ...], then: Callable[[nn.Module], None] | None = None):
    """Enter a class, or a function that returns a model, in `NETS`.

    Args:
        shapes: of the example inputs; one `IMAGE` when left out.
        then: changes the model in place after its BatchNorm layers were randomised.
    """

    def register(build: Callable[[], nn.Module]):
        def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = build().eval()
                for module in model.modules():
                    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                        nn.init.kaiming_normal_(module.weight)  # the default lets a signal die in five layers
                inputs = tuple(torch.randn(shape) for shape in shapes or (IMAGE,))
            randomise_batchnorm_(model, Generator().manual_seed(0))
            if then is not None:
                then(model)
            return model, inputs

        NETS[name] = make
        return build

    return register


@torch.no_grad()
def randomise_batchnorm_(model: nn.Module, generator: Generator) -> None:
    """Give every BatchNorm statistics and an affine map that no shortcut survives; 1 gamma in 4 is < 0."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm | FunctionalNorm):
            continue
        mean, var = module.running_mean, module.running_var
        mean.copy_(torch.randn(mean.shape, generator=generator) / 2)
        var.copy_(0.25 + 2 * torch.rand(var.shape, generator=generator))
        if module.weight is not None:
            gamma, sign = torch.rand(2, *var.shape, generator=generator)
            module.weight.copy_((0.5 + gamma) * torch.where(sign < 0.25, -1, 1))
            module.bias.copy_(torch.randn(mean.shape, generator=generator) / 2)


@torch.no_grad()
def calibrate_batchnorm_(model: nn.Module, *inputs: Tensor) -> None:
    """Set the running statistics to those of `inputs`: a deep net of random weights then sees its input.

    Without it, outputs of the nets in `cnns.py` are from 1e-14 to 1e9 and hardly differ from image to image.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


# Parts


def conv(c_in, c_out, size=3, *, stride=1, groups=1, bias=False):
    return nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=bias)


def block(c_in, c_out, size=3, *, stride=1, groups=1, act=nn.ReLU):
    """conv, bn, act; `act=nn.Identity` leaves the sum to be activated."""
    layers = conv(c_in, c_out, size, stride=stride, groups=groups), nn.BatchNorm2d(c_out), act()
    return nn.Sequential(OrderedDict(zip(("conv", "bn", "act"), layers, strict=True)))


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Sum(nn.ModuleList):
    def forward(self, x):
        return self[0](x) + self[1](x)


class Concat(nn.ModuleList):
    def forward(self, x):
        return torch.cat([branch(x) for branch in self], 1)


# How layers follow each other


@net("chain")
def chain():
    return nn.Sequential(block(3, 8), block(8, 8, stride=2), head(8))


@net("declared out of order")
class OutOfOrder(nn.Module):
    """Declared conv1 bn2 conv2 bn1, all of one width: folding by declaration fits and is wrong."""

    def __init__(self):
        super().__init__()
        self.head = head(6)
        self.conv1, self.bn2 = conv(3, 6), nn.BatchNorm2d(6)
        self.conv2, self.bn1 = conv(6, 6), nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))))


@net("residual")
def residual():
    body = Residual(block(6, 8), block(8, 6, act=nn.Identity))
    again = Residual(block(6, 4), block(4, 6, act=nn.Identity))
    return nn.Sequential(block(3, 6), body, nn.ReLU(), again, nn.ReLU(), head(6))


@net("residual with projection")
def projection():
    body, shortcut = block(4, 8, stride=2, act=nn.Identity), block(4, 8, 1, stride=2, act=nn.Identity)
    return nn.Sequential(block(3, 4), Sum([body, shortcut]), nn.ReLU(), head(8))


@net("depthwise inverted residual")
def inverted_residual():
    expand, depthwise = block(4, 12, 1, act=nn.ReLU6), block(12, 12, groups=12, act=nn.ReLU6)
    body = Residual(expand, depthwise, block(12, 4, 1, act=nn.Identity))
    return nn.Sequential(block(3, 4, stride=2, act=nn.ReLU6), body, block(4, 8, 1, act=nn.ReLU6), head(8))


@net("depthwise with multiplier")
def depthwise_multiplier():
    return nn.Sequential(block(3, 6, groups=3), block(6, 12, groups=6), block(12, 6, 1), head(6))


@net("grouped")
def grouped():
    return nn.Sequential(block(3, 8), block(8, 12, groups=4), block(12, 6, groups=2), head(6))


@net("concat")
def dense():
    grow = Concat([nn.Identity(), block(4, 4)]), Concat([nn.Identity(), block(8, 4)])
    return nn.Sequential(block(3, 4), *grow, block(12, 6, 1), head(6))


@net("squeeze and excitation")
class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.last, self.head = block(3, 8, act=nn.SiLU), block(8, 6, 1, act=nn.SiLU), head(6)
        self.reduce, self.expand = conv(8, 2, 1, bias=True), conv(2, 8, 1, bias=True)

    def forward(self, x):
        x = self.stem(x)
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return self.head(self.last(x * gate.sigmoid()))


@net("channel shuffle and split")
class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = (
            block(3, 8),
            nn.Sequential(block(4, 4, 1), block(4, 4, groups=4, act=nn.Identity)),
        )
        self.last, self.head = block(8, 6, 1), head(6)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, self.body(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(self.last(x))


@net("several consumers")
def several_consumers():
    """The raw output of a convolution is used besides its BatchNorm: folding would change the sum."""
    both = Sum([nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()), nn.Identity()])
    return nn.Sequential(block(3, 6), conv(6, 6), both, block(6, 6, 1), head(6))


@net("two inputs", IMAGE, (2, 1, 16, 16))
class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.colour, self.depth, self.head = block(3, 6), block(1, 6), head(6)

    def forward(self, image, depth):
        return self.head(self.colour(image) + self.depth(depth))


@net("two outputs")
class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep, self.head = block(3, 6), block(6, 8, stride=2), head(8)

    def forward(self, x):
        shallow = self.stem(x)
        return self.head(self.deep(shallow)), shallow


@net("dict output")
class DictOutput(TwoOutputs):
    def forward(self, x):
        return dict(zip(("classes", "shallow"), super().forward(x), strict=True))


# How parameters are held


@net("shared module")
def shared_module():
    twice = block(6, 6)
    return nn.Sequential(block(3, 6), twice, twice, head(6))


@net("shared conv, two batchnorms")
def shared_conv():
    twice, norms = conv(6, 6), (nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    return nn.Sequential(block(3, 6), twice, norms[0], nn.ReLU(), twice, norms[1], nn.ReLU(), head(6))


@net("tied weight")
def tied_weight():
    """Two modules, two names, one parameter."""
    model = nn.Sequential(block(3, 6), block(6, 6), block(6, 6), head(6))
    model[2].conv.weight = model[1].conv.weight
    return model


@net("computed weight")
class Standardised(nn.Module):
    """As timm's StdConv2d: the weight is computed, and by a batch_norm that is no BatchNorm of the net."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.last, self.head = conv(3, 6), nn.BatchNorm2d(6), block(6, 6), head(6)

    def forward(self, x):
        rows = self.conv.weight.reshape(1, 6, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0).reshape_as(self.conv.weight)
        return self.head(self.last(F.relu(self.bn(F.conv2d(x, weight, padding=1)))))


@net("constant tensors")
class Constants(nn.Module):
    """The input is normalised inside; one constant is a buffer, one is made in `forward`."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(block(3, 6), block(6, 6), head(6))
        self.register_buffer("offset", torch.full((3, 1, 1), 0.4), persistent=False)

    def forward(self, x):
        return self.body((x - self.offset) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)) * 2


@net("unused module")
class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.spare, self.body, self.head = block(3, 6), block(6, 6), block(6, 6), head(6)

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


# Where a BatchNorm sits, and what it has


class FunctionalNorm(nn.Module):
    """As timm's BatchNormAct2d: found in the graph, never by the type of a module."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


@net("functional batchnorm")
def functional_batchnorm():
    layers = conv(3, 6), FunctionalNorm(6), nn.ReLU(), conv(6, 6), FunctionalNorm(6), nn.ReLU6()
    return nn.Sequential(*layers, head(6))


@net("pre-activation")
def pre_activation():
    def unit(width):
        before, after = [nn.BatchNorm2d(6), nn.ReLU()], [nn.BatchNorm2d(width), nn.ReLU()]
        return Residual(*before, conv(6, width), *after, conv(width, 6))

    return nn.Sequential(conv(3, 6), unit(8), unit(4), nn.BatchNorm2d(6), nn.ReLU(), head(6))


@net("batchnorm without affine")
def without_affine():
    first, second = nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, affine=False, eps=0.1)
    return nn.Sequential(conv(3, 6), first, nn.ReLU(), conv(6, 6, bias=True), second, nn.ReLU(), head(6))


@net("conv without batchnorm")
def without_batchnorm():
    return nn.Sequential(block(3, 6), conv(6, 8, bias=True), nn.ReLU(), conv(8, 6), nn.ReLU(), block(6, 6), head(6))


@net("no batchnorm at all")
def no_batchnorm():
    return nn.Sequential(conv(3, 6, bias=True), nn.ReLU(), conv(6, 6, bias=True), nn.ReLU(), head(6))


@net("conv with bias and batchnorm")
def with_bias():
    first, second = conv(3, 6, bias=True), conv(6, 6, bias=True)
    return nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), second, nn.BatchNorm2d(6), nn.ReLU(), head(6))


@net("batchnorm first")
def batchnorm_first():
    """Nothing before it to fold into, and the padding after it forbids folding forward."""
    return nn.Sequential(nn.BatchNorm2d(3), block(3, 6), block(6, 6), head(6))


@net("batchnorm after activation")
def after_activation():
    layers = conv(3, 6), nn.ReLU(), nn.BatchNorm2d(6), conv(6, 6, 1), nn.ReLU(), nn.BatchNorm2d(6)
    return nn.Sequential(*layers, conv(6, 6), nn.ReLU(), head(6))


@net("batchnorm after pooling and concat")
def after_pooling():
    pooled = nn.AvgPool2d(2), nn.BatchNorm2d(6), nn.ReLU()
    joined = Concat([conv(6, 4), conv(6, 4, 1)]), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(conv(3, 6), *pooled, *joined, block(8, 6, 1), head(6))


@net("batchnorm twice")
def batchnorm_twice():
    return nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.ReLU(), block(6, 6), head(6))


@net("linear after flatten")
def linear_after_flatten():
    """One channel feeds 4 * 4 columns of the first linear layer."""
    features = block(3, 6, stride=2), nn.MaxPool2d(2), nn.Flatten()
    hidden = nn.Linear(6 * 4 * 4, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 8, bias=False)
    return nn.Sequential(*features, *hidden, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))


@torch.no_grad()
def kill_channels_(model: nn.Module) -> None:
    """Channel 0 has gamma 0, 1 var 0, 2 both, 3 no weights, 4 weights near 0; nothing reads the last 5."""
    for part in (model[0], model[1]):
        part.bn.weight[[0, 2]] = 0
        part.bn.running_var[[1, 2, 3]] = 0  # what a constant input leaves behind
        part.bn.running_mean[[1, 2, 3]] = 0
        part.conv.weight[1] *= 1e-3
        part.conv.weight[3] = 0
        part.conv.weight[4] *= 1e-12
    model[2][2].weight[:, 5] = 0


@net("dead channels", then=kill_channels_)
def dead_channels():
    return nn.Sequential(block(3, 8), block(8, 8), head(8))


# Operations between layers


@net("in place")
class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = block(3, 6), block(6, 6, act=nn.Identity)
        self.act, self.last, self.head = nn.ReLU6(inplace=True), block(6, 6), head(6)

    def forward(self, x):
        y = self.act(self.stem(x))
        x = self.body(y)
        x += y
        F.relu_(x)  # the result is not used, its effect is
        half = x.clone().mul_(0.5)  # x itself stays as it is
        return self.head((self.last(half) + x).clamp_(max=1.0))


@net("in place through a view")
class InPlaceView(nn.Module):
    """Writing to a part of a tensor, then reading the whole: an in-place op must not merely be renamed."""

    def __init__(self):
        super().__init__()
        self.stem, self.part, self.last, self.head = block(3, 6), block(2, 2), block(6, 6), head(6)

    def forward(self, x):
        x = self.stem(x)
        x[:, :2] = self.part(x[:, :2])
        x[:, 4:].mul_(0.5)
        return self.head(self.last(x))


@net("pools")
def pools():
    """Average pooling that counts the padding, maximum pooling that rounds up."""
    average, maximum = nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True)
    adaptive = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
    return nn.Sequential(block(3, 6), average, block(6, 6), maximum, block(6, 6), *adaptive)


@net("activations")
def activations():
    prelu = nn.PReLU(6, init=0.1)
    acts = nn.Hardswish, lambda: nn.LeakyReLU(0.2), lambda: prelu, nn.GELU, nn.Hardsigmoid
    return nn.Sequential(block(3, 6, act=acts[0]), *(block(6, 6, act=act) for act in acts[1:]), head(6))


@net("dropout")
def dropout():
    return nn.Sequential(block(3, 6), nn.Dropout2d(0.3), block(6, 6), nn.Dropout(0.5, inplace=True), head(6))


@net("padding same")
def padding_same():
    """Another overload of aten.conv2d, whose padding is a string."""
    first = nn.Conv2d(3, 6, 3, padding="same", bias=False)
    second = nn.Conv2d(6, 6, (3, 5), padding="same", dilation=(2, 1), bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), second, nn.BatchNorm2d(6), nn.ReLU(), head(6))


@net("asymmetric zero padding")
def asymmetric_padding():
    """As TensorFlow pads strided convolutions; the second pad is not zero, so not part of the convolution."""
    first, second = nn.Conv2d(3, 6, 3, 2, bias=False), nn.Conv2d(6, 6, 3, 2, bias=False)
    norms = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
    pads = nn.ZeroPad2d((0, 1, 0, 1)), nn.ConstantPad2d((0, 1, 0, 1), 0.5)
    return nn.Sequential(pads[0], first, norms[0], nn.ReLU(), pads[1], second, norms[1], nn.ReLU(), head(6))


@net("reflection padding")
def reflection_padding():
    second = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect", bias=False)
    return nn.Sequential(block(3, 6), second, nn.BatchNorm2d(6), nn.ReLU(), head(6))


@net("dilated and rectangular")
def dilated():
    first = nn.Conv2d(3, 6, 3, dilation=2, padding=2, bias=False)
    second = nn.Conv2d(6, 6, (1, 5), (2, 1), (0, 2), bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), second, nn.BatchNorm2d(6), nn.ReLU(), head(6))


@net("transposed conv")
def transposed():
    """Its weight is (C_in, C_out/groups, k, k): output channels are not the first axis."""
    up = nn.ConvTranspose2d(6, 6, 2, 2, bias=False)
    return nn.Sequential(block(3, 6, stride=2), up, nn.BatchNorm2d(6), nn.ReLU(), block(6, 6), head(6))


class UNet(nn.Module):
    """Two scales; the smaller one comes back by a transposed convolution and is joined to what it left."""

    def __init__(self):
        super().__init__()
        self.first, self.down = block(3, 6), block(6, 8, stride=2)
        up = nn.ConvTranspose2d(8, 6, 2, 2, bias=False)
        self.up = nn.Sequential(up, nn.BatchNorm2d(6), nn.ReLU())
        self.last, self.mask = block(12, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        fine = self.first(x)
        return self.mask(self.last(torch.cat([fine, self.up(self.down(fine))], 1)))


net("U-Net")(UNet)


@net("upsampling by every transposed conv")
def every_transposed():
    """Overlapping kernels, groups, dilation, output padding, padding; depthwise, as bilinear upsampling is."""
    layers = (
        nn.ConvTranspose2d(8, 6, (4, 3), 2, (1, 0), (1, 1), groups=2, bias=False, dilation=(1, 2)),
        nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6),
    )
    first, second = (nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU()) for layer in layers)
    return nn.Sequential(block(3, 8, stride=4), first, second, head(6))


def block1d(c_in, c_out, size=3, *, up=False, **options):
    kind = nn.ConvTranspose1d if up else nn.Conv1d
    return nn.Sequential(kind(c_in, c_out, size, bias=False, **options), nn.BatchNorm1d(c_out), nn.ReLU())


@net("keyword spotting", (2, 5, 40))
def keyword_spotting():
    """(N, features, time): convolutions along time, dilated, depthwise, "same"; pooling, and a class for each clip."""
    return nn.Sequential(
        block1d(5, 8, 5, stride=2, padding=2),
        Residual(*block1d(8, 8, padding="same", dilation=2, groups=2)),
        block1d(8, 8, 9, padding=4, groups=8),
        block1d(8, 12, 1),
        nn.MaxPool1d(2),
        block1d(12, 12),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


@net("1-d autoencoder", (2, 4, 32))
def autoencoder1d():
    """A signal in, a signal out."""
    return nn.Sequential(
        block1d(4, 8, 4, stride=2, padding=1),
        nn.AvgPool1d(2),
        block1d(8, 8, groups=2, padding=1),
        block1d(8, 6, 4, up=True, stride=2, padding=1),
        nn.Upsample(scale_factor=2),
        nn.Conv1d(6, 4, 3, padding=1),
    )


# For tests that take long on each net: a few hazards in `make test`, all of them in `make test-all`.
FEW = (
    "chain", "residual", "depthwise inverted residual", "grouped", "concat", "squeeze and excitation", "two inputs",
    "two outputs", "shared module", "pre-activation", "linear after flatten", "dead channels", "no batchnorm at all",
)  # fmt: skip
THREE = ("depthwise inverted residual", "squeeze and excitation", "two outputs")


def _fast(names: tuple[str, ...]) -> list:
    every = [name for name in NETS if name != "in place through a view"]
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in every]


FEW_FAST, THREE_FAST = _fast(FEW), _fast(THREE)


@functools.cache
def compressed(name, text):
    """A net of `NETS` and its inputs, compressed by a recipe in YAML; once for all tests of a process."""
    model, inputs = NETS[name]()
    return compress(model, Recipe.parse(text), inputs)


def small_network():
    """Two blocks and a head, and 64 images BatchNorm remembers."""
    torch.manual_seed(0)
    model = nn.Sequential(block(3, 8), block(8, 8, stride=2), head(8))
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    calibrate_batchnorm_(model, x)
    return model.eval(), x


def folded_copy(model):
    """The same function without BatchNorm, as other tools fold it."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.Sequential) and isinstance(getattr(module, "bn", None), nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
    return copied
