"""One mix for all layers of a call, where starting a kernel costs more than what it computes: on CUDA.

Routing depends on task ids and never on activations, so that every layer's factors may be mixed before the first of them is used:
one launch in place of one a layer, and one for the gradients of all banks. The factors are kept until backward. On the CPU a
layer mixes for itself, into the form its kernels read, and again in backward; but for bottlenecks that share a bank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mhr.layers.routed import RoutedLayer
from mhr.layers.siblings import SharedInputs, Siblings, can_share, find_siblings
from mhr.ops import mix
from mhr.routing import RoutingBatch

if TYPE_CHECKING:
    from mhr.layers.bank import AdapterBank

SHARDED = ("FSDP", "FullySharded")
"""How the classes of modules begin whose parameters torch gathers for the length of their own call."""

MIX_PARTS = 4
"""Of the layers, where several processes train: each has a mix of its own, so that the gradients of the last layers are complete, and
averaged over the processes, while those of the layers before them are computed."""


def wanted(bank: AdapterBank) -> bool:
    """Whether the layers' factors are mixed together."""
    return next(iter(bank.groups.values())).even.is_cuda


def share_mix(bank: AdapterBank) -> bool:
    """Whether the layers that share a bank mix it together, elsewhere: one pass over it, and one over its gradient, serve them all. Kernels
    of LoRAs mix by themselves."""
    return bank.config.tied and bank.config.adapter == "bottleneck"


def compute_together(model: nn.Module, bank: AdapterBank, batch: RoutingBatch) -> None:
    """For the call of the model that begins: the routing of all its layers, and their factors where those are mixed together."""
    if batch.drawn or bank.config.routing.by_token:
        return
    state = bank.state
    state.weights = bank.weigh(batch)
    mixed = mix_together(model, bank, state.weights)
    if mixed is not None:
        state.factors, siblings = mixed
        state.shared = SharedInputs(siblings, bank.apart) if siblings else None


class Mixed(NamedTuple):
    """The factors of every layer by its name, and those of layers that read the same x, by the name of each."""

    factors: dict[str, list[Tensor]]
    siblings: dict[str, Siblings]


def mix_together(model: nn.Module, bank: AdapterBank, weights: Sequence[Tensor]) -> Mixed | None:
    """The factors of every layer, for `weights` [U, H, S] of every router; None where each layer mixes for itself.

    That is so for banks that are not at hand before the layer's own call: sharded over processes, or kept elsewhere.
    """
    layers = bank.layers.values()
    together = wanted(bank)
    if not (together or share_mix(bank)) or not all(
        _at_hand(p, weights[0]) for layer in layers for p in layer.bank().values()
    ):
        return None
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and _is_sharded(model, bank):
        return None
    if not together:
        return Mixed(_mix_tied(bank, weights), {})
    sides: dict[int, tuple[Tensor, Tensor]] = {}
    found = Mixed({}, {})
    units = list(_units(bank))
    size = -(-len(units) // (MIX_PARTS if several else 1))
    for begin in range(0, len(units), size):
        of_dtype: dict[torch.dtype | None, list[list[RoutedLayer]]] = {}
        for unit in units[begin : begin + size]:
            of_dtype.setdefault(unit[0].mixed_dtype(), []).append(unit)
        for dtype, some in of_dtype.items():
            _mix_units(some, dtype, weights, sides, found)
    return found


def _mix_tied(bank: AdapterBank, weights: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The factors of every layer, those that share a bank out of one mix."""
    tied: dict[int, list[RoutedLayer]] = {}
    for layer in bank.layers.values():
        tied.setdefault(id(next(iter(layer.bank().values()))), []).append(layer)
    found: dict[str, list[Tensor]] = {}
    for layers in tied.values():
        first = layers[0]
        a, b = (
            torch.cat(side) for side in zip(*(one.by_side(weights[one.router.index]) for one in layers), strict=True)
        )
        mixed = mix(list(first.factors().values()), first.side_of(a, b), first.head_dims, first.mixed_dtype())
        parts = zip(*(t.chunk(len(layers)) for t in first.ready(list(mixed))), strict=True)
        found |= {layer.name: list(own) for layer, own in zip(layers, parts, strict=True)}
    return found


def _units(bank: AdapterBank) -> Iterator[list[RoutedLayer]]:
    """The layers in the model's order, those that read the same x together."""
    group_of: dict[str, list[RoutedLayer]] = {}
    for names in find_siblings(tuple(name for name in bank.layers if name not in bank.apart)):
        layers = [bank.layers[name] for name in names]
        if can_share(layers):
            group_of.update(dict.fromkeys(names, layers))
    done: set[str] = set()
    for name, layer in bank.layers.items():
        if name not in done:
            unit = group_of.get(name, [layer])
            done.update(one.name for one in unit)
            yield unit


def _mix_units(
    units: Sequence[list[RoutedLayer]],
    dtype: torch.dtype | None,
    weights: Sequence[Tensor],
    sides: dict[int, tuple[Tensor, Tensor]],
    found: Mixed,
) -> None:
    """One mix. Of layers that read the same x the factors A come first, one behind the other, as a run."""
    banks: list[Tensor] = []
    given: list[Tensor] = []
    dims: list[int] = []
    runs: list[int] = []
    for unit in units:
        parts = []
        for layer in unit:
            index = layer.router.index
            if index not in sides:
                sides[index] = layer.by_side(weights[index])
            parts.append([*zip(layer.factors().values(), layer.side_of(*sides[index]), layer.head_dims, strict=True)])
        in_order = parts[0] if len(unit) == 1 else [part[i] for i in range(2) for part in parts]
        for bank, w, dim in in_order:
            banks.append(bank)
            given.append(w)
            dims.append(dim)
        runs += [1] * len(parts[0]) if len(unit) == 1 else [len(unit), *[1] * len(unit)]
    mixed = iter(mix(banks, given, dims, dtype, runs if len(runs) < len(banks) else None))
    for unit in units:
        if len(unit) == 1:
            found.factors[unit[0].name] = unit[0].ready([next(mixed) for _ in unit[0].head_dims])
            continue
        a, b = next(mixed), [next(mixed) for _ in unit]
        together = Siblings({layer.name: layer for layer in unit}, a, b)  # type: ignore[misc]
        rank = a.shape[2] // len(unit)
        for i, layer in enumerate(unit):
            found.factors[layer.name] = [a[..., i * rank : (i + 1) * rank], b[i]]
            found.siblings[layer.name] = together


def _at_hand(p: nn.Parameter, weights: Tensor) -> bool:
    return type(p) is nn.Parameter and p.dim() == 4 and p.device == weights.device


def _is_sharded(model: nn.Module, bank: AdapterBank) -> bool:
    """Whether torch gathers parameters around a layer. What is around the layers is looked up once, and again when it changes."""
    around = bank.around
    if (
        not around
        or around[0][0] is not model
        or any(parent._modules.get(n) is not child for parent, n, child in around)
    ):
        around = bank.around = list(_around(model))
    return any(type(module).__name__.startswith(SHARDED) for module in (model, *(child for *_, child in around)))


def _around(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) of every routed layer inside the module, and of all that holds one."""
    for name, child in module._modules.items():
        inside = [] if child is None or isinstance(child, RoutedLayer) else list(_around(child))
        if child is not None and (inside or isinstance(child, RoutedLayer)):
            yield module, name, child
            yield from inside
