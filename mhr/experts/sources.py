"""LoRAs of one shape as the skills of one bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.experts import names_of
from mhr.adapters.layer import ADAPTER_LAYERS
from mhr.adapters.plain import PlainAdapter, bank_size
from mhr.config import AdapterConfig
from mhr.errors import MergeError
from mhr.merging.inputs import check_sources
from mhr.methods import BY_TOKEN
from mhr.runs.route_settings import RouteConfig


def check_alike(sources: Sequence[PlainAdapter], method: str, base: str | None = None) -> None:
    """Raise MergeError, naming what differs, where LoRAs are not of one shape or not of one base model, and where they are more
    than LoRAs."""
    one = sources[0]
    for other in sources:
        over = BY_TOKEN[method].over
        if other.kind not in over:
            among = " or ".join({"lora": "LoRAs", "bottleneck": "bottlenecks"}[kind] for kind in over)
            raise MergeError(
                f"{other.name} is {ADAPTER_LAYERS[other.kind].title}: method {method!r} chooses among {among}"
            )
        if other.states:
            raise MergeError(
                f"{other.name} brings module {next(iter(other.states))!r} whole, of which a token can choose none: method {method!r} takes LoRAs "
                "of models that generate, without heads"
            )
        for layer in one.shapes.keys() & other.shapes.keys():
            ranks = one.shapes[layer].rank, other.shapes[layer].rank
            if ranks[0] != ranks[1]:
                raise MergeError(
                    f"layer {layer!r} has rank {ranks[0]} in {one.name} and {ranks[1]} in {other.name}: method {method!r} chooses among LoRAs "
                    f"of one shape; mhr merge INPUT --method uniform --space delta --rank {min(ranks)} makes one of that rank"
                )
        if one.parts != other.parts:
            raise MergeError(
                f"{one.name} adapts parts {one.parts}, {other.name} {other.parts} of its layers: expected the same"
            )
    check_sources(sources, "factor", base)


def bank_of_experts(
    sources: Sequence[PlainAdapter], settings: RouteConfig, general: Sequence[PlainAdapter] = ()
) -> AdapterCheckpoint:
    """LoRAs as a bank of one skill each, in memory, without the directions by which a token chooses.

    general  LoRAs whose average is subtracted, `A_s - mean_g A_g` and `B_s - mean_g B_g`, at one scaling of all
             (GenKnowSub, ACL 2025, as PEFT computes it)
    """
    rank, alpha = bank_size([shape for source in (*sources, *general) for shape in source.shapes.values()])
    tensors: dict[str, Tensor] = {}
    for layer in sources[0].shapes:
        parts = [source.layers[layer].as_bank(layer, rank, alpha) for source in sources]
        mean = [source.layers[layer].as_bank(layer, rank, alpha) for source in general]
        for key in parts[0]:
            stacked = torch.cat([part[key] for part in parts], dim=1)
            if mean:
                stacked = stacked - torch.cat([part[key] for part in mean], dim=1).mean(1, keepdim=True)
            tensors[f"layers.{layer}.{key}"] = stacked.contiguous()
    config = AdapterConfig(
        method=settings.method,
        adapter=sources[0].kind,
        rank=rank,
        alpha=alpha,
        norm=next(iter(sources[0].shapes.values())).norm,
        targets=list(sources[0].shapes),
        parts=sources[0].parts,
        modules_to_save=[],
        router=settings.own_settings,
    )
    names = names_of(sources)
    own = next((source for source in sources if not source.base.foreign), sources[0])
    return AdapterCheckpoint(
        config=config,
        tasks=names,
        base=own.base,
        layers=own.sizes,
        groups={layer: layer for layer in sources[0].shapes},
        modules=[],
        tensors=tensors,
        name=f"{len(names)} LoRAs",
    )
