"""Fold a plain adapter into the weights of its base model, which then needs no code of ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mhr.adapters.base import check_base, is_quantised
from mhr.adapters.layer import ADAPTER_LAYERS, BiasShift, FilmVectors, IA3Vector, LoraFactors
from mhr.adapters.plain import PlainAdapter
from mhr.adapters.sharing import check_agreement
from mhr.backbones import forget_untrained, wearing_heads
from mhr.errors import CheckpointError, MergeError
from mhr.layers import AdapterBank
from mhr.ops.checks import FLOATS, accumulator


@torch.no_grad()
def fold_into(model: nn.Module, plain: PlainAdapter) -> None:
    """Add a plain adapter to the weights of `model` in place, and give it the modules that the adapter brings.

        LoRA:  W <- W + (alpha / R) (A B)^T        IA3:  W <- diag(v) W, b <- v b; of inputs W <- W diag(v)
        FiLM:  W <- diag(1 + g) W, b <- (1 + g) b + h    biases:  b <- b + h

    computed in float32 (float64 where weight or factors are) and rounded once to the dtype of the weight; for GPT-2's
    Conv1D, which holds its weight transposed, likewise.

    Raises CheckpointError for another base model, MergeError for a bottleneck and an HRA, for a FiLM on a layer without a bias, for a model with a bank on it, for a layer that is quantised,
    and for one that shares its weight with another part of the model; the model is then as it was.
    """
    if isinstance(getattr(model, "mhr", None), AdapterBank):
        raise MergeError("the model has a bank: call mhr.detach(model) before an adapter is folded into it")
    unfit = ADAPTER_LAYERS[plain.kind].unfit
    if unfit:
        raise MergeError(f"{unfit}, which no weight can take up: keep it as an adapter (--to mhr)")
    check_base(model, plain.base, plain.sizes, plain.modules, plain.name)
    _check_layers(model, plain)
    with wearing_heads(model, plain.heads, plain.modules):
        _check_modules(model, plain)
    for name, update in plain.layers.items():
        layer = model.get_submodule(name)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        transposed = isinstance(layer, Conv1D)
        if isinstance(update, LoraFactors):
            delta = update.delta().to(weight.device)
            _set(weight, delta if transposed else delta.T, torch.add)
        elif isinstance(update, BiasShift):
            _set(layer.bias, update.shift.to(weight.device), torch.add)  # type: ignore[arg-type]
        elif isinstance(update, FilmVectors):
            wide = accumulator(update.scale.dtype)  # 1 + a small scale is 1 in 16 bits
            scale, shift = 1 + update.scale.to(weight.device, wide), update.shift.to(weight.device)
            _set(weight, scale if transposed else scale[:, None], torch.mul)
            _set(layer.bias, scale, lambda b, s, h=shift: b * s + h.to(b))  # type: ignore[misc, arg-type]
        else:
            assert isinstance(update, IA3Vector)
            vector = update.v.to(weight.device)
            along_rows = transposed is not update.inputs  # of the weight as it is stored
            _set(weight, vector if along_rows else vector[:, None], torch.mul)
            if isinstance(layer.bias, Tensor) and not update.inputs:
                _set(layer.bias, vector, torch.mul)
    for name, state in plain.modules.items():
        model.get_submodule(name).load_state_dict(state)
    forget_untrained(model, plain.modules)


def _set(parameter: Tensor, other: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    dtype = accumulator(torch.promote_types(parameter.dtype, other.dtype))
    parameter.copy_(operation(parameter.to(dtype), other.to(dtype)))


def _check_layers(model: nn.Module, plain: PlainAdapter) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for layer in plain.layers:
        if plain.kind == "film" and getattr(model.get_submodule(layer), "bias", None) is None:
            raise MergeError(
                f"layer {layer!r} has no bias, which could take up the shift of a FiLM: keep it as an adapter (--to mhr)"
            )
        part = "bias" if plain.kind == "bias" else "weight"
        weight: Tensor = getattr(model.get_submodule(layer), part)
        if is_quantised(model.get_submodule(layer)) or weight.dtype not in FLOATS:
            raise MergeError(
                f"layer {layer!r} is quantised ({weight.dtype}), and no adapter can be folded into it: name the model that was "
                "quantised, or a dequantised copy of it, with --model, or keep the adapter (--to mhr, --to peft-lora)"
            )
        others = [name for name in owners[id(weight)] if name != f"{layer}.{part}"]
        if others:
            raise MergeError(f"layer {layer!r} shares its {part} with {others[0]!r}, which folding would change too")


def _check_modules(model: nn.Module, plain: PlainAdapter) -> None:
    for name, state in plain.modules.items():
        current = model.get_submodule(name).state_dict()
        for key in current.keys() | state.keys():
            if key not in current or key not in state or current[key].shape != state[key].shape:
                raise CheckpointError(f"tensor {key!r} of module {name!r} does not fit that of the model")
    check_agreement(model, plain.modules, plain.name)
