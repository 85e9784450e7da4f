"""Frozen values that travel between the steps of `compress`. Tensors inside are detached, on CPU, never written to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


class DivergedError(ValueError):
    """A loss that is no longer a number, or rises: the run failed, though its input may be right."""


class MomentsError(ValueError):
    """The inputs of a layer are not finite, or there are none."""


@dataclass(frozen=True)
class ChannelStats:
    """Mean and standard deviation of every channel of one tensor, in units of that tensor.

    `gain`: what one unit of the BatchNorm's own input is here, signed; 0 where a channel is dead, None = not known.
    """

    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]
    gain: Float[Tensor, " c"] | None = None

    def scaled(self, factor: Float[Tensor, " c"]) -> ChannelStats:
        """The statistics of `factor * x`, factor > 0."""
        gain = None if self.gain is None else self.gain * factor
        return ChannelStats(self.mean * factor, self.std * factor, gain)

    def at(self, channels: Int[Tensor, " d"]) -> ChannelStats:
        """Of these channels, in this order."""
        gain = None if self.gain is None else self.gain[channels]
        return ChannelStats(self.mean[channels], self.std[channels], gain)

    def to(self, device: str) -> ChannelStats:
        """The same statistics on another device."""
        gain = None if self.gain is None else self.gain.to(device)
        return ChannelStats(self.mean.to(device), self.std.to(device), gain)


Stats = dict[str, ChannelStats]
"""Statistics by the name of the graph node whose output they describe."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of one layer's unfolded input columns u (n taps of one output channel), per group.

    `mean` is of the teacher's input; `student_mean` and `cov` are of what the student's layer will see.
    `cov` holds H = Cov[u'] as (g, n, n), or only its diagonal as (g, n) for solvers that need no more. Of many taps it
    holds b diagonal blocks, (g * b, m, m) with n = b m; nothing is known between blocks.
    """

    mean: Float[Tensor, "g n"]
    student_mean: Float[Tensor, "g n"]
    cov: Float[Tensor, "gb m m"] | Float[Tensor, "g n"]
    num_rows: int
    cross: Float[Tensor, "gb m m"] | None = None  # Cov[u, u'], where the student's inputs are its own
    scatter: Float[Tensor, " gb"] | None = None  # sum over taps i != j of E[(d_i d_j)^2], d = u' - E[u']

    def __post_init__(self) -> None:
        for name in ("mean", "student_mean", "cov"):
            if not torch.isfinite(torch.stack(getattr(self, name).aminmax())).all():  # without a copy of H
                raise MomentsError(f"the {name} of the layer's inputs is not finite; look at the layers before it")

    @property
    def variance(self) -> Float[Tensor, "g n"]:
        return self.cov if self.cov.dim() == 2 else self.cov.diagonal(dim1=1, dim2=2).reshape(self.mean.shape)

    def blocks(self) -> list[Moments]:
        """The moments of consecutive taps, one for each diagonal block of H; mostly a single one, of all taps."""
        size = self.cov.shape[-1]
        if size == self.mean.shape[1]:
            return [self]
        mean, student_mean = self.mean.split(size, 1), self.student_mean.split(size, 1)
        split = lambda x: x.unflatten(0, (-1, len(mean))).unbind(1)  # noqa: E731
        nothing = [None] * len(mean)
        covs, crosses = split(self.cov), nothing if self.cross is None else split(self.cross)
        scatters = nothing if self.scatter is None else split(self.scatter)
        parts = zip(mean, student_mean, covs, crosses, scatters, strict=True)
        return [Moments(m, s, cov, self.num_rows, cross, scatter) for m, s, cov, cross, scatter in parts]


@dataclass(frozen=True)
class QParams:
    """An integer grid: x ~ (q - zero_point) * scale, q in [qmin, qmax]; one entry, or one for each output channel."""

    scale: Float[Tensor, " c"]
    zero_point: Int[Tensor, " c"]
    qmin: int
    qmax: int

    def __post_init__(self) -> None:
        assert bool((self.scale > 0).all()), "a scale must be positive"

    @property
    def bits(self) -> int:
        return (self.qmax - self.qmin).bit_length()


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of a graph, by its path in the model.

    `weight` is (C_out, C_in/groups, *kernel), `bias` (C_out,); `node` names its graph node. Kernel, stride, padding and
    dilation have one entry for each dimension the kernel spans: none for a linear layer.
    """

    name: str
    node: str
    kind: str  # a name of `graph/layer_types.py`
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    output_padding: tuple[int, ...] = ()  # of a transposed convolution

    @property
    def kernel_size(self) -> int:
        """Taps of one input channel."""
        return math.prod(self.kernel)


@dataclass(frozen=True)
class PruneSpec:
    """How many weights of one layer become zero, and how they are chosen."""

    count: int
    score: str  # "output" | "magnitude"
    steps: int
    pattern: tuple[int, int, int] | None = None  # n, m of an n:m pattern and taps of one input channel
    free: bool = False  # whether other layers may take over some of the count
    columns: tuple[int, ...] = ()  # input channels that go, all their weights with them


@dataclass(frozen=True)
class WeightSpec:
    """What the recipe asks of one layer's weights; `bits` None = float."""

    bits: int | None
    per_channel: bool = True
    symmetric: bool = True
    prune: PruneSpec | None = None
    one_scale: bool = False  # the runtime takes no other


@dataclass(frozen=True)
class LayerResult:
    """One solved layer: integer weights (C_out, n) on the grid of `weight_qparams`, corrected float bias (C_out,).

    Where weights stay float, `weight` is float, `weight_qparams` None and `bits` 32.
    """

    name: str
    weight: Int[Tensor, "c n"] | Float[Tensor, "c n"]
    weight_qparams: QParams | None
    bias: Float[Tensor, " c"]
    error_db: float  # predicted SQNR of the layer's output through its weights alone, decibel, on the signal
    bits: int
    method: str
    seconds: float
    sparsity: float = 0.0  # share of the weights pruned; rounding makes more zeros
    dropped: tuple[str, ...] = ()  # steps that would not have lowered the predicted error
    compensation: float = 0.0  # share of the error upstream the weights make up for
    channel_db: float = math.inf  # of each output channel by itself, as a mean share of its variance; not where pruned
    input_db: float = math.inf  # the same, of rounding the layer's input
    remedy: str = ""  # how the layer was solved where channels were lost as it was asked for
    as_asked_db: float = math.inf  # `channel_db` without the remedy
    tried: tuple[str, ...] = ()  # remedies that did not hold


@dataclass(frozen=True)
class InputRange:
    """Mean and standard deviation of the network's input, per channel (or one for all), as the network sees it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __str__(self) -> str:
        if not self.mean:
            return self.source
        show = lambda values: ", ".join(f"{v:.3g}" for v in values)  # noqa: E731
        return f"mean {show(self.mean)}, std {show(self.std)} ({self.source})"


@dataclass(frozen=True)
class Skipped:
    """Something left as it was, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Estimate:
    """Predicted share of images that get the float network's class, percent, and the ends of a 90 % interval."""

    agreement: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.agreement:.1f} % ({self.low:.1f} to {self.high:.1f})"


