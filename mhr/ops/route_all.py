"""route_all: the routing of every layer of a model in one autograd node, since none of it depends on activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mhr.ops.autograd import apply, refuse_second_order
from mhr.ops.checks import accumulator
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
        ctx.save_for_backward(tasks, noise, *values)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.dtypes = temperature, [z.dtype for z in logits]
        op = torch.ops.mhr.route.default
        if noise is None:
            return tuple(op(z, tasks, None, temperature) for z in values)
        return tuple(op(z, tasks, n.to(z.dtype), temperature) for z, n in zip(values, noise.unbind(), strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_order("route_all")
        tasks, noise, *values = ctx.saved_tensors
        op = torch.ops.mhr.route_backward.default
        found = []
        for i, (dw, z, dtype) in enumerate(zip(grads, values, ctx.dtypes, strict=True)):
            n = None if noise is None else noise[i].to(z.dtype)
            found.append(None if dw is None else op(dw.contiguous(), z, tasks, n, ctx.temperature).to(dtype))
        return None, None, None, *found
