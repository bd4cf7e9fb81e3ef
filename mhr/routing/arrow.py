"""Arrow (arXiv 2405.11157): a token goes to the LoRAs whose strongest input direction it has most of. Nothing is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from mhr.routing.router import routers
from mhr.routing.tokens import TokenRouter


@torch.no_grad()
def arrow_directions(A: Tensor, B: Tensor) -> Tensor:
    """v [S, I] of LoRAs A [S, I, R], B [S, R, O], of length 1: `v_s = argmax_{|v| = 1} |(v A_s) B_s|`.

    The first left singular vector of A_s B_s, from a QR of A and the eigenvectors of an R x R matrix, in float64: no product of
    I x O is made. Its sign means nothing; here its largest entry is positive. A LoRA that changes nothing has zeros, and scores 0.
    """
    q, r = torch.linalg.qr(A.double())  # [S, I, K], [S, K, R], K = min(I, R)
    update = r @ B.double()
    values, vectors = torch.linalg.eigh(update @ update.mT)
    found = (q @ vectors[..., -1:]).squeeze(-1)
    largest = found.gather(-1, found.abs().argmax(-1, keepdim=True))
    found = torch.where(values[..., -1:] > 0, found * largest.sign(), 0.0)
    return found.to(torch.promote_types(A.dtype, torch.float32))


@routers.register("arrow")
class ArrowRouter(TokenRouter):
    """`score(x, v_s) = |x . v_s|`, v_s the input direction that LoRA s changes most: see `arrow_directions`."""

    directions_of = staticmethod(arrow_directions)
