"""Modules that a base model's checkpoint does not hold, so that transformers drew them at random: `model.mhr_untrained`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def untrained_modules(model: nn.Module) -> list[str]:
    """Names of the modules that were drawn at random when the model was loaded, and that no bank on it holds and nothing has filled
    or trained since."""
    bank = getattr(model, "mhr", None)
    return _outside(getattr(model, "mhr_untrained", ()), () if bank is None else bank.saved)


def forget_untrained(model: nn.Module, filled: Iterable[str] | None = None) -> None:
    """Count modules as trained: those in `filled`, or, with None, those whose parameters are all trained from now on."""
    names = getattr(model, "mhr_untrained", ())
    if filled is None:
        filled = [n for n in names if all(p.requires_grad for p in model.get_submodule(n).parameters())]
    model.__dict__["mhr_untrained"] = _outside(names, filled)


def _outside(names: Iterable[str], modules: Iterable[str]) -> list[str]:
    inside = tuple(f"{module}." for module in modules)
    return [name for name in names if not f"{name}.".startswith(inside)]
