"""Modules that share parameters, as tied embeddings and output layers do, when an adapter brings one of them whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mhr.errors import CheckpointError


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a module, or a tensor, is one of these modules or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def sharing(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """Other modules of the model with a parameter of their own that belongs to one of `modules` as well; not those around them."""
    modules = list(modules)
    theirs = {id(p) for module in modules for p in model.get_submodule(module).parameters()}
    return [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if any(id(p) in theirs for p in module.parameters(recurse=False))
        and not is_inside(name, modules)
        and not any(is_inside(inner, [name]) for inner in modules)
    ]


def check_copies(model: nn.Module, modules: Iterable[str], name: str) -> None:
    """Raise CheckpointError where an adapter that another program trained brings one half of what the model shares.

    PEFT trains a copy of a module, so the other half keeps its values: the two differ, which one shared parameter cannot.
    """
    modules = list(modules)
    others = sharing(model, modules)
    if others:
        raise CheckpointError(
            f"{name} brings {modules[0]!r} and not {others[0]!r}, with which this model shares its weights: PEFT trained a copy of the "
            "one half, so that they are no longer tied; fold the adapter into its base with PEFT (merge_and_unload), with "
            "tie_word_embeddings off, and use that model"
        )


def check_agreement(model: nn.Module, states: Mapping[str, Mapping[str, Tensor]], name: str) -> None:
    """Raise CheckpointError where an adapter brings two values for one parameter that modules of the model share."""
    seen: dict[int, tuple[str, Tensor]] = {}
    for module, state in states.items():
        for key, parameter in model.get_submodule(module).named_parameters(remove_duplicate=False):
            if key not in state:
                continue
            first, value = seen.setdefault(id(parameter), (f"{module}.{key}", state[key]))
            if value is not state[key] and not torch.equal(value, state[key]):
                raise CheckpointError(
                    f"{name} brings {first!r} and {module + '.' + key!r} with different values, but this model shares them (tied "
                    "weights): fold the adapter into its base with PEFT (merge_and_unload), with tie_word_embeddings off, and use "
                    "that model"
                )
