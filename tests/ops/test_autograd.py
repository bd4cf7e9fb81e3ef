"""What the autograd nodes of all ops share, the ones in C++ and their twins in Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mhr.ops import route, routed_bottleneck, routed_linear
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
