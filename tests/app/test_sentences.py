"""What records of a run say in words."""

import pytest

from datafree.app.sentences import activations_text, distilled_text, equalization_text, signal_text
from datafree.records import ActivationBits, Distilled, Equalization, InputRange, SignalSummary

UNIT = InputRange((0.0,), (1.0,), "a test")


@pytest.mark.parametrize(
    ("signal", "text"),
    [
        (SignalSummary("propagated", 2), "propagated, 2 images"),
        (
            SignalSummary("gaussian", 64, draws_input=True, pooling="ignored"),
            "gaussian, 64 images; the network's input is drawn at mean 0, std 1 (a test); pooling is ignored",
        ),
        (
            SignalSummary("inverted", 4, distance=(6.59, 0.161), asked=100.0),
            "inverted, 4 images; distance from BatchNorm 6.59 -> 0.161, 100 % show the class asked for",
        ),
        (
            SignalSummary("propagated", 4, distance=(8.5, 0.94), asked=72.0, towards="random classes"),
            "propagated, 4 images; cross entropy of random classes 8.5 -> 0.94, 72 % show the class asked for",
        ),
        (
            SignalSummary("propagated", 4, distance=(2.5, 1.2), asked=72.0, towards="random outputs"),
            "propagated, 4 images; cross entropy of random outputs 2.5 -> 1.2, 72 % show what was asked for",
        ),
        (
            SignalSummary("matched", 4, unmoved="there is no BatchNorm"),
            "matched, 4 images; as they were: there is no BatchNorm",
        ),
    ],
    ids=lambda v: getattr(v, "kind", ""),
)
def test_a_signal_says_what_it_is_and_how_well_it_came_out(signal, text):
    assert signal_text(signal, UNIT) == text


def test_equalization_says_how_many_layers_and_at_what_cost():
    done = Equalization("foldable", ("a",), ("b", "c"), ("d",), 8, dropped=("a",))
    assert equalization_text(done) == (
        "foldable: 50 % of 8 layers (1 between layers at no cost, 2 in the requantization, 1 as a multiply, 1 dropped: "
        "no gain)"
    )
    assert equalization_text(Equalization("off")) == "off"
    assert equalization_text(Equalization("depthwise", depthwise=("a",))).startswith("depthwise: inputs of 1 depthwise")


def test_widths_and_losses_are_told():
    assert activations_text(ActivationBits(None, None)) == "float"
    assert activations_text(ActivationBits(4, 8)).startswith("4 bits at layer inputs; 8 at sums")
    assert distilled_text(None) == "none"
    assert distilled_text(Distilled("kl", 0.5, 0.25, 3, 4)) == "kl on images held out 0.5 -> 0.25 after 3 of 4 steps"
    assert distilled_text(Distilled("mse", 0.5, 0.5, 0, 4)).endswith("0 of 4 steps: nothing gained, the start is kept")
