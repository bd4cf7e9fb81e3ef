"""What all merges within one bank come down to: fixed routing weights turn the bank into one plain adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mhr.checkpoint import AdapterCheckpoint
from mhr.checkpoint.plain import (
    BottleneckFactors,
    LoraFactors,
    PlainAdapter,
    PlainBottleneck,
    PlainIA3,
    PlainLora,
)
from mhr.ops import mix
from mhr.ops.checks import accumulator
from mhr.registry import Registry

merge_methods: Registry[Callable[..., PlainAdapter]] = Registry("merge method")
"""Functions `(checkpoint, **options) -> PlainAdapter`, by name. `merge` passes on the options that a function names."""


def collapse(checkpoint: AdapterCheckpoint, weights: Mapping[str, Tensor] | None) -> PlainAdapter:
    """The plain adapter of a bank routed by fixed `weights`: group of layers -> [H, S]; None weighs every skill 1/S.

        A = concat_h sum_s w[h,s] A[h,s] over the input, B = concat_h sum_s w[h,s] B[h,s] over the output

    The FACTORS are averaged, before their product, as the routed layers do: the result is the routed model, not an
    approximation of it. Sums in float32 (float64 for float64 banks). An IA3 bank yields its averaged vectors, a bank of
    bottlenecks their averaged weights and biases. A factor that all skills share (`AdapterConfig.share`) is taken as it is.
    """
    head_dims = {"bank_a": 1, "bank_b": 2, "bank_v": 2, "bias_a": 1, "bias_b": 2}
    banks: dict[tuple[str, str], Tensor] = {}
    for key, tensor in checkpoint.tensors.items():
        layer, _, name = key.removeprefix("layers.").rpartition(".")
        if key.startswith("layers."):
            banks[layer, name] = tensor
    used = [
        _like(bank, None if weights is None else weights[checkpoint.groups[layer]])
        for (layer, _), bank in banks.items()
    ]
    mixed = dict(zip(banks, mix(list(banks.values()), used, [head_dims[name] for _, name in banks]), strict=True))
    modules = {module: _state(checkpoint, module) for module in checkpoint.modules}
    if checkpoint.config.adapter == "ia3":
        vectors = {layer: mixed[layer, "bank_v"][0, 0] for layer in checkpoint.layers}
        return PlainIA3(vectors, checkpoint.base, modules)
    if checkpoint.config.adapter == "bottleneck":
        bottlenecks = {
            layer: BottleneckFactors(
                mixed[layer, "bank_a"][0],
                mixed[layer, "bank_b"][0],
                mixed[layer, "bias_a"][0].mean(0),
                mixed[layer, "bias_b"][0, 0],
            )
            for layer in checkpoint.layers
        }
        return PlainBottleneck(bottlenecks, checkpoint.base, modules)
    layers = {
        layer: LoraFactors(mixed[layer, "bank_a"][0], mixed[layer, "bank_b"][0], float(checkpoint.config.alpha))
        for layer in checkpoint.layers
    }
    return PlainLora(layers, checkpoint.base, modules)


def _like(bank: Tensor, weights: Tensor | None) -> Tensor:
    """Weights [1, H, S] in the dtype that `mix` wants beside this bank."""
    n_heads, n_skills = bank.shape[:2]
    dtype = accumulator(bank.dtype)
    if weights is None or n_skills == 1:  # one skill is taken whole, also where it is shared by many
        return torch.full((1, n_heads, n_skills), 1 / n_skills, dtype=dtype)
    return weights[None].to(dtype)


def _state(checkpoint: AdapterCheckpoint, module: str) -> dict[str, Tensor]:
    prefix = f"modules.{module}."
    return {key.removeprefix(prefix): t for key, t in checkpoint.tensors.items() if key.startswith(prefix)}
