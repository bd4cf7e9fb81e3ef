"""Routing of each token by itself: in each layer, from what the layer reads, over LoRAs that are trained already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mhr.config import AdapterConfig
from mhr.errors import ConfigError
from mhr.ops import token_adapter, token_routed_adapter
from mhr.ops.token_adapter import token_scores, token_shares
from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router


class TokenRouter(Router):
    """A router of one layer that scores skills by its input x [N, I] and takes the k best of each token:

        score(x, d) = |x . d|, or, `normalised`, x . d / sqrt(var(x) + 1e-5)
        chosen[n] = top_k_s score(x[n], d_s),    shares[n, j] = softmax_j(score(x[n], d_chosen[n, j]) / temperature)

    `directions` d [S, I] has a row for each skill. Skills are LoRAs, named as the tasks of the bank. A layer adds
    `(alpha / R) sum_j shares[n, j] (x[n] A_chosen[n, j]) B_chosen[n, j]`, so that no one LoRA does the same.

    inputs  I, the features that the layer reads

    Raises ConfigError where k is above S.
    """

    per_task = ("directions",)
    normalised = False
    directions: Tensor

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0, inputs: int = 0, outputs: int = 0):
        super().__init__(config, tasks, index)
        self.register_buffer("directions", self.even.new_zeros(self.n_skills, inputs))
        self.known = False
        """Whether the directions are those of the skills, and not yet zeros."""
        self.register_load_state_dict_post_hook(_look)

    def resize(self, n_tasks: int) -> None:
        super().resize(n_tasks)
        if self.settings.top_k > self.n_skills:
            raise ConfigError(
                f"router.top_k is {self.settings.top_k}, but there {'is' if self.n_skills == 1 else 'are'} {self.n_skills} to choose from: "
                f"expected 1 to {self.n_skills}"
            )

    @staticmethod
    def directions_of(A: Tensor, B: Tensor) -> Tensor | None:
        """The directions [S, I] of LoRAs A [S, I, R], B [S, R, O], where they follow from these; None where they are trained."""
        return None

    def scored_by(self) -> Tensor:
        """What `token_scores` takes as the directions [S, I]."""
        return self.directions

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The skills that tokens x [N, I] take, int64 [N, k], and how much of each, [N, k] in the dtype of the directions, 1 in all.

        Raises ConfigError where the directions were never found.
        """
        self._check_known()
        with torch.autocast(x.device.type, enabled=False):  # rounded, two scores that lie close would be one
            scores = token_scores(x, self.scored_by(), self.normalised)
            return token_shares(scores, self.settings.top_k, self.settings.temperature)

    def add_to(self, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        """What the layer adds to y [..., O] for its input x [..., I], by skills A [S, I, R] and B [S, R, O]. Where nothing is
        differentiated, on the CPU, y itself is changed."""
        fused = x.device.type == "cpu" and x.dtype == y.dtype and y.is_contiguous()
        if not fused or torch.is_grad_enabled() or torch.compiler.is_compiling():
            chosen, shares = self.choose(x.reshape(-1, x.shape[-1]))
            return token_adapter(y, x.to(y.dtype), A, B, chosen, shares, scale)
        self._check_known()
        return token_routed_adapter(
            y,
            x,
            self.scored_by(),
            A,
            B,
            top_k=self.settings.top_k,
            temperature=self.settings.temperature,
            normalised=self.normalised,
            scale=scale,
        )

    def _check_known(self) -> None:
        if not self.known:
            raise ConfigError(
                f"method {self.config.method!r} has no directions yet by which to choose: mhr route makes them, or load_adapter reads them"
            )

    def fill(self, directions: Tensor) -> None:
        """Choose by these directions [S, I]."""
        self.directions.copy_(directions)
        self.known = True

    def look(self) -> None:
        self.known = True

    def forward(self, batch: RoutingBatch) -> Tensor:
        """1/S for all tasks, for a task says nothing here; what layers ask is `choose`."""
        return self.even.expand(batch.tasks.shape[0], *self.even.shape)

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        super().set_tasks(tasks, keep)
        fresh = torch.zeros_like(self.directions[0])
        self.directions = torch.stack([fresh if k is None else self.directions[k] for k in keep])


def _look(router: TokenRouter, _: object) -> None:
    """Once a state dict was loaded."""
    if not router.directions.is_meta and router.directions.any():
        router.look()
