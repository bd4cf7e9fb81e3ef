"""Modules that are trained whole beside a base in 16 bits: their weights are held, and computed with, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from mhr.layers.bank import AdapterBank

NARROW = (torch.bfloat16, torch.float16)


def widen_saved(model: nn.Module, bank: AdapterBank) -> list[RemovableHandle]:
    """Hold what the bank trains whole in float32, where it is in 16 bits: a 16-bit weight loses the small updates that it is trained by.
    Returns the hooks by which the model goes on working.

    Such a module takes its inputs as float32, but under autocast, which casts by itself. Its outputs go back to the dtype of the base;
    those of the head, the logits, stay float32. A module that shares a weight with one of them is treated alike.
    """
    halves = {id(t): t for t in bank.saved_tensors().values() if t.dtype in NARROW}
    hooks: list[RemovableHandle] = []
    for module, is_head in _owners(model, bank, halves):
        if not is_head:
            dtype = next(t.dtype for t in _tensors(module) if id(t) in halves)
            hooks.append(module.register_forward_hook(partial(_give, dtype)))
        hooks.append(module.register_forward_pre_hook(_take, with_kwargs=True))
    for tensor in halves.values():
        tensor.data = tensor.data.float()
    return hooks


def narrow_saved(bank: AdapterBank) -> None:
    """Round what `widen_saved` widened to the dtype of the base."""
    for name, tensor in bank.saved_tensors().items():
        tensor.data = tensor.data.to(narrow_dtype(tensor, bank.originals[name]))


def narrow_dtype(tensor: Tensor, original: Tensor) -> torch.dtype:
    """The dtype of a tensor without `widen_saved`, given what it held before: a model may have been moved to another one since."""
    return original.dtype if original.dtype in NARROW and tensor.dtype == torch.float32 else tensor.dtype


def _owners(model: nn.Module, bank: AdapterBank, halves: dict[int, Tensor]) -> Iterator[tuple[nn.Module, bool]]:
    """The modules with one of these tensors, and whether the logits are theirs: those of the bank whole, others where they have it."""
    inside: set[nn.Module] = set()
    heads = set(_heads(model))
    for module in bank.saved.values():
        if module not in inside and any(id(t) in halves for t in _tensors(module)):
            inside.update(module.modules())
            yield module, not heads.isdisjoint(module.modules())
    for module in model.modules():
        if module not in inside and any(id(p) in halves for p in module.parameters(recurse=False)):
            yield module, module in heads


def _heads(model: Any) -> Iterator[nn.Module]:
    """What makes the logits: the last Linear outside the base model, or the output layer of a language model."""
    prefix = getattr(model, "base_model_prefix", "")
    outside = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not (prefix and name.startswith(f"{prefix}."))
    ]
    yield from outside[-1:]
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if isinstance(output, nn.Module):
        yield output


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of a module, those in 16 bits as it computes: as its own weights are, which `mhr.disabled` has as they were."""
    own = next(t for t in _tensors(module) if t.is_floating_point())
    if torch.is_autocast_enabled(own.device.type):
        return args, kwargs
    cast = partial(_cast, dtype=own.dtype, of=(*NARROW, torch.float32))
    return tree_map(cast, args), tree_map(cast, kwargs)


def _give(dtype: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    return tree_map(partial(_cast, dtype=dtype, of=(torch.float32,)), output)


def _cast(value: Any, dtype: torch.dtype, of: tuple[torch.dtype, ...]) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype in of else value
