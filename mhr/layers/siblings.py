"""Layers that read the same x, such as the q, k and v of an attention: the first of them that is called computes for all.

x is then read once for the adapters of all of them, and its gradient is written once. Which layers these are is told by their names,
when a model's factors are mixed together; that they are called with the very same x is looked at in every call. A layer that comes with
another one, or not at all, computes alone from the next call on: nothing but time depends on whether the names told the truth.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mhr.layers.layouts import Layout
from mhr.layers.routed import RoutedLayer
from mhr.layers.routed_linear import RoutedLinear, computed_in, is_plain
from mhr.ops import routed_linears

QUERY_KEY_VALUE = (
    ("q", "k", "v"),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
)
GATE_AND_UP = (("gate_proj", "up_proj"), ("wi_0", "wi_1"))

CROSS = re.compile(r"cross|encdec|encoder_attn", re.IGNORECASE)
"""In the name of what holds an attention: its queries are of one sequence, its keys and values of another."""


@lru_cache(maxsize=8)
def find_siblings(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Those of the layers `names` that are called with the same x, in groups of two or more."""
    children: dict[str, set[str]] = {}
    for name in names:
        parent, _, child = name.rpartition(".")
        children.setdefault(parent, set()).add(child)
    found = []
    for parent, present in children.items():
        readers = [family[1:] if CROSS.search(parent) else family for family in QUERY_KEY_VALUE]
        for family in (*readers, *GATE_AND_UP):
            group = tuple(f"{parent}.{child}".lstrip(".") for child in family if child in present)
            if len(group) > 1:
                found.append(group)
    return found


def can_share(layers: Iterable[RoutedLayer]) -> bool:
    """Whether the layers may be one call of `routed_linears`, if they are called with the same x."""
    facts = set()
    for layer in layers:
        if not isinstance(layer, RoutedLinear) or layer.layout is not Layout.ROWS or layer.doubtful:
            return False
        facts.add((layer.mixed_dtype(), layer.in_features, layer.in_block, layer.scaling))
    return len(facts) == 1 and None not in facts.pop()


class Siblings(NamedTuple):
    """Layers by their names, their factors A side by side and B each."""

    layers: dict[str, RoutedLinear]
    a: Tensor
    b: list[Tensor]


class _Waiting(NamedTuple):
    """What the first of some siblings has computed for the others, and when it is theirs: for this x, as it is now."""

    siblings: Siblings
    leader: str
    x: Tensor
    version: int
    grad: bool
    thread: int
    outputs: dict[str, Tensor]


@dataclass
class SharedInputs:
    """The siblings of one call of a model, by the name of each, and what is waiting for one of them.

    apart  names of layers that turned out to read something else: kept by the bank, for the calls to come
    """

    siblings: Mapping[str, Siblings]
    apart: set[str]
    _waiting: _Waiting | None = None
    _parted: set[int] = field(default_factory=set)  # siblings that compute alone until the call ends

    def again(self) -> SharedInputs:
        """The same as it is now, for a part of the call that may be computed again."""
        return SharedInputs(self.siblings, self.apart, None, set(self._parted))

    def finish(self) -> None:
        """The call has come to its end: who did not come for what is waiting will not be waited for again."""
        if self._waiting is not None:
            self._part(self._waiting.siblings, self._waiting.outputs)

    def output(self, layer: RoutedLinear, x: Tensor) -> Tensor | None:
        """The output of `layer` for x; None where it has to compute alone."""
        siblings = self.siblings.get(layer.name)
        if siblings is None or siblings.layers[layer.name] is not layer:  # a replica of the model has layers of its own
            return None
        waiting = self._waiting
        if waiting is not None:
            if waiting.siblings is siblings and layer.name in waiting.outputs and _is_for(waiting, layer, x):
                y = waiting.outputs.pop(layer.name)
                if not waiting.outputs:
                    self._waiting = None
                return y
            if waiting.thread != threading.get_ident():
                return None
            self._part(waiting.siblings, _odd_ones(waiting, layer))
        if id(siblings) in self._parted or not _can_lead(siblings, x):
            return None
        layers = siblings.layers.values()
        segments = layer.segments(x)
        ys = routed_linears(
            x,
            [one.weight for one in layers],
            [one.bias for one in layers],
            siblings.a,
            siblings.b,
            segments.rows,
            layer.scaling,
            offsets=segments.offsets,
        )
        outputs = dict(zip(siblings.layers, ys, strict=True))
        y = outputs.pop(layer.name)
        when = x._version, torch.is_grad_enabled(), threading.get_ident()
        self._waiting = _Waiting(siblings, layer.name, x, *when, outputs)
        return y

    def _part(self, siblings: Siblings, others: Iterable[str]) -> None:
        self._waiting = None
        self._parted.add(id(siblings))
        self.apart.update(others)


def _odd_ones(waiting: _Waiting, layer: RoutedLinear) -> Iterable[str]:
    """Who reads something else than its siblings, when `layer` comes with another x than the one that is waited for."""
    if waiting.siblings.layers.get(layer.name) is not layer or layer.name not in waiting.outputs:
        return waiting.outputs  # another layer's turn, or the same layer's again
    # As long as nobody has come for what the first one computed, that one is.
    return [waiting.leader if len(waiting.outputs) == len(waiting.siblings.layers) - 1 else layer.name]


def _is_for(waiting: _Waiting, layer: RoutedLinear, x: Tensor) -> bool:
    return (
        waiting.x is x
        and waiting.version == x._version
        and waiting.grad == torch.is_grad_enabled()
        and waiting.thread == threading.get_ident()
        and waiting.outputs[layer.name].dtype == computed_in(x)
    )


def _can_lead(siblings: Siblings, x: Tensor) -> bool:
    """Whether the layers are still what they were when their factors were mixed. Tensors of inference mode do not count how often
    they were changed."""
    return (
        not x.is_inference()
        and computed_in(x) == siblings.a.dtype
        and all(is_plain(layer.base) for layer in siblings.layers.values())
    )
