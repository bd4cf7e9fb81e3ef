"""The CUDA kernels of mix and its backward, executed on the CPU, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.emulation.bounds import Bounded, product, worst
from tests.emulation.emulator import DTYPES, Call, Output, run

pytestmark = pytest.mark.emulation


@dataclass(frozen=True)
class Item:
    rows: int
    heads: int
    skills: int
    p: int
    q: int
    head_dim: int  # 1: blocks joined along rows (factor A); 2: along columns (factor B)
    bank_dtype: torch.dtype = torch.float32
    mixed_dtype: torch.dtype = torch.float32
    stride: int = 0  # of a row of the mixed factor, where it is not q

    @property
    def mixed_shape(self) -> tuple[int, int, int]:
        if self.head_dim == 1:
            return self.rows, self.heads * self.p, self.q
        return self.rows, self.p, self.heads * self.q

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.p * self.q + self.rows)
        bank = torch.randn(self.heads, self.skills, self.p, self.q, generator=generator).to(self.bank_dtype)
        weights = torch.rand(self.rows, self.heads, self.skills, generator=generator)
        grad = torch.randn(self.mixed_shape, generator=generator).to(self.mixed_dtype)
        return bank, weights, grad

    def numbers(self) -> tuple[int, ...]:
        sizes = (self.heads, self.skills, self.p, self.q, self.rows, int(self.head_dim == 1))
        return (*sizes, DTYPES[self.bank_dtype], DTYPES[self.mixed_dtype])

    def split(self, mixed: torch.Tensor) -> torch.Tensor:
        """[U, ...] of a mixed factor -> [H, U, P * Q]."""
        if self.stride and mixed.shape[-1] == self.stride:
            assert not mixed[..., self.q :].any(), "a row is not filled up with zeros"
            mixed = mixed[..., : self.q]
        if self.head_dim == 1:
            blocks = mixed.reshape(self.rows, self.heads, self.p, self.q)
        else:
            blocks = mixed.reshape(self.rows, self.p, self.heads, self.q).transpose(1, 2)
        return blocks.transpose(0, 1).reshape(self.heads, self.rows, self.p * self.q)


BF16, FP16 = torch.bfloat16, torch.float16
ITEMS = (
    Item(4, 8, 8, 16, 4, 1),
    Item(4, 8, 8, 4, 16, 2),
    Item(1, 1, 1, 1, 1, 1),
    Item(9, 2, 11, 300, 5, 1, BF16, BF16, stride=8),
    Item(3, 2, 4, 33, 9, 1, torch.float32, BF16, stride=24),
    Item(9, 2, 11, 5, 300, 2, BF16, BF16),
    Item(3, 1, 3, 1, 77, 2, torch.float32, BF16),
    Item(2, 4, 2, 3, 7, 1, FP16, torch.float32),
    Item(0, 2, 2, 4, 4, 1),
    Item(2, 1, 5, 700, 8, 1, torch.float32, FP16),
    Item(5, 2, 9, 330, 4, 1, FP16, BF16, stride=8),
)
SUMS = torch.float64  # mix adds plain float32 products: no loss in the operands


def forward_call(items: Sequence[Item], seed: int, shift: int = 0) -> Call:
    arguments: list = [len(items)]
    for item in items:
        bank, weights, _ = item.tensors()
        shape = (*item.mixed_shape[:2], item.stride or item.mixed_shape[2])
        arguments += [*item.numbers(), bank, weights, item.stride, Output(shape, item.mixed_dtype)]
    return Call("mix", arguments, seed, shift)


def backward_call(
    items: Sequence[Item], seed: int, need_banks: bool = True, need_weights: bool = True, shift: int = 0
) -> Call:
    arguments: list = [len(items)]
    for item in items:
        bank, weights, grad = item.tensors()
        if item.stride:  # columns of a wider gradient
            grad = torch.nn.functional.pad(grad, (0, item.stride - item.q), value=torch.nan)
        arguments += [*item.numbers(), bank, weights, item.stride, grad]
        arguments.append(Output(tuple(bank.shape), item.bank_dtype) if need_banks else None)
        arguments.append(Output(tuple(weights.shape)) if need_weights else None)
    return Call("mix_backward", arguments, seed, shift)


# Bytes by which every tensor misses its alignment: fours of 16 bits survive 8 of them, nothing does 4.
@pytest.mark.parametrize(("seed", "shift"), [(0, 0), (1, 8), (7, 4)])
def test_mix_matches_float64(plain: Path, seed: int, shift: int) -> None:
    items = ITEMS * 5  # more than one launch takes
    (outputs,) = run(plain, [forward_call(items, seed, shift)])
    for item, mixed in zip(items, outputs, strict=True):
        bank, weights, _ = item.tensors()
        expected = product(Bounded.exact(weights.transpose(0, 1)), Bounded.exact(bank.flatten(2)), SUMS)
        assert worst(item.split(mixed), expected.rounded(item.mixed_dtype)) <= 1, item


@pytest.mark.parametrize(
    ("need_banks", "need_weights", "shift"),
    [(True, True, 0), (True, False, 0), (False, True, 0), (True, True, 8), (True, True, 4)],
)
def test_mix_backward_matches_float64(plain: Path, need_banks: bool, need_weights: bool, shift: int) -> None:
    (outputs,) = run(plain, [backward_call(ITEMS, 7, need_banks, need_weights, shift)])
    for item in ITEMS:
        bank, weights, grad = item.tensors()
        pieces = Bounded.exact(item.split(grad))
        if need_banks:
            expected = product(Bounded.exact(weights.permute(1, 2, 0)), pieces, SUMS).rounded(item.bank_dtype)
            assert worst(outputs.pop(0).flatten(2), expected) <= 1, item
        if need_weights:
            expected = product(pieces, Bounded.exact(bank.flatten(2)).mT, SUMS)
            assert worst(outputs.pop(0).transpose(0, 1), expected) <= 1, item


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_conversions_are_those_of_torch(plain: Path, dtype: torch.dtype) -> None:
    """A bank of one skill at weight 1: every 16-bit value to float32, and float32 of every size back."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    every = every[every.isfinite()]
    generator = torch.Generator().manual_seed(0)
    sizes = torch.linspace(-30, 20, 5000).exp2()
    wide = torch.cat([torch.randn(5000, generator=generator) * sizes, every.float()[:100] * (1 + 2**-12)])
    one = torch.ones(1, 1, 1)
    arguments: list = [2]
    for given, out in ((every, torch.float32), (wide, dtype)):
        numbers = (1, 1, 1, given.numel(), 1, 1, DTYPES[given.dtype], DTYPES[out])
        arguments += [*numbers, given, one, 0, Output((given.numel(),), out)]
    ((widened, narrowed),) = run(plain, [Call("mix", arguments)])
    assert torch.equal(widened, every.float())
    assert torch.equal(narrowed, wide.to(dtype))
