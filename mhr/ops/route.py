"""route: routing logits and task ids to routing weights, the sigmoid, noise and normalisation of Polytropon in one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhr.ops.autograd import apply, refuse_second_order
from mhr.ops.checks import accumulator, check, check_shape
from mhr.ops.native import register_op

EPSILON = 1e-12


def route(logits: Tensor, tasks: Tensor, noise: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """w[u] = p / (sum_s p + 1e-12) with p = sigmoid((logits[tasks[u]] + noise[u]) / temperature).

    In plain torch, for seen tasks::

        p = torch.sigmoid((logits[tasks] + noise) / temperature)
        w = p / (p.sum(-1, keepdim=True) + 1e-12)

    Args:
        logits: `[T, H, S]`, any float dtype.
        tasks: int64 `[U]`; a negative one is an unseen task, whose weights are uniform, 1/S, with no gradient.
        noise: `[U, H, S]` logistic noise, log(v) - log(1 - v) with v uniform in (0, 1), which makes p relaxed Bernoulli;
            None for the plain sigmoid.
        temperature: of the relaxed Bernoulli, positive.

    Returns weights `[U, H, S]` in float32 (float64 for float64 logits). Differentiable once in logits.
    The router of Polytropon and MHR (arXiv 2202.13914, 2211.03831). Raises RuntimeError where shapes do not fit.
    """
    return apply(_Route, logits, tasks, noise, temperature)


class _Route(torch.autograd.Function):
    op = "route"

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tasks: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        dtype = accumulator(logits.dtype)
        values = (logits if logits.dtype is dtype else logits.to(dtype)).contiguous()
        tasks = tasks.contiguous()
        noise = noise if noise is None else noise.to(dtype).contiguous()
        ctx.save_for_backward(values, tasks, noise)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return _forward(values, tasks, noise, temperature)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order("route")
        logits, tasks, noise = ctx.saved_tensors
        d_logits = _backward(dw.contiguous(), logits, tasks, noise, ctx.temperature)
        return d_logits if d_logits.dtype is ctx.dtype else d_logits.to(ctx.dtype), None, None, None


def _check(op: str, logits: Tensor, tasks: Tensor, noise: Tensor | None, temperature: float) -> None:
    check(logits.dim() == 3, f"mhr::{op}: logits must have shape (T, H, S), got {tuple(logits.shape)}")
    check_shape(op, "tasks", tasks, "U", (tasks.numel(),))
    if noise is not None:
        check_shape(op, "noise", noise, "U H S", (tasks.numel(), *logits.shape[1:]))
    check(temperature > 0, f"mhr::{op}: temperature must be positive, got {temperature}")


def _sigmoid(logits: Tensor, tasks: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    if tasks.device.type == "cpu" and tasks.numel():
        highest = int(tasks.max())
        check(highest < logits.shape[0], f"mhr::route: tasks must be below T = {logits.shape[0]}, got {highest}")
    if logits.shape[0]:
        chosen = logits.index_select(0, tasks.clamp(min=0))
    else:
        chosen = logits.new_zeros(tasks.numel(), *logits.shape[1:])
    return torch.sigmoid((chosen if noise is None else chosen + noise) / temperature)


def route_reference(logits: Tensor, tasks: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    _check("route", logits, tasks, noise, temperature)
    p = _sigmoid(logits, tasks, noise, temperature)
    w = p / (p.sum(-1, keepdim=True) + EPSILON)
    return torch.where((tasks < 0)[:, None, None], 1.0 / max(logits.shape[2], 1), w)


def route_backward_reference(
    dw: Tensor, logits: Tensor, tasks: Tensor, noise: Tensor | None, temperature: float
) -> Tensor:
    _check("route_backward", logits, tasks, noise, temperature)
    p = _sigmoid(logits, tasks, noise, temperature)
    total = p.sum(-1, keepdim=True) + EPSILON
    dp = (dw - (dw * p / total).sum(-1, keepdim=True)) / total
    chosen = torch.where((tasks < 0)[:, None, None], 0.0, dp * p * (1 - p) / temperature)
    found = torch.zeros_like(logits)
    return found.index_add_(0, tasks.clamp(min=0), chosen) if logits.shape[0] else found


def _fake(logits: Tensor, tasks: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    _check("route", logits, tasks, noise, temperature)
    return logits.new_empty((tasks.shape[0], *logits.shape[1:]))


def _backward_fake(dw: Tensor, logits: Tensor, tasks: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    return torch.empty_like(logits)


_forward = register_op(
    "route(Tensor logits, Tensor tasks, Tensor? noise, float temperature) -> Tensor", route_reference, _fake
)
_backward = register_op(
    "route_backward(Tensor dw, Tensor logits, Tensor tasks, Tensor? noise, float temperature) -> Tensor",
    route_backward_reference,
    _backward_fake,
)
