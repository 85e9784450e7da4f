"""LSTM and GRU of ONNX files in PyTorch: gates in another order, directions on an axis of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datafree.models.onnx_file.records import Node
from datafree.models.state_dict import ModelError

Weights = tuple[Tensor, Tensor, Tensor | None]
LSTM_GATES = (0, 2, 3, 1)  # ONNX: input, output, forget, cell; PyTorch: input, forget, cell, output
GRU_GATES = (1, 0, 2)  # ONNX: update, reset, hidden; PyTorch: reset, update, hidden


def lstm(node: Node, x: Tensor, w: Tensor, r: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """x (T, N, C) -> (T, directions, N, H), and the last h and c (directions, N, H).

    `rest`: biases, lengths of sequences, the first h and c, peepholes; any may be left out.
    """
    b, lengths, h, c, peepholes = (*rest, *[None] * 5)[:5]
    _check(node, lengths, peepholes)
    weights, is_both = _weights(node, (w, r, b), LSTM_GATES), w.shape[0] == 2
    states = [_state(x, r) if state is None else state for state in (h, c)]
    is_reversed = node.attributes.get("direction") == "reverse"
    y, h, c = torch.lstm(x.flip(0) if is_reversed else x, states, weights, b is not None, 1, 0.0, False, is_both, False)
    return _apart(y.flip(0) if is_reversed else y, w.shape[0]), h, c


def gru(node: Node, x: Tensor, w: Tensor, r: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """x (T, N, C) -> (T, directions, N, H), and the last h (directions, N, H). `rest`: biases, lengths, the first h."""
    b, lengths, h = (*rest, *[None] * 3)[:3]
    _check(node, lengths, None)
    if not node.attributes.get("linear_before_reset"):
        raise _refusal(node, "a reset before the product")
    weights, is_both = _weights(node, (w, r, b), GRU_GATES), w.shape[0] == 2
    is_reversed = node.attributes.get("direction") == "reverse"
    start = _state(x, r) if h is None else h
    y, h = torch.gru(x.flip(0) if is_reversed else x, start, weights, b is not None, 1, 0.0, False, is_both, False)
    return _apart(y.flip(0) if is_reversed else y, w.shape[0]), h


def _check(node: Node, lengths: Any, peepholes: Any) -> None:
    special = ("activations", "activation_alpha", "clip", "input_forget", "layout")
    found = [name for name in special if node.attributes.get(name)]
    found = [name for name in found if name != "activations" or not _are_usual(node)]
    found += [name for name, value in (("sequence_lens", lengths), ("peepholes", peepholes)) if value is not None]
    if found:
        raise _refusal(node, found[0])


def _are_usual(node: Node) -> bool:
    kinds = [kind.decode() if isinstance(kind, bytes) else kind for kind in node.attributes["activations"]]
    usual = ["Sigmoid", "Tanh", "Tanh"] if node.operator == "LSTM" else ["Sigmoid", "Tanh"]
    return kinds in (usual, usual * 2)


def _refusal(node: Node, what: str) -> ModelError:
    return ModelError(f"{node}: {what} is not read; export the network without it")


def _state(x: Tensor, r: Tensor) -> Tensor:
    return x.new_zeros(r.shape[0], x.shape[1], r.shape[2])


def _weights(node: Node, given: Weights, gates: tuple[int, ...]) -> list[Tensor]:
    """Per direction: of the input, of the state, and their biases, as PyTorch orders them."""
    w, r, b = given
    found = []
    for direction in range(w.shape[0]):
        found += [_ordered(w[direction], gates), _ordered(r[direction], gates)]
        if b is not None:
            found += [_ordered(half, gates) for half in b[direction].chunk(2)]
    return found


def _ordered(rows: Tensor, gates: tuple[int, ...]) -> Tensor:
    parts = rows.chunk(len(gates))
    return torch.cat([parts[gate] for gate in gates])


def _apart(y: Tensor, directions: int) -> Tensor:
    """(T, N, directions * H) -> (T, directions, N, H)."""
    return y.unflatten(2, (directions, -1)).transpose(1, 2)