@dataclass(frozen=True)
class ChannelRanges:
    """Largest absolute weight of a layer's output channels: the smallest of them, their median, the largest."""

    name: str
    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class Equalization:
    """What equalization did, by layer name."""

    mode: str
    cancelled: tuple[str, ...] = ()  # ranges changed, nothing left over: free
    output_vectors: tuple[str, ...] = ()  # v_o folds into the requantization: one multiplier a channel
    input_vectors: tuple[str, ...] = ()  # v_i stays as a multiply before the input is quantized
    num_layers: int = 0
    depthwise: tuple[str, ...] = ()  # v_i folds into the requantization of the layer before
    dropped: tuple[str, ...] = ()  # producers whose scales would not have lowered the predicted error
    ranges_before: tuple[ChannelRanges, ...] = ()  # of all layers, before anything was moved; () where mode is "off"

    @property
    def coverage(self) -> float:
        """Share of layers whose ranges were changed, percent."""
        changed = {*self.cancelled, *self.output_vectors, *self.input_vectors, *self.depthwise}
        return 100 * len(changed) / max(1, self.num_layers)


@dataclass(frozen=True)
class Fit:
    """How far images that were given are from what BatchNorm remembers.

    distance: mean square deviation of means and standard deviations, in units of what is remembered.
    nearer: another way to read the same pixels that comes much nearer, with its distance `other`; "" = none does.
    """

    distance: float
    nearer: str = ""
    other: float = 0.0


