"""One mix for all layers of a call, where starting a kernel costs more than what it computes: on CUDA.

Routing depends on task ids and never on activations, so that every layer's factors may be mixed before the first of them is used:
one launch in place of one a layer, and one for the gradients of all banks. The factors are kept until backward. On the CPU a
layer mixes for itself, into the form its kernels read, and again in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mhr.layers.routed import RoutedLayer
from mhr.ops import mix

if TYPE_CHECKING:
    from mhr.layers.bank import AdapterBank

SHARDED = ("FSDP", "FullySharded")
"""How the classes of modules begin whose parameters torch gathers for the length of their own call."""


def wanted(bank: AdapterBank) -> bool:
    """Whether the layers' factors are mixed together."""
    return next(iter(bank.groups.values())).even.is_cuda


def mix_together(model: nn.Module, bank: AdapterBank, weights: Sequence[Tensor]) -> dict[str, list[Tensor]] | None:
    """The factors of every layer by its name, for `weights` [U, H, S] of every router; None where each layer mixes for itself.

    That is so for banks that are not at hand before the layer's own call: sharded over processes, or kept elsewhere.
    """
    layers = list(bank.layers.values())
    if not wanted(bank) or not all(_at_hand(p, weights[0]) for layer in layers for p in layer.bank().values()):
        return None
    if torch.distributed.is_available() and torch.distributed.is_initialized() and _is_sharded(model):
        return None
    of_dtype: dict[torch.dtype | None, list[RoutedLayer]] = {}
    for layer in layers:
        of_dtype.setdefault(layer.mixed_dtype(), []).append(layer)
    sides: dict[int, tuple[Tensor, Tensor]] = {}
    found: dict[str, list[Tensor]] = {}
    for dtype, some in of_dtype.items():
        banks: list[Tensor] = []
        given: list[Tensor] = []
        dims: list[int] = []
        for layer in some:
            index = layer.router.index
            if index not in sides:
                sides[index] = layer.by_side(weights[index])
            banks += layer.factors().values()
            given += layer.side_of(*sides[index])
            dims += layer.head_dims
        mixed = iter(mix(banks, given, dims, dtype))
        for layer in some:
            found[layer.name] = [next(mixed) for _ in layer.head_dims]
    return found


def _at_hand(p: nn.Parameter, weights: Tensor) -> bool:
    return type(p) is nn.Parameter and p.dim() == 4 and p.device == weights.device


def _is_sharded(model: nn.Module) -> bool:
    return any(type(module).__name__.startswith(SHARDED) for module in model.modules())
