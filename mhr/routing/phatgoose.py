"""PHATGOOSE (arXiv 2402.05859): a gate for each LoRA, trained when the LoRA is finished; tokens go to the gates they open most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhr.config import AdapterConfig
from mhr.ops import token_adapter
from mhr.routing.router import routers
from mhr.routing.tokens import TokenRouter


@routers.register("phatgoose")
class PhatgooseRouter(TokenRouter):
    """`score(x, v_s) = norm(v_s) . norm(x) / sqrt(I)`, norm(z) = (z - mean(z)) / sqrt(var(z) + 1e-5) over the I features.

    v_s [I] is the gate of LoRA s, 0 at first. It is trained by itself, on the LoRA's own task and with everything else frozen, where a layer
    adds `sigmoid(x . v_s) (alpha / R) (x A_s) B_s` for all tokens: see `gating`.
    """

    normalised = True
    gate: nn.Parameter | None

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0, inputs: int = 0, outputs: int = 0):
        super().__init__(config, tasks, index, inputs)
        self.gated = 0
        self.register_parameter("gate", None)

    def scored_by(self) -> Tensor:
        # The mean of x falls out, since a normalised gate adds up to 0.
        size = self.directions.shape[1]
        return F.layer_norm(self.directions, (size,)) / size**0.5

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.gate is None:
            return super().choose(x)
        with torch.autocast(x.device.type, enabled=False):
            shares = torch.sigmoid(x.to(self.gate.dtype) @ self.gate)[:, None]
        return torch.full_like(shares, self.gated, dtype=torch.long), shares

    def add_to(self, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        if self.gate is None:
            return super().add_to(y, x, A, B, scale)
        return token_adapter(y, x.to(y.dtype), A, B, *self.choose(x.reshape(-1, x.shape[-1])), scale)

    @contextmanager
    def gating(self, skill: int) -> Iterator[nn.Parameter]:
        """Inside the block all tokens take LoRA `skill`, as far as its gate [I] opens, which begins at 0 and asks for a gradient. After it
        the direction of the LoRA is what became of the gate."""
        self.gated, self.gate = skill, nn.Parameter(torch.zeros_like(self.directions[skill]))
        try:
            yield self.gate
            self.directions[skill] = self.gate.detach()
        finally:
            self.gate = None
