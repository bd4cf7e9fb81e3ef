"""What a merge method is: a function from the inputs and their weights to a `Combination`, and which settings it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mhr.merging.source import Layer
from mhr.registry import Registry

SPACES = ("factor", "delta")
"""What is merged: the tensors of the adapters as they are, or the updates of the weights that LoRA factors amount to."""

MergeTensors = Callable[[str, Sequence[Tensor]], Tensor]
"""A name, and the tensors that the inputs have under it, to the merged one. The tensors are differences from what the
untrained adapter holds (an IA3 vector minus 1), in float32 (float64 for float64); a sequence may compute them when they
are asked for, so each should be asked for as seldom as can be."""


@dataclass(frozen=True)
class Combination:
    """How inputs are merged.

    weights  one for each input, adding up to 1: of weighted averages, and of modules that are stored whole
    tensors  merges tensors that no weighted average can; None where `weighted_average` of all tensors is the merge
    module   merges a tensor of a module that is stored whole; None takes `weighted_average`
    align    makes the inputs' layers alike before they are merged, which must not change what each computes
    notes    what the report is to say
    """

    weights: list[float]
    tensors: MergeTensors | None = None
    module: MergeTensors | None = None
    align: Callable[[list[Layer]], list[Layer]] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A way to merge several inputs.

    combine  `(sources, weights, *, settings...) -> Combination`. Sources come in an order of their own and none twice, so that
             the order in which they were named changes nothing; the weights add up to 1
    spaces   of SPACES, the default first
    weights  whether a user gives weights: "none" (they are equal), "optional" or "needed"
    """

    combine: Callable[..., Combination]
    spaces: tuple[str, ...]
    weights: str

    @property
    def settings(self) -> dict[str, bool]:
        """Names of the settings that `combine` takes -> whether it needs them."""
        parameters = inspect.signature(self.combine).parameters.values()
        return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


methods: Registry[Method] = Registry("merge method")
"""Methods that merge several adapters, by name. Those within one bank are in `mhr.merging.collapse.merge_methods`."""


def register(
    name: str, *spaces: str, weights: str = "none"
) -> Callable[[Callable[..., Combination]], Callable[..., Combination]]:
    """Make a function a method that works in these spaces, of which the first is its default."""

    def decorate(combine: Callable[..., Combination]) -> Callable[..., Combination]:
        methods.register(name)(Method(combine, spaces, weights))
        return combine

    return decorate
