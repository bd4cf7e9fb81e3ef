"""What the autograd nodes of this package share: how they are applied, and what they refuse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhr.ops import native


def refuse_transforms(op: str) -> None:
    """The kernels cannot look inside the tensors of torch.func.vmap, grad, jvp and their kin."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"mhr::{op} does not support torch.func transforms (vmap, grad, jvp): "
            "call it on the whole batch, whose segments may each have a row of their own"
        )


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, at the least cost: a call on one token spends more on autograd than on arithmetic.

    The compiler traces the node in Python. Otherwise its twin in C++ runs where there is one, and where there is none the
    node itself without torch.func's wrapper around it (5 us a call).
    """
    if torch.compiler.is_compiling():
        return function.apply(*args)
    op: str = function.op  # type: ignore[attr-defined]
    refuse_transforms(op)
    twin = getattr(native.nodes, op, None)
    if twin is not None:
        return twin(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def apart(x: Tensor, y: Tensor) -> Tensor:
    """x, or a copy of it where it lies in the storage of y, which is about to be written: x is read, and kept for backward, as it was.

    Compiled code, which cannot ask for storages, reads x as it was in any case; it keeps a copy only where x is y itself.
    """
    shares = x is y if torch.compiler.is_compiling() else torch._C._is_alias_of(x, y)  # type: ignore[attr-defined]
    return x.clone() if shares else x


def changed(y: Tensor) -> None:
    """Have y count as changed in place, as torch's own ops have it: nodes that kept it for backward then refuse to go on."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(y)


def refuse_second_order(op: str) -> None:
    """To be called in backward, which autograd runs with gradients on only to differentiate it again.

    It is `once_differentiable` without its 5 us a call.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"mhr::{op} is differentiable once: its backward has no gradient, so create_graph cannot be used"
        )
