"""What a compression will spend is counted before: near what it spends then."""

import pytest

from datafree import Recipe, compress
from datafree.execution import CHOOSING, DISTILLING, MAKING_IMAGES, SOLVING, count_macs
from nets import NETS


@pytest.mark.parametrize(
    "settings, phases",
    [
        ([], [SOLVING]),
        (["solve.method=nearest"], [SOLVING]),
        (["solve={method: straight_through, steps: 20}"], [SOLVING]),
        (["signal={kind: inverted, steps: 20, images: 8}"], [MAKING_IMAGES, SOLVING]),
        (["prune={sparsity: 0.5}"], [CHOOSING, SOLVING]),
        (["distill={steps: 5, images: matched, batch: 8}", "signal={kind: matched, steps: 5}"],
         [MAKING_IMAGES, SOLVING, DISTILLING]),
    ],
)  # fmt: skip
def test_phases_are_told_before_and_nearly_what_is_spent(settings, phases):
    model, inputs = NETS["residual"]()
    plans = []
    with count_macs() as spent:
        compress(model, Recipe.preset("w8a8").updated(["signal.images=8", *settings]), inputs, on_plan=plans.append)
    (plan,) = plans
    assert [*plan.phases] == phases
    assert 1 / 4 < sum(plan.phases.values()) / spent.macs < 4


def test_without_batchnorm_images_are_moved_too():
    model, inputs = NETS["no batchnorm at all"]()
    plans = []
    compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs, on_plan=plans.append)
    assert [*plans[0].phases] == [MAKING_IMAGES, SOLVING]


def test_a_check_may_refuse_before_the_work():
    def refuse(teacher):
        raise ValueError("not this one")

    model, inputs = NETS["chain"]()
    solved = []
    with pytest.raises(ValueError, match="not this one"):
        compress(model, Recipe.preset("w8a8"), inputs, check=refuse, on_done=solved.append)
    assert solved == []
