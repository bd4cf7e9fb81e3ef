"""How far a right kernel may be from exact arithmetic: bounds proved from the roundings it makes, elementwise.

A flat tolerance would fail right kernels at large ranks and pass wrong ones at small ranks. A `Bounded` is a float64
value with the largest error that float32 accumulation and the roundings to the operands' type allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-25, torch.float32: 2.0**-149, torch.float64: 0.0}
# float32 operands go through the tensor cores as two tf32 terms each: 2^-22 lost in each operand, and the product of
# the two small terms left out.
SPLIT_LOSS = 3 * 2.0**-22


@dataclass
class Bounded:
    value: torch.Tensor  # float64
    error: torch.Tensor  # float64, same shape

    @classmethod
    def exact(cls, tensor: torch.Tensor) -> Bounded:
        value = tensor.double()
        return cls(value, torch.zeros_like(value))

    def rounded(self, dtype: torch.dtype) -> Bounded:
        """As a value of `dtype`: half a unit in the last place more, or half the smallest subnormal."""
        size = self.value.abs() + self.error
        return Bounded(self.value, self.error + size * ROUNDOFF[dtype] + SMALLEST[dtype])

    def plus(self, other: Bounded) -> Bounded:
        value = self.value + other.value
        return Bounded(value, self.error + other.error + value.abs() * 2.0**-23)

    @staticmethod
    def sum(*terms: Bounded) -> Bounded:
        """Added up in any order."""
        size = sum(t.value.abs() + t.error for t in terms)
        value, error = sum(t.value for t in terms), sum(t.error for t in terms)
        return Bounded(value, error + size * len(terms) * 2.0**-24)

    def scaled(self, factor: float) -> Bounded:
        value = self.value * factor
        return Bounded(value, self.error * abs(factor) + value.abs() * 2.0**-22)

    def times(self, other: Bounded) -> Bounded:
        value = self.value * other.value
        error = self.error * (other.value.abs() + other.error) + self.value.abs() * other.error
        return Bounded(value, error + value.abs() * 2.0**-23)

    @property
    def mT(self) -> Bounded:
        return Bounded(self.value.mT, self.error.mT)

    def __getitem__(self, index: object) -> Bounded:
        return Bounded(self.value[index], self.error[index])


def product(a: Bounded, b: Bounded, dtype: torch.dtype) -> Bounded:
    """a @ b with operands of `dtype` and float32 sums. 2^-23 a term: tensor cores may truncate where others round."""
    size = (a.value.abs() + a.error) @ (b.value.abs() + b.error)
    loss = (a.value.shape[-1] + 16) * 2.0**-23 + (SPLIT_LOSS if dtype == torch.float32 else 0.0)
    exact = a.value.abs() @ b.error + a.error @ (b.value.abs() + b.error)
    return Bounded(a.value @ b.value, exact + loss * size)


def gelu(z: Bounded) -> Bounded:
    """The exact erf form; its slope is at most 1.13, and 1 + erf loses what cancels for negative z."""
    value = torch.nn.functional.gelu(z.value)
    return Bounded(value, 1.13 * z.error + z.value.abs() * 2.0**-20)


def gelu_slope(z: Bounded) -> Bounded:
    leaf = z.value.clone().requires_grad_()
    torch.nn.functional.gelu(leaf).sum().backward()
    assert leaf.grad is not None
    return Bounded(leaf.grad, 0.8 * z.error + (1 + z.value.abs()) * 2.0**-20)


def worst(actual: torch.Tensor, expected: Bounded) -> float:
    """Largest error as a fraction of its bound; infinite where an element is not a number or has no slack and differs."""
    difference = (actual.double() - expected.value).abs()
    ratio = torch.where(difference == 0, 0.0, difference / expected.error.clamp_min(1e-300))
    return float("inf") if ratio.isnan().any() else float(ratio.max()) if ratio.numel() else 0.0
