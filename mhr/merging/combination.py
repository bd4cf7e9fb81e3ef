"""What a merge method computes: from the inputs, their weights and its settings a `Combination`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mhr.adapters.layer import AdapterLayer
from mhr.adapters.plain import PlainAdapter
from mhr.merging.methods import MERGE_METHODS
from mhr.registry import Registry
from mhr.setting import settings_of

MergeTensors = Callable[[str, Sequence[Tensor]], Tensor]
"""A name, and the tensors that the inputs have under it, to the merged one. The tensors are differences from what the
untrained adapter holds (an IA3 vector minus 1), in float32 (float64 for float64); a sequence may compute them when they
are asked for, so each should be asked for as seldom as can be."""


@dataclass(frozen=True)
class Combination:
    """How inputs are merged.

    weights  one for each input: of the weighted sum that the merge is, and of the average of modules that are stored whole
    tensors  merges tensors that no weighted sum can; None where `weighted_average` of all tensors is the merge
    module   merges a tensor of a module that is stored whole; None takes `weighted_average`
    align    the name of a layer and the inputs' layers of it -> these, made alike without changing what each computes
    notes    what the report is to say
    shares   weights of modules that are stored whole, adding up to 1, where `weights` do not; None takes these
    by_layer  the name of a layer and the inputs' layers of it -> weights of the sum there, in place of `weights`
    """

    weights: list[float]
    tensors: MergeTensors | None = None
    module: MergeTensors | None = None
    align: Callable[[str, list[AdapterLayer]], list[AdapterLayer]] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    shares: list[float] | None = None
    by_layer: Callable[[str, Sequence[AdapterLayer]], list[float]] | None = None


@dataclass(frozen=True)
class Combiner:
    """What a method does over several inputs.

    combine   `(sources, weights, *, settings..., needs...) -> Combination`. Sources come in an order of their own and none twice,
              so that the order in which they were named changes nothing; the weights add up to 1, save of methods that sum
    needs     "judge" and "score", what it is given to look at data
    """

    combine: Callable[..., Combination]
    needs: frozenset[str]


combiners: Registry[Combiner] = Registry("merge method")
"""What merges several adapters, by the name of its row in MERGE_METHODS."""

merge_methods: Registry[Callable[..., PlainAdapter]] = Registry("merge method")
"""What merges one bank, by the name of its row: `(checkpoint, *, options...) -> PlainAdapter`, given the task and the weights if
it names them."""


def combines(name: str) -> Callable[[Callable[..., Combination]], Callable[..., Combination]]:
    """Make a function what the method of this name does over several inputs.

    Its keyword-only parameters are the method's settings, checked and with their defaults, and otherwise what it needs.
    """
    own = MERGE_METHODS[name].settings
    names = settings_of(own).keys()

    def decorate(combine: Callable[..., Combination]) -> Callable[..., Combination]:
        @functools.wraps(combine)
        def checked(sources: Sequence[PlainAdapter], weights: list[float], **given: Any) -> Combination:
            settings = own(**{key: value for key, value in given.items() if key in names})
            return combine(sources, weights, **{**given, **vars(settings)})

        keywords = {p.name for p in inspect.signature(combine).parameters.values() if p.kind is p.KEYWORD_ONLY}
        combiners.register(name)(Combiner(checked, frozenset(keywords - names)))
        return checked

    return decorate
