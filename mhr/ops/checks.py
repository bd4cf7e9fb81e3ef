"""Checks and small facts that every op of this package shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over `dtype` are held: float64 for float64, float32 for every other float."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check(condition: bool, message: str) -> None:
    """Raises RuntimeError, as torch's own ops do on arguments that do not fit."""
    if not condition:
        raise RuntimeError(message)


def check_shape(op: str, name: str, tensor: Tensor, axes: str, sizes: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape than `sizes`, whose letters are `axes`: "U H S"."""
    if tuple(tensor.shape) != sizes:
        letters = ", ".join(axes.split())
        raise RuntimeError(f"mhr::{op}: {name} must have shape ({letters}) = {sizes}, got {tuple(tensor.shape)}")


def refuse_transforms(op: str) -> None:
    """The kernels cannot look inside the tensors of torch.func.vmap, grad, jvp and their kin."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"mhr::{op} does not support torch.func transforms (vmap, grad, jvp): "
            "call it on the whole batch, whose segments may each have a row of their own"
        )


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)` without torch.func's wrapper around it, which costs 5 us a call."""
    if torch.compiler.is_compiling():
        return function.apply(*args)
    refuse_transforms(function.op)  # type: ignore[attr-defined]
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def refuse_second_order(op: str) -> None:
    """To be called in backward, which autograd runs with gradients on only to differentiate it again.

    It is `once_differentiable` without its 5 us a call.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"mhr::{op} is differentiable once: its backward has no gradient, so create_graph cannot be used"
        )


def segment_bounds(op: str, n_tokens: int, n_segments: int, offsets: Tensor | None) -> list[int]:
    """The first token of every segment and the end, `n_segments + 1` numbers. For references: reads `offsets` on the host."""
    if offsets is None:
        check(
            n_segments > 0 and n_tokens % n_segments == 0 or n_tokens == n_segments == 0,
            f"mhr::{op}: {n_tokens} tokens do not divide into {n_segments} equal segments; pass offsets",
        )
        length = n_tokens // max(n_segments, 1)
        return [length * g for g in range(n_segments + 1)]
    bounds: list[int] = offsets.tolist()
    check(
        len(bounds) == n_segments + 1
        and bounds[0] == 0
        and bounds[-1] == n_tokens
        and all(a <= b for a, b in zip(bounds, bounds[1:], strict=False)),
        f"mhr::{op}: offsets must rise from 0 to N = {n_tokens} in G + 1 = {n_segments + 1} steps, got {bounds}",
    )
    return bounds
