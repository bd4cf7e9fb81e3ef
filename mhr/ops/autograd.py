"""What the autograd nodes of this package share: how they are applied, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
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


def refuse_in_place(op: str, y: Tensor, others: Sequence[Tensor | None]) -> None:
    """Raise what autograd would say of a y that nothing may change in place, which it does after the change: a leaf that asks for a
    gradient, or a view of one, and a view that it cannot follow. others: what the op reads."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    root = y._base if y._is_view() else y
    assert root is not None
    if root.requires_grad and root.is_leaf:
        raise RuntimeError(f"mhr::{op}: y is a leaf that asks for a gradient, or a view of one: give y.clone()")
    if is_closed_view(y) and (y.requires_grad or any(t is not None and t.requires_grad for t in others)):
        raise RuntimeError(
            f"mhr::{op}: y is one of several views that an op made, a view out of a custom Function, or made without gradients, and may "
            "not be changed in place: give y.clone()"
        )


def is_closed_view(y: Tensor) -> bool:
    """Whether y is a view that autograd does not follow a change of: of an op with several, of a custom Function, or made without
    gradients."""
    meta = torch._C._autograd
    return y._is_view() and meta._get_creation_meta(y) != meta.CreationMeta.DEFAULT


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
