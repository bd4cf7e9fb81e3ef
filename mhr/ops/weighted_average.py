"""weighted_average: the sum of weighted tensors in one pass over memory, for merging checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mhr.ops.autograd import apart, changed, refuse_transforms
from mhr.ops.checks import FLOATS, accumulator, check
from mhr.ops.native import register_op


def weighted_average(tensors: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None) -> Tensor:
    """out = sum_k weights[k] * tensors[k], summed in the order given, in float32 (float64 for float64), rounded once.

    In plain torch::

        out = sum(w * t for w, t in zip(weights, tensors))

    The tensors share shape, float dtype and device, of any strides; `out` likewise (a new one where None), and may be one of
    them, or share memory with them. The weights are used as they are: they need not add up to 1. One tensor at weight 1 comes
    back bit for bit. Not differentiable. Memory: the output, plus a copy of what is not contiguous, or overlaps with the output.
    Raises RuntimeError where the tensors do not fit one another.
    """
    refuse_transforms("weighted_average")
    check(len(tensors) > 0, "mhr::weighted_average: no tensors")
    with torch.no_grad():
        dense = [t.contiguous() for t in tensors]
        target = torch.empty_like(dense[0]) if out is None else out
        if not target.is_contiguous():
            _check(target, dense, weights)
            buffer = torch.empty_like(dense[0])
            _forward(buffer, dense, list(weights))
            return target.copy_(buffer)
        if out is not None and not torch.compiler.is_compiling():
            dense = [t if t.is_set_to(out) else apart(t, out) for t in dense]
        _forward(target, dense, list(weights))
        changed(target)
        return target


def _check(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    op = "mhr::weighted_average"
    check(len(tensors) == len(weights), f"{op}: got {len(tensors)} tensors and {len(weights)} weights")
    check(out.dtype in FLOATS, f"{op}: tensors must have a float dtype, got {out.dtype}")
    for i, t in enumerate(tensors):
        check(
            t.shape == out.shape and t.dtype == out.dtype,
            f"{op}: tensors[{i}] must be {out.dtype} of shape {tuple(out.shape)}, got {t.dtype} of {tuple(t.shape)}",
        )
        check(t.device == out.device, f"{op}: tensors[{i}] must be on {out.device}, got {t.device}")


def weighted_average_reference(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    _check(out, tensors, weights)
    if len(tensors) == 1 and weights[0] == 1.0:
        out.copy_(tensors[0])
        return
    total = torch.zeros_like(out, dtype=accumulator(out.dtype))
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    out.copy_(total)


def _fake(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    _check(out, tensors, weights)


_forward = register_op(
    "weighted_average(Tensor(a!) out, Tensor[] tensors, float[] weights) -> ()", weighted_average_reference, _fake
)
