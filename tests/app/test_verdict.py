"""The last line of a compression: one piece of advice, that for what is worst."""

from dataclasses import replace

import pytest

from datafree.app.sentences import RANDOM_WEIGHTS
from datafree.app.verdict import Speed, advice, verdict
from datafree.export import Written
from datafree.records import Estimate
from nets import compressed

SLOW = Speed(1.0, 2.0, 0.5, 1)


def a_run(agreement=99.0, text=""):
    done = compressed("residual", "signal: {images: 2}\nsolve: {method: nearest}\n" + text)
    return replace(done, summary=replace(done.summary, estimate=Estimate(agreement, agreement, agreement)))


@pytest.mark.parametrize(
    "agreement, text, size, speed, said",
    [
        (99.0, "", 2000, None, "the network is tiny"),
        (50.0, "", 500, None, "try --set weights.bits=null"),
        (50.0, "weights: {bits: 4}", 500, None, "try --recipe w8a8"),
        (50.0, "activations: {bits: 4}", 500, None, "try --recipe w4a8"),
        (50.0, "prune: {sparsity: 0.5}", 500, None, "try a lower prune.sparsity"),
        (99.0, "", 250, SLOW, "slower than float here"),
        (99.0, "", 250, None, "a warning"),
    ],
)
def test_the_worst_comes_first(agreement, text, size, speed, said):
    assert said in advice(a_run(agreement, text), size, 1000, speed, ("a warning", "another one"))


def test_random_weights_come_before_all_else():
    warnings = ("a warning", RANDOM_WEIGHTS)
    assert advice(a_run(50.0), 500, 1000, SLOW, warnings) == RANDOM_WEIGHTS


def test_nothing_to_say_is_no_row(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"1")
    found = verdict(a_run(), tmp_path / "net.onnx", Written(), None, ())
    assert [*found] == ["size", "agreement"]
