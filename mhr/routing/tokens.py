"""Routing of each token by itself: in each layer, from what the layer reads, over LoRAs that are trained already."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mhr.config import AdapterConfig
from mhr.errors import ConfigError
from mhr.routing.batch import RoutingBatch
from mhr.routing.router import Router


class TokenRouter(Router):
    """A router of one layer that scores skills by its input x [N, I] and takes the k best of each token:

        chosen[n] = top_k_s score(x[n], d_s),    shares[n, j] = softmax_j(score(x[n], d_chosen[n, j]) / temperature)

    `directions` d [S, I] has a row for each skill. Skills are LoRAs, named as the tasks of the bank. A layer adds
    `(alpha / R) sum_j shares[n, j] (x[n] A_chosen[n, j]) B_chosen[n, j]`, so that no one LoRA does the same.

    inputs  I, the features that the layer reads

    Raises ConfigError where k is above S.
    """

    per_task = ("directions",)
    directions: Tensor

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0, inputs: int = 0):
        super().__init__(config, tasks, index)
        self.register_buffer("directions", self.even.new_zeros(self.n_skills, inputs))
        self.known = False
        """Whether the directions are those of the skills, and not yet zeros."""

    def _resize(self, n_tasks: int) -> None:
        super()._resize(n_tasks)
        if self.settings.top_k > self.n_skills:
            raise ConfigError(
                f"router.top_k is {self.settings.top_k}, but there {'is' if self.n_skills == 1 else 'are'} {self.n_skills} to choose from: "
                f"expected 1 to {self.n_skills}"
            )

    @staticmethod
    def directions_of(A: Tensor, B: Tensor) -> Tensor | None:
        """The directions [S, I] of LoRAs A [S, I, R], B [S, R, O], where they follow from these; None where they are trained."""
        return None

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """Scores [N, S] of tokens x [N, I], in the dtype of the directions."""

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The skills that tokens x [N, I] take, int64 [N, k], and how much of each, [N, k] in the dtype of the directions, 1 in all.

        Raises ConfigError where the directions were never found.
        """
        if not self.known:
            raise ConfigError(
                f"method {self.config.method!r} has no directions yet by which to choose: mhr route makes them, or load_adapter reads them"
            )
        with torch.autocast(x.device.type, enabled=False):  # rounded, two scores that lie close would be one
            best, chosen = self.scores(x.to(self.directions.dtype)).topk(self.settings.top_k, dim=-1)
            return chosen, torch.softmax(best / self.settings.temperature, -1)

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
