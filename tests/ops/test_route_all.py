"""route_all is route, router by router."""

from __future__ import annotations

import pytest
import torch

from mhr.ops import route, route_all


def tasks() -> torch.Tensor:
    return torch.tensor([2, 0, -1])


@pytest.mark.parametrize("with_noise", [False, True])
def test_each_is_routed_as_alone(with_noise: bool) -> None:
    torch.manual_seed(0)
    logits = [torch.randn(3, 2, 5, requires_grad=True) for _ in range(4)]
    noise = torch.randn(4, 3, 2, 5) if with_noise else None
    together = route_all(logits, tasks(), noise, 0.7)
    for i, z in enumerate(logits):
        alone = route(z, tasks(), None if noise is None else noise[i], 0.7)
        assert torch.equal(together[i], alone)
        upstream = torch.randn_like(alone)
        (expected,) = torch.autograd.grad(alone, z, upstream)
        (got,) = torch.autograd.grad(together[i], z, upstream, retain_graph=True)
        assert torch.equal(got, expected)


def test_gradients_reach_the_routers_in_use_only() -> None:
    logits = [torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = route_all(logits, tasks())
    (weights[0].square().sum() + weights[2].square().sum()).backward()
    assert logits[0].grad.any()
    assert logits[1].grad is None
    assert logits[2].grad.any()


def test_half_precision_logits_get_float32_weights() -> None:
    logits = [torch.randn(3, 2, 5).to(torch.bfloat16).requires_grad_(), torch.randn(3, 2, 5).double().requires_grad_()]
    half, double = route_all(logits, tasks(), torch.randn(2, 3, 2, 5))
    assert (half.dtype, double.dtype) == (torch.float32, torch.float64)
    (half.sum() + double.square().sum()).backward()
    assert (logits[0].grad.dtype, logits[1].grad.dtype) == (torch.bfloat16, torch.float64)


def test_no_router_no_weights() -> None:
    assert route_all([], tasks()) == []