@dataclass(frozen=True)
class SignalSummary:
    """What layers were solved on.

    draws_input: the network's input is drawn too, independent Gaussians in the range of the summary.
    pooling: "executed", or "ignored" as in the paper.
    distance: from BatchNorm's statistics, before and after images were moved to them; None = none were. Without
        BatchNorm, the cross entropy of what they were moved towards.
    asked: percent of the images that show the class they were asked for; None = none was.
    unmoved: why images of a kind that is moved are as they were.
    fit: of images that were given; None = of made ones, or nothing is remembered.
    towards: what images were moved towards where there is no BatchNorm; "" = they were not.
    has_probes: half of the images are procedural ones, beside those that were made.
    """

    kind: str
    num_images: int
    draws_input: bool = False
    pooling: str = "executed"
    distance: tuple[float, float] | None = None
    asked: float | None = None
    unmoved: str = ""
    fit: Fit | None = None
    towards: str = ""
    has_probes: bool = False


@dataclass(frozen=True)
class ActivationBits:
    """Widths of tensors between layers; None = float."""

    layer_inputs: int | None
    others: int | None  # sums, concatenations, pooling, the network's input


@dataclass(frozen=True)
class Distilled:
    """The student trained as a whole: its loss on images held out, and the step it is of; 0 = nothing was gained."""

    loss: str  # "kl" | "mse"
    before: float
    after: float
    step: int
    steps: int


@dataclass(frozen=True)
class Slimmed:
    """Channels that do nothing, which went before anything else: a line for each set of layers, and what they took."""

    removed: tuple[str, ...] = ()
    parameters: int = 0
    macs: int = 0  # for one image


@dataclass(frozen=True)
class Mended:
    """A layer that lost channels as it was asked for, in decibel, and what was done instead.

    tried: what was tried before, and did not hold. bytes: what the remedy adds to weights and scales.
    """

    name: str
    as_asked_db: float
    remedy: str
    channel_db: float
    tried: tuple[str, ...] = ()
    bytes: int = 0


@dataclass(frozen=True)
class CoarseInput:
    """A layer whose input's rounding loses much of its output channels, in decibel.

    output_db: what that rounding, alone, leaves of the network's output: channels may be lost that hardly matter there.
    """

    name: str
    bits: int
    input_db: float
    output_db: float = math.inf


@dataclass(frozen=True)
class Summary:
    """What a run did and what it cost.

    Bytes are of weights and biases at their real widths; multiply-adds and bit operations are of one image.
    """

    model: str
    seed: int
    signal: SignalSummary
    input_range: InputRange
    bytes: int
    float_bytes: int
    macs: int
    bit_operations: int
    float_bit_operations: int
    seconds: float
    peak_memory_bytes: int
    num_layers: int
    num_quantized: int
    equalization: Equalization
    activations: ActivationBits
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    fingerprint: str = ""  # of the model's weights
    estimate: Estimate | None = None  # agreement predicted without data, where it was asked for
    sparsity: float = 0.0  # share of all solved layers' weights pruned
    float_macs: int = 0  # of the float network
    removed: tuple[str, ...] = ()  # whole channels, a line for each set of layers
    pareto: tuple[tuple[float, float], ...] = ()  # budgets and the errors at the network's output predicted for them
    spent_macs: int = 0  # multiply-adds of the compression itself, all images
    forward_equivalents: float = 0.0  # the same in forward passes of one image through the float network
    distilled: Distilled | None = None  # where it was asked for
    slimmed: Slimmed = Slimmed()
    mended: tuple[Mended, ...] = ()
    coarse_inputs: tuple[CoarseInput, ...] = ()
    source: str = ""  # the ONNX file that the network was read from


NATURAL_MEAN, NATURAL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of natural images, pixels in 0..1: the constants that ImageNet training uses everywhere."""

ORIGIN = "origin"
"""What networks read from files write on their calls (torch.fx.traceback.annotate): which node of the file it is."""


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite where there is no noise."""
    return math.inf if noise <= 0 else 10 * math.log10(max(signal, 1e-300) / noise)
