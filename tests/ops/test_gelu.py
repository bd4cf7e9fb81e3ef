"""GELU and its slope as the CPU's kernels compute them, on numbers from the whole range of float32."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mhr.ops import native_ops, routed_adapter

pytestmark = pytest.mark.skipif(
    "cpu" not in native_ops()["routed_adapter_forward"], reason="references leave GELU to torch"
)
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
SMALLEST = {torch.float32: 2.0**-149, torch.float64: 5e-324}


def gelu_and_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """Through an adapter of one column and rank 1 whose factors are 1."""
    x = z[:, None].clone().requires_grad_()
    one = torch.ones(1, 1, 1, dtype=z.dtype)
    y = routed_adapter(torch.zeros_like(x), x, one, one, torch.tensor([0]), activation="gelu")
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach()[:, 0], slope[:, 0]


def truth(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: GELU, its slope, and the sum of the sizes of the slope's two terms, which cancel near z = -0.75."""
    wide = z.double()
    area = 0.5 * torch.special.erfc(-wide * math.sqrt(0.5))
    term = wide * torch.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return wide * area, area + term, area + term.abs()


def every_size(dtype: torch.dtype) -> Tensor:
    """Both signs of a dense grid of magnitudes, subnormal ones to the largest, and a finer one where GELU bends."""
    low, high = (-149, 127) if dtype == torch.float32 else (-1060, 1020)
    sizes = torch.cat([torch.logspace(low, high, 20011, base=2, dtype=torch.float64), torch.linspace(0, 17, 200003)])
    return torch.cat([sizes, -sizes]).to(dtype)


@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 8), (torch.float64, 32)], ids=str)
def test_accuracy_over_the_whole_range(dtype: torch.dtype, units: int) -> None:
    # float64 is held to torch's own error in the tail: the exponential of z * z, rounded.
    z = every_size(dtype)
    if dtype == torch.float64:
        z = z[z.abs() < 5]
    value, slope = gelu_and_slope(z)
    expected, expected_slope, terms = truth(z)
    floor = 2 * SMALLEST[dtype]
    assert bool(((value.double() - expected).abs() <= units * UNIT[dtype] * expected.abs() + floor).all())
    assert bool(((slope.double() - expected_slope).abs() <= units * UNIT[dtype] * terms + floor).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_limits_and_not_a_number(dtype: torch.dtype) -> None:
    z = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0], dtype=dtype)
    value, slope = gelu_and_slope(z)
    nan = math.nan
    torch.testing.assert_close(value, torch.tensor([math.inf, 0.0, nan, 0.0, 0.0], dtype=dtype), equal_nan=True)
    torch.testing.assert_close(slope, torch.tensor([1.0, 0.0, nan, 0.5, 0.5], dtype=dtype), equal_nan=True)


@pytest.mark.parametrize("n_tokens", [1, 3, 8, 15, 16, 17, 31, 33])
def test_accuracy_of_what_does_not_fill_a_vector(n_tokens: int) -> None:
    z = torch.linspace(-3, 3, n_tokens)
    value, slope = gelu_and_slope(z)
    expected, expected_slope, _ = truth(z)
    torch.testing.assert_close(value, expected.float())
    torch.testing.assert_close(slope, expected_slope.float())
