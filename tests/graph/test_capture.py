"""Networks are captured as they are called: any number of inputs, operators with several results."""

import gc

import pytest
import torch
from torch import Tensor, nn

from datafree import Recipe, compress
from datafree import graph as g
from datafree.graph import view
from datafree.graph.capture import CaptureError, trace
from datafree.teacher import equalize_


class Sum(nn.Module):
    """Of any number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.conv(torch.stack([x, *others]).sum(0))


def test_any_number_of_inputs():
    net, images = Sum().eval(), tuple(torch.randn(3, 3, 6, 6) for _ in range(3))
    for given in (images[:1], images):
        graph = trace(net, tuple(torch.zeros(1, 3, 6, 6) for _ in given))
        torch.testing.assert_close(graph(*given), net(*given))


class Reader(nn.Module):
    """Columns of an image one after another through an LSTM, whose first result a layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.recurrent, self.last = nn.Conv2d(3, 4, 3), nn.LSTM(16, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.conv(x).flatten(1, 2).transpose(1, 2)
        return self.last(self.recurrent(columns)[0])


def test_one_of_several_results_is_quantized_by_itself():
    net = Reader().eval()
    run = compress(net, Recipe.preset("w8a8").updated(["signal.images=8"]), torch.zeros(1, 3, 6, 6))
    assert [layer.name for layer in run.layers] == ["conv", "last"]
    assert [item.name for item in run.summary.skipped] == ["lstm"]
    x = torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        assert float((run.student(x) - net(x)).square().mean()) < 0.05 * float(net(x).var())


class Detector(nn.Module):
    """A backbone, and a head whose path depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.score = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        scores = self.score(self.backbone(x))
        found = scores[scores > 0]
        return found if len(found) > 3 else scores


def test_the_part_of_a_detector_that_works_is_named_and_no_graph_is_printed(capsys):
    hint = r"Its part 'backbone' can be: give model\.backbone, or MODEL#backbone on the command line"
    with pytest.raises(CaptureError, match=hint):
        trace(Detector(), torch.zeros(1, 3, 8, 8))
    assert capsys.readouterr().err == ""
    assert trace(Detector().backbone, torch.zeros(1, 3, 8, 8))


class Blocks(nn.Module):
    """Autocast that is off, and no_grad, in one another; `amp`: one that is on."""

    def __init__(self, amp: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.amp = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), amp
        self.register_buffer("shift", torch.ones(4, 1, 1))

    def forward(self, x):
        with torch.autocast("cpu", enabled=self.amp):
            y = self.first(x.float())
            with torch.no_grad():
                z = y * 2 + self.shift
        with torch.autocast("cuda", enabled=False):
            return self.second(y.relu() + z), z


def test_blocks_that_do_nothing_are_opened():
    model, x = Blocks().eval(), torch.randn(3, 3, 8, 8)
    graph = trace(model, x)
    assert list(g.layers(graph)) == ["first", "second"]
    assert all(torch.equal(a, b) for a, b in zip(graph(x), model(x), strict=True))


def test_a_block_that_computes_in_another_type_is_refused():
    with pytest.raises(CaptureError, match="wrap_with_autocast wraps a part of the network that cannot be looked into"):
        trace(Blocks(amp=True), torch.randn(3, 3, 8, 8))


class Masked(nn.Module):
    """Multiplies by a mask, adds places, and a batch of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x) * torch.ones(6, 6).tril() + torch.arange(6)
        return y + torch.ones(x.shape[0], 1, 1, 1)


def test_tensors_made_of_numbers_are_constants():
    model, x = Masked().eval(), torch.randn(3, 3, 8, 8)
    graph = trace(model, x)
    made = [node.target for node in graph.graph.nodes if node.op == "call_function" and not node.all_input_nodes]
    assert not made and torch.equal(graph(x), model(x))


class Squeezing(nn.Module):
    """As many classifiers are written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).mean((2, 3), keepdim=True).squeeze())


def test_squeezed_is_what_has_one_entry_but_never_the_images():
    net, x = Squeezing().eval(), torch.randn(3, 3, 6, 6)
    run = compress(net, Recipe.preset("w8a8").updated(["signal.images=8"]), x)
    with torch.no_grad():
        torch.testing.assert_close(trace(net, x)(x), net(x))
        assert run.student(x).shape == (3, 2) and run.student(x[:1]).shape == (1, 2)
        torch.testing.assert_close(run.student(x[:1]), run.student(x)[:1])


class SequenceFirst(nn.Module):
    """One entry stands in front of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 1, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).transpose(0, 1).squeeze().flatten(1))


def test_an_entry_in_front_of_the_images_is_squeezed():
    net, x = SequenceFirst().eval(), torch.randn(3, 3, 6, 6)
    graph = trace(net, x)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), net(x))
        assert graph(x[:1]).shape == (1, 2)


def weights_held(shape):
    """How many tensors of a shape are there, views of one another counted once."""
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter) and item.shape == shape]
    return len({item.untyped_storage().data_ptr() for item in tensors})


@pytest.mark.parametrize("large", [True, False])
def test_weights_of_a_large_network_that_were_replaced_are_let_go(large, monkeypatch):
    """Graphs refer to themselves in circles, which Python collects when it likes."""
    monkeypatch.setattr(view, "LARGE", 0 if large else 2**40)
    net = nn.Sequential(nn.Linear(17, 23, bias=False), nn.ReLU(), nn.Linear(23, 5)).eval()
    net.of_its_own = lambda: None  # cannot be pickled: the suite's memory of exports leaves it alone
    gc.collect()
    gc.disable()
    try:
        graph = g.duplicate(trace(net, torch.zeros(1, 17)))
        equalize_(graph, {}, mode="free")
        held = weights_held((23, 17))
    finally:
        gc.enable()
    assert (held == 2) == large, "the model's, and those that are equalized"
