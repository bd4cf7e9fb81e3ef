"""A bank routed by fixed weights is one plain adapter: what merges within one bank come down to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from mhr.adapters.checkpoint import AdapterCheckpoint, routing_transforms, routing_weights
from mhr.adapters.heads import with_head
from mhr.adapters.layer import (
    ADAPTER_LAYERS,
    AdapterLayer,
    BiasShift,
    BottleneckFactors,
    FilmVectors,
    GatedBottleneck,
    GatedLora,
    GatedPrefix,
    IA3Vector,
    LoraFactors,
    RecurrentFactors,
    VirtualTokens,
)
from mhr.adapters.plain import PlainAdapter
from mhr.config import VIRTUAL
from mhr.errors import MergeError, TaskError, nearest
from mhr.layers.self_attention import gated_part
from mhr.ops import mix
from mhr.ops.checks import accumulator

BANK_HEAD_DIMS = {"bank_a": 1, "bank_b": 2, "bank_v": 2, "bank_scale": 2, "bank_shift": 2, "bias_a": 1, "bias_b": 2}
BANK_HEAD_DIMS |= {"scale_b": 2, "shift_b": 2, "carry_a": 2, "bank_tokens": 2}
BANK_HEAD_DIMS |= {"bank_keys": 2, "bank_values": 2, "gate_a": 1, "gate_bias": 1}
"""Axis of each of a bank's parameters along which the heads' blocks are joined."""


def collapse(
    checkpoint: AdapterCheckpoint,
    weights: Mapping[str, Tensor] | None,
    transforms: Mapping[str, Tensor] | None = None,
) -> PlainAdapter:
    """The plain adapter of a bank routed by fixed `weights`: group of layers -> [H, S]; None takes 1/S for every skill.

        A = concat_h sum_s w[h,s] A[h,s] over the input, B = concat_h sum_s w[h,s] B[h,s] over the output

    The FACTORS are averaged, before their product, as the routed layers do: the result is the routed model, not an
    approximation of it. Sums in float32 (float64 for float64 banks). An IA3, FiLM or bias bank yields its averaged vectors, a bank of
    bottlenecks their averaged weights and biases. A factor that all skills share (`AdapterConfig.share`) is taken as it is.

    Raises MergeError for None as `check_average`.

    transforms  group of layers -> what A is multiplied by, [R, R], where the method has such (`Router.transform`)
    """
    if weights is None:
        check_average(checkpoint)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.tensors.items():
        bank, _, name = key.rpartition(".")
        if key.startswith("layers."):
            parts.setdefault(f"{bank}.", {})[name] = tensor
    banks = {(layer, name): t for layer in checkpoint.layers for name, t in parts[checkpoint.bank_of(layer)].items()}
    used = [
        _like(bank, None if weights is None or checkpoint.config.in_common(name) else weights[checkpoint.groups[layer]])
        for (layer, name), bank in banks.items()
    ]
    mixed = dict(zip(banks, mix(list(banks.values()), used, [BANK_HEAD_DIMS[name] for _, name in banks]), strict=True))
    if transforms:
        for layer in checkpoint.layers:
            group = checkpoint.groups[layer]
            a = mixed[layer, "bank_a"]
            mixed[layer, "bank_a"] = (a.double() @ transforms[group].double()).to(a.dtype)
    layers = {layer: _layer(checkpoint, layer, mixed) for layer in checkpoint.layers}
    modules = {module: checkpoint.state(module) for module in checkpoint.modules}
    return PlainAdapter(
        layers,
        checkpoint.base,
        modules,
        name=checkpoint.name,
        parts=checkpoint.config.parts,
        dropout=checkpoint.config.dropout,
        heads=checkpoint.heads,
    )


def collapse_task(checkpoint: AdapterCheckpoint, task: str) -> PlainAdapter:
    """`collapse` with the routing weights of `task`, and with its head alone. Raises TaskError for a task that the bank does not hold."""
    if task not in checkpoint.tasks:
        raise TaskError(f"unknown task {task!r}: {nearest(task, checkpoint.tasks)}")
    row = checkpoint.tasks.index(task)
    tables, transforms = routing_weights(checkpoint), routing_transforms(checkpoint)
    plain = collapse(
        checkpoint, *({group: table[row] for group, table in found.items()} for found in (tables, transforms))
    )
    return with_head(plain, task)


def take_skill(checkpoint: AdapterCheckpoint, skill: int) -> PlainAdapter:
    """One skill of a bank as an adapter of its own. A factor that all skills share is there once. Raises MergeError as `check_average`."""
    check_average(checkpoint)
    tensors = {
        key: t[:, min(skill, t.shape[1] - 1), None] if key.startswith("layers.") else t
        for key, t in checkpoint.tensors.items()
    }
    return collapse(dataclasses.replace(checkpoint, tensors=tensors), None)


def check_average(checkpoint: AdapterCheckpoint) -> None:
    """Raise MergeError, naming what can be merged, for a bank whose skills are no adapters and have no average."""
    if not checkpoint.config.routing.convex:
        raise MergeError(
            f"{checkpoint.name} has method {checkpoint.config.method!r}, whose skills are {checkpoint.config.routing.skills_are}, and have no "
            f"average: merge one task, with --method task --task {checkpoint.tasks[0]}, or all with --each-task"
        )


def _layer(checkpoint: AdapterCheckpoint, layer: str, mixed: Mapping[tuple[str, str], Tensor]) -> AdapterLayer:
    if checkpoint.config.adapter == "ia3":
        return IA3Vector(mixed[layer, "bank_v"][0, 0])
    if checkpoint.config.adapter == "film":
        return FilmVectors(mixed[layer, "bank_scale"][0, 0], mixed[layer, "bank_shift"][0, 0])
    if checkpoint.config.adapter == "bias":
        return BiasShift(mixed[layer, "bank_shift"][0, 0])
    if checkpoint.config.adapter in VIRTUAL:
        tokens: VirtualTokens = ADAPTER_LAYERS[checkpoint.config.adapter](mixed[layer, "bank_tokens"][0])
        return tokens
    if checkpoint.config.adapter == "gated":
        return _gated(layer, mixed)
    a, b = mixed[layer, "bank_a"][0], mixed[layer, "bank_b"][0]
    if checkpoint.config.adapter == "bottleneck":
        norm = [mixed[layer, name][0, 0] for name in ("scale_b", "shift_b")] if checkpoint.config.norm else []
        return BottleneckFactors(a, b, mixed[layer, "bias_a"][0].mean(0), mixed[layer, "bias_b"][0, 0], *norm)
    if checkpoint.config.recurrent:
        return RecurrentFactors(a, mixed[layer, "carry_a"][0, 0], mixed[layer, "bias_a"][0, 0], b)
    return LoraFactors(a, b, float(checkpoint.config.alpha))


def _gated(layer: str, mixed: Mapping[tuple[str, str], Tensor]) -> AdapterLayer:
    """The part of a gated adapter that stands at a layer."""
    found = {name: t[0] for (own, name), t in mixed.items() if own == layer}
    gate = found["gate_a"][:, 0], found["gate_bias"].mean(0)
    part = gated_part(layer)
    if part == "prefix":
        return GatedPrefix(*gate, found["bank_keys"], found["bank_values"])
    if part == "lora":
        return GatedLora(*gate, found["bank_a"], found["bank_b"])
    return GatedBottleneck(*gate, found["bank_a"], found["bank_b"], found["bias_a"].mean(0), found["bias_b"][0])


def _like(bank: Tensor, weights: Tensor | None) -> Tensor:
    """Weights [1, H, S], by default 1/S, in the dtype that `mix` wants beside this bank."""
    n_heads, n_skills = bank.shape[:2]
    dtype = accumulator(bank.dtype)
    if weights is None:
        return torch.full((1, n_heads, n_skills), 1 / n_skills, dtype=dtype)
    return weights[None].to(dtype)
