"""Hash routing: a fixed hash of the task's name picks its skill. A control without any learning or seed."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mhr.routing.router import TableRouter, routers


@routers.register("hash")
class HashRouter(TableRouter):
    """`w[t, h, s] = 1 where s = SHA-256(name of t, h) mod S, else 0`; the same on every machine and in every run."""

    def row(self, index: int, task: str) -> Tensor:
        n_heads, n_skills = self.even.shape
        one = torch.zeros_like(self.even)
        for head in range(n_heads):
            digest = hashlib.sha256(f"{head}:{task}".encode()).digest()
            one[head, int.from_bytes(digest[:8], "big") % n_skills] = 1.0
        return one
