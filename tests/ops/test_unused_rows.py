"""A factor that no token takes is not computed with: infinities and NaN in it reach no output and no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mhr.ops import (
    routed_adapter,
    routed_bottleneck,
    routed_linear,
    routed_linears,
    token_adapter,
    token_routed_adapter,
)
from tests.ops.cases import with_gradients

U, D, R = 4, 24, 3
ROWS = (2, 0, 2)  # of 1, 3 and -1 none


def linear(x: Tensor, A: Tensor, B: Tensor, rows: Tensor) -> Tensor:
    return routed_linear(x, torch.eye(D), None, A, B, None, rows)


def linears(x: Tensor, A: Tensor, B: Tensor, rows: Tensor) -> list[Tensor]:
    return routed_linears(x, [torch.eye(D)] * 2, [None] * 2, torch.cat([A, A], -1), [B, 2 * B], rows)


def adapter(x: Tensor, A: Tensor, B: Tensor, rows: Tensor) -> Tensor:
    return routed_adapter(torch.zeros_like(x), x, A, B, rows)


def adapter_with_biases(x: Tensor, A: Tensor, B: Tensor, rows: Tensor) -> Tensor:
    more = {"bias_a": A.sum(1), "bias_b": B.sum(1), "activation": "gelu"}
    return routed_adapter(torch.zeros_like(x), x, A, B, rows, **more)


def bottleneck(x: Tensor, A: Tensor, B: Tensor, rows: Tensor) -> Tensor:
    biases = A.sum(1, keepdim=True)[None], B.sum(1, keepdim=True)[None]
    return routed_bottleneck(x, A[None], biases[0], B[None], biases[1], None, rows)


def by_token(x: Tensor, A: Tensor, B: Tensor, rows: Tensor) -> Tensor:
    chosen = rows.repeat_interleave(5)[:, None]
    return token_adapter(torch.zeros_like(x).view(-1, D), x.view(-1, D), A, B, chosen, torch.ones(15, 1))


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", [linear, linears, adapter, adapter_with_biases, bottleneck, by_token])
def test_no_number_spreads(op: Callable[..., Tensor | Sequence[Tensor]], dtype: torch.dtype, value: float) -> None:
    given = {"x": torch.randn(3, 5, D), "A": torch.randn(U, D, R), "B": torch.randn(U, R, D)}
    given = {name: t.to(dtype) for name, t in given.items()}

    def run(filled: dict[str, Tensor]) -> dict[str, Tensor]:
        torch.set_default_dtype(dtype)  # of what the ops above make
        try:
            return with_gradients(lambda **t: op(**t, rows=torch.tensor(ROWS)), filled)
        finally:
            torch.set_default_dtype(torch.float32)

    expected = run(given)
    for name in ("A", "B"):
        given[name] = given[name].clone()
        given[name][[1, 3]] = value
    found = run(given)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert not found["dA"][[1, 3]].any()


def test_no_number_spreads_where_tokens_choose() -> None:
    directions = torch.zeros(U, D)
    directions[:, 0] = torch.tensor([3.0, 1.0, 2.0, 0.0])
    x, A, B = torch.randn(15, D), torch.randn(U, D, R), torch.randn(U, R, D)
    expected = token_routed_adapter(torch.zeros(15, D), x, directions, A, B, top_k=2)
    A[[1, 3]], B[[1, 3]] = torch.inf, torch.nan
    assert torch.equal(token_routed_adapter(torch.zeros(15, D), x, directions, A, B, top_k=2), expected)
