"""route_all: the routing of every layer of a model in one autograd node, since none of it depends on activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mhr.ops.autograd import apply, refuse_second_order
from mhr.ops.checks import accumulator
from mhr.ops.native import register_op
from mhr.ops.route import route  # noqa: F401  (registers mhr::route)


def route_all(
    logits: Sequence[Tensor], tasks: Tensor, noise: Tensor | None = None, temperature: float = 1.0
) -> list[Tensor]:
    """[route(logits[i], tasks, noise[i], temperature) for each i], as one node of the autograd graph.

    Args:
        logits: each `[T, H, S]`, any float dtype.
        tasks, temperature: as of `route`.
        noise: `[len(logits), U, H, S]` or None.

    Returns weights, each `[U, H, S]`. Differentiable once in logits. Raises RuntimeError where shapes do not fit.
    """
    return list(apply(_RouteAll, tasks, noise, temperature, *logits))


class _RouteAll(torch.autograd.Function):
    op = "route_all"

    @staticmethod
    def forward(
        ctx: Any, tasks: Tensor, noise: Tensor | None, temperature: float, *logits: Tensor
    ) -> tuple[Tensor, ...]:
        values = [z.to(accumulator(z.dtype)).contiguous() for z in logits]
        tasks = tasks.contiguous()
        if noise is not None and values:
            noise = noise.to(values[0].dtype).contiguous()
        ctx.save_for_backward(tasks, noise, *values)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.dtypes = temperature, [z.dtype for z in logits]
        forward = _forward if len({z.dtype for z in values}) < 2 else _one_by_one
        return tuple(forward(values, tasks, noise, temperature))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_order("route_all")
        tasks, noise, *values = ctx.saved_tensors
        shapes = [(tasks.shape[0], *z.shape[1:]) for z in values]
        # Routers that are not in use are few, if any, and get no gradient; zeros stand for theirs in the one call.
        given = [
            z.new_zeros(shape) if dw is None else dw.contiguous()
            for dw, z, shape in zip(grads, values, shapes, strict=True)
        ]
        backward = _backward if len({z.dtype for z in values}) < 2 else _backward_one_by_one
        found = backward(given, values, tasks, noise, ctx.temperature)
        kept = [None if dw is None else d.to(dtype) for dw, d, dtype in zip(grads, found, ctx.dtypes, strict=True)]
        return None, None, None, *kept


# `mhr::route` has the reference; where no kernel takes all tables at once, it is called for each.
def _one_by_one(logits: Sequence[Tensor], tasks: Tensor, noise: Tensor | None, temperature: float) -> list[Tensor]:
    noises = [None] * len(logits) if noise is None else noise.unbind()
    return [
        torch.ops.mhr.route(z, tasks, None if n is None else n.to(z.dtype), temperature)
        for z, n in zip(logits, noises, strict=True)
    ]


def _backward_one_by_one(
    dw: Sequence[Tensor], logits: Sequence[Tensor], tasks: Tensor, noise: Tensor | None, temperature: float
) -> list[Tensor]:
    noises = [None] * len(logits) if noise is None else noise.unbind()
    return [
        torch.ops.mhr.route_backward(d, z, tasks, None if n is None else n.to(z.dtype), temperature)
        for d, z, n in zip(dw, logits, noises, strict=True)
    ]


def _fake(logits: Sequence[Tensor], tasks: Tensor, noise: Tensor | None, temperature: float) -> list[Tensor]:
    return [z.new_empty((tasks.shape[0], *z.shape[1:])) for z in logits]


def _backward_fake(
    dw: Sequence[Tensor], logits: Sequence[Tensor], tasks: Tensor, noise: Tensor | None, temperature: float
) -> list[Tensor]:
    return [torch.empty_like(z) for z in logits]


_forward = register_op(
    "route_all(Tensor[] logits, Tensor tasks, Tensor? noise, float temperature) -> Tensor[]", _one_by_one, _fake
)
_backward = register_op(
    "route_all_backward(Tensor[] dw, Tensor[] logits, Tensor tasks, Tensor? noise, float temperature) -> Tensor[]",
    _backward_one_by_one,
    _backward_fake,
)
