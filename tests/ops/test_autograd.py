"""What the autograd nodes of all ops share, the ones in C++ and their twins in Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mhr.ops import mix, route, routed_adapter, routed_bottleneck, routed_linear, routed_linears
from mhr.ops.routed_linear import _RoutedLinear
from mhr.ops.routed_linears import _RoutedLinears
from tests.ops.cases import with_gradients


def linear(x: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor) -> Tensor:
    return routed_linear(x, torch.ones(8, 8), None, bank_a, bank_b, weights.exp(), torch.tensor([0, 2]))


def bottleneck(x: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor) -> Tensor:
    biases = torch.ones(2, 3, 1, 2), torch.ones(2, 3, 1, 4)
    return routed_bottleneck(x, bank_a, biases[0], bank_b, biases[1], weights.exp(), torch.tensor([0, 2]))


def router(weights: Tensor) -> Tensor:
    return route(weights.exp(), torch.tensor([2, 0]))


@pytest.mark.parametrize("op", [linear, bottleneck, router])
def test_recomputation_starts_at_a_node_of_ours(op: Callable[..., Tensor]) -> None:
    """Its saved tensors are the first to be asked for where the op is the last of what gradient checkpointing repeats."""
    given = {"weights": torch.randn(3, 2, 3)}
    if op is not router:
        given |= {"x": torch.randn(2, 4, 8), "bank_a": torch.randn(2, 3, 4, 2), "bank_b": torch.randn(2, 3, 2, 4)}
    plain = with_gradients(op, given)
    repeated = with_gradients(lambda **t: checkpoint(op, use_reentrant=False, **t), given)
    assert plain.keys() == repeated.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, repeated[name]), name


def linears(x: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor) -> list[Tensor]:
    A, B = mix([bank_a, bank_b], [weights, weights], [1, 2])
    return routed_linears(x, [torch.ones(8, 8)] * 2, [None] * 2, torch.cat([A, A], -1), [B, B], torch.tensor([0, 2]))


def adapter(x: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor) -> Tensor:
    A, B = mix([bank_a, bank_b], [weights, weights], [1, 2])
    return routed_adapter(torch.zeros_like(x), x, A, B, torch.tensor([0, 2]), activation="gelu")


def linear_in_python(x: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor) -> Tensor:
    given = x, torch.ones(8, 8), None, bank_a, bank_b, weights.exp(), None, torch.tensor([0, 2]), None, None, 1.0, False
    return super(torch.autograd.Function, _RoutedLinear).apply(*given)  # type: ignore[misc]


def linears_in_python(x: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor) -> list[Tensor]:
    A, B = mix([bank_a, bank_b], [weights, weights], [1, 2])
    more = *[torch.ones(8, 8)] * 2, None, None, B, B
    given = x, torch.cat([A, A], -1), torch.tensor([0, 2]), None, None, 1.0, False, *more
    return super(torch.autograd.Function, _RoutedLinears).apply(*given)  # type: ignore[misc]


@pytest.mark.parametrize("op", [linear, linears, adapter, bottleneck, linear_in_python, linears_in_python])
def test_backward_under_an_autocast_that_forward_was_not_under(op: Callable[..., Tensor | list[Tensor]]) -> None:
    """Nobody's advice, and what trainers do: gradients come in the dtype of what they are of, at the precision of autocast's products."""
    given = {"x": torch.randn(2, 4, 8), "bank_a": torch.randn(2, 3, 4, 2), "bank_b": torch.randn(2, 3, 2, 4)}
    leaves = {n: t.requires_grad_() for n, t in (given | {"weights": torch.rand(3, 2, 3)}).items()}

    def gradients(autocast: bool) -> tuple[Tensor, ...]:
        found = op(**leaves)
        total = sum(y.square().sum() for y in ([found] if isinstance(found, Tensor) else found))
        with torch.autocast(leaves["x"].device.type, torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(total, list(leaves.values()))

    for name, got, expected in zip(leaves, gradients(True), gradients(False), strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() < 0.02 * expected.norm(), name
