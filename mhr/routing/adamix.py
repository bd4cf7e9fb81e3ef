"""AdaMix (arXiv 2205.12410): a skill at random for each pass of training, the average of all skills otherwise."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mhr.routing.router import routers
from mhr.routing.uniform import UniformRouter

BANK_INFERENCE = ("average", "sentence", "token")
"""How a bank of drawn skills is used outside training: their average, or a skill drawn for each example or each token."""


@routers.register("adamix")
class AdamixRouter(UniformRouter):
    """`w[u, h, s] = 1 / S`, the merged skills. While training none are weighed: see `draw`."""


def draw(generator: torch.Generator, n_routers: int, n_skills: tuple[int, int], n: int) -> Tensor:
    """Skills drawn uniformly and independently for every router, for factors A and for factors B, and for `n` segments.

    n_skills: skills of A and of B. Returns int64 [n_routers, 2, n] on the host.
    """
    sides = [torch.randint(skills, (n_routers, n), generator=generator) for skills in n_skills]
    return torch.stack(sides, dim=1)


def seeded(seed: int, step: int, pass_: int) -> torch.Generator:
    """The generator of one pass of one training step: the same in every process, after a resume, on every machine."""
    digest = hashlib.sha256(f"{seed}/{step}/{pass_}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
