"""Checks and small facts that every op of this package shares."""

from __future__ import annotations

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


def segment_bounds(op: str, n_tokens: int, n_segments: int, offsets: Tensor | None) -> list[int]:
    """The first token of every segment and the end, `n_segments + 1` integers. For references: reads `offsets` on the host."""
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
