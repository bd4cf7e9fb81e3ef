"""The CUDA kernel of weighted_average, executed on the CPU, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.emulation.bounds import Bounded, product, worst
from tests.emulation.emulator import DTYPES, Call, Output, run

pytestmark = pytest.mark.emulation


def call(tensors: list[torch.Tensor], weights: list[float], shift: int = 0) -> Call:
    first = tensors[0]
    arguments: list = [DTYPES[first.dtype], first.numel(), len(tensors)]
    for tensor, weight in zip(tensors, weights, strict=True):
        arguments += [weight, tensor]
    return Call("weighted_average", [*arguments, Output(tuple(first.shape), first.dtype)], 7, shift)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "size", "shift"), [(1, 5, 0), (2, 4096, 0), (8, 5001, 0), (3, 100, 8), (300, 77, 0)])
def test_matches_float64(plain: Path, dtype: torch.dtype, count: int, size: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(count)
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    if dtype != torch.float64:
        weights = weights.float().double()
    ((out,),) = run(plain, [call(tensors, weights.tolist(), shift)])
    sums = torch.float64
    expected = product(Bounded.exact(weights[None]), Bounded.exact(torch.stack(tensors)), sums)[0].rounded(dtype)
    if dtype == torch.float64:
        expected.error = expected.value.abs() * 2.0**-53 + count * 2.0**-53 * (weights @ torch.stack(tensors).abs())
    assert worst(out, expected) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_tensor_of_weight_one_keeps_its_bits(plain: Path, dtype: torch.dtype) -> None:
    tensor = torch.tensor([0.0, -0.0, float("inf"), -1.5, 1e-7]).to(dtype)
    ((out,),) = run(plain, [call([tensor], [1.0])])
    assert torch.equal(out.view(torch.uint8), tensor.view(torch.uint8))
