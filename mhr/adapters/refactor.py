"""Products of factors brought back to two factors of a given rank, by truncated singular value decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mhr.adapters.layer import LoraFactors


@dataclass
class Loss:
    """Squared Frobenius norms: of what was to be re-factored, and of the part of it that the rank could not hold."""

    lost: float = 0.0
    total: float = 0.0

    def add(self, other: Loss) -> None:
        self.lost += other.lost
        self.total += other.total

    @property
    def relative(self) -> float:
        """`||D - A B||_F / ||D||_F`, 0 for D = 0."""
        return (self.lost / self.total) ** 0.5 if self.total > 0 else 0.0


def refactor_sum(
    terms: Sequence[LoraFactors], weights: Sequence[float], rank: int, energy: float | None = None
) -> tuple[LoraFactors, Loss]:
    """The best factors of `rank` for `D = sum_k w_k (alpha_k / R_k) A_k B_k`, without ever forming D [I, O].

        [w_1 s_1 A_1, ..., w_K s_K A_K] = Q R,  [B_1; ...; B_K]^T = P T,  R T^T = U S V^T,  A = Q U sqrt(S),  B = sqrt(S) V^T P^T

    in float64, whose cost grows with (I + O) (sum R_k)^2 and not with I * O; A and B are rounded to the dtype of the terms.
    Their alpha is their rank, so that the scaling is 1. energy: the least rank is taken, up to `rank`, whose sum of squares of S is this
    share of the whole, `||A B||_F^2 >= energy ||D||_F^2`.
    """
    left = torch.cat([w * f.scaling * f.a.double() for f, w in zip(terms, weights, strict=True)], dim=1)
    right = torch.cat([f.b.double() for f in terms], dim=0)
    q, r = torch.linalg.qr(left)
    p, t = torch.linalg.qr(right.T)
    u, s, vt = torch.linalg.svd(r @ t.T, full_matrices=False)
    return _truncate(q @ u, s, vt @ p.T, rank, energy, terms[0].a.dtype)


def refactor_dense(
    delta: Tensor, rank: int, dtype: torch.dtype, energy: float | None = None
) -> tuple[LoraFactors, Loss]:
    """The best factors of `rank`, or of `energy` (see `refactor_sum`), for a dense D [I, O], in the precision of D, rounded to `dtype`. Their
    scaling is 1."""
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    return _truncate(u, s, vt, rank, energy, dtype)


def _truncate(
    u: Tensor, s: Tensor, vt: Tensor, rank: int, energy: float | None, dtype: torch.dtype
) -> tuple[LoraFactors, Loss]:
    squares = s.double().square()
    rank = min(rank, len(s))
    if energy is not None:
        kept = squares.cumsum(0) < energy * squares.sum()
        rank = min(rank, int(kept.sum()) + 1)
    root = s[:rank].sqrt()
    loss = Loss(float(squares[rank:].sum()), float(squares.sum()))
    a, b = u[:, :rank] * root, root[:, None] * vt[:rank]
    return LoraFactors(a.to(dtype).contiguous(), b.to(dtype).contiguous(), float(rank)), loss
