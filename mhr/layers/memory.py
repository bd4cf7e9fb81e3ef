"""Whether a bank can be made at all: its size against the memory of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from mhr.config import RANKED, AdapterConfig
from mhr.errors import ConfigError
from mhr.layers.linear import features
from mhr.layers.tied import bank_name

BYTES = 4
"""Of a parameter: banks are float32."""


def check_size(model: nn.Module, names: Sequence[str], config: AdapterConfig, n_tasks: int) -> None:
    """Raise ConfigError where the factors of the layers `names`, S * r * (I + O) parameters each, are more than the memory of
    this machine holds. A bank on another device than the processor is left to that."""
    layers = [model.get_submodule(name) for name in names]
    if config.adapter not in RANKED or any(p.device.type != "cpu" for layer in layers for p in layer.parameters()):
        return
    banks = {bank_name(config, name, features(layer)): layer for name, layer in zip(names, layers, strict=True)}
    total = sum(_features(layer) for layer in banks.values())
    needed = config.skills_for(n_tasks) * config.rank * total * BYTES
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ConfigError(
            f"rank is {config.rank}: with {config.skills_for(n_tasks)} skills on {len(layers)} layers the bank would take "
            f"{needed / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f}: use a smaller rank, fewer skills or fewer targets"
        )


def _features(layer: nn.Module) -> int:
    """I + O of a layer; the weight of a quantised one has another shape, which in_features and out_features have not."""
    if isinstance(layer, nn.Linear):
        return layer.in_features + layer.out_features
    weight = getattr(layer, "weight", None)
    return sum(weight.shape) if isinstance(weight, nn.Parameter) else 0
