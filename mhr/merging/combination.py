"""What a merge method is: a function from the inputs and their weights to a `Combination`, with the settings that it takes."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mhr.adapters.layer import AdapterLayer
from mhr.adapters.plain import PlainAdapter
from mhr.errors import MergeError
from mhr.registry import Registry

SPACES = ("factor", "delta")
"""What is merged: the tensors of the adapters as they are, or the weight updates that LoRA factors stand for."""

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
    align: Callable[[list[AdapterLayer]], list[AdapterLayer]] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """A setting of a merge method, declared in its signature: `density: Annotated[float, Setting("share that is kept", above=0)] = 0.2`.

    It is a keyword of `merge`, a flag of `mhr merge`, and a line of both's help. `help` begins with a small letter; the value lies
    above `above`, at least at `least`, below `below`, at most at `most`.
    """

    help: str
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )


@dataclass(frozen=True)
class Declared:
    """A `Setting` as a method declares it: its name, its type, its default."""

    name: str
    type: type
    default: Any
    setting: Setting

    def check(self, value: Any) -> None:
        """Raise MergeError for a value of another type or outside the range."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (self.type is float or isinstance(value, int)) and self.setting.holds(value):
            return
        bounds = {
            "above": self.setting.above,
            "of at least": self.setting.least,
            "below": self.setting.below,
            "at most": self.setting.most,
        }
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
        kind = {int: "an integer", float: "a number"}[self.type]
        raise MergeError(f"{self.name} is {value!r}: expected {kind} {limits} ({self.setting.help})")


@dataclass(frozen=True)
class Method:
    """A way to merge several inputs.

    combine   `(sources, weights, *, settings...) -> Combination`. Sources come in an order of their own and none twice, so that
              the order in which they were named changes nothing; the weights add up to 1
    spaces    of SPACES, the default first
    weights   whether a user gives weights: "none" (they are equal), "optional" or "needed"
    settings  what a user may set
    needs     "judge" and "score", what it is given to look at data
    """

    combine: Callable[..., Combination]
    spaces: tuple[str, ...]
    weights: str
    settings: dict[str, Declared]
    needs: frozenset[str]


methods: Registry[Method] = Registry("merge method")
"""Methods that merge several adapters, by name."""

merge_methods: Registry[Callable[..., PlainAdapter]] = Registry("merge method")
"""Methods within one bank, by name: `(checkpoint, *, options...) -> PlainAdapter`, given the task and the weights if they name them."""


def register(
    name: str, *spaces: str, weights: str = "none"
) -> Callable[[Callable[..., Combination]], Callable[..., Combination]]:
    """Make a function a method that works in these spaces, of which the first is its default.

    Its keyword-only parameters are its settings where they are annotated with a `Setting`, and otherwise what it needs.
    """

    def decorate(combine: Callable[..., Combination]) -> Callable[..., Combination]:
        hints = typing.get_type_hints(combine, include_extras=True)
        keywords = [p for p in inspect.signature(combine).parameters.values() if p.kind is p.KEYWORD_ONLY]
        settings = {
            p.name: Declared(p.name, typing.get_args(hints[p.name])[0], p.default, setting)
            for p in keywords
            for setting in typing.get_args(hints[p.name])[1:]
            if isinstance(setting, Setting)
        }

        @functools.wraps(combine)
        def checked(*args: Any, **given: Any) -> Combination:
            for key, value in given.items():
                if key in settings:
                    settings[key].check(value)
            return combine(*args, **given)

        needs = frozenset(p.name for p in keywords) - settings.keys()
        methods.register(name)(Method(checked, spaces, weights, settings, needs))
        return checked

    return decorate


def all_settings() -> dict[str, tuple[Declared, list[str]]]:
    """Every setting of any method: its name -> what is declared, and the methods that take it."""
    found: dict[str, tuple[Declared, list[str]]] = {}
    for name, method in methods.items():
        for key, declared in method.settings.items():
            found.setdefault(key, (declared, []))[1].append(name)
    return found
