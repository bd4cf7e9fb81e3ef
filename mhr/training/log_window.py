"""What training cost since its last log: losses by task, and divergences of pairs of passes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mhr.objectives import PassLosses


class LogWindow:
    """The passes since the last log. `divergence` and `task_losses` are over all processes, each of which has to call them."""

    def __init__(self) -> None:
        self._losses: list[PassLosses] = []
        self._divergences: list[Tensor] = []

    def add(self, losses: PassLosses, divergence: Tensor | None) -> None:
        """Keep a pass, and how far its examples' second one diverges, summed over them."""
        self._losses.append(replace(losses, sums=losses.sums.detach(), predicted=None))
        if divergence is not None:
            self._divergences.append(divergence.detach())

    def spoiled(self) -> set[str]:
        """The tasks of the last pass whose losses are not finite; all of its tasks where something else made the loss so."""
        last = self._losses[-1]
        found = {t for t, value in zip(last.tasks, last.sums.tolist(), strict=True) if not math.isfinite(value)}
        return found or set(last.tasks)

    def clear(self) -> None:
        """Begin the next window."""
        self._losses.clear()
        self._divergences.clear()

    def divergence(self, accelerator: Accelerator) -> float | None:
        """Mean divergence of the passes, before its weight; None where there is none."""
        if not self._divergences:
            return None
        counts = torch.cat([part.counts for part in self._losses]).sum()
        sums = torch.stack([torch.stack(self._divergences).sum(), counts])
        total, count = accelerator.reduce(sums, reduction="sum").tolist()
        return total / max(count, 1.0)

    def task_losses(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean loss per task."""
        parts = self._losses
        names = [name for part in parts for name in part.tasks]
        pairs = torch.stack([torch.cat([p.sums for p in parts]), torch.cat([p.counts for p in parts]).float()])
        rows = list(zip(names, *pairs.tolist(), strict=True))
        if accelerator.num_processes > 1:
            rows = gather_object(rows)
        sums: dict[str, list[float]] = {}
        for name, total, count in rows:
            task = sums.setdefault(name, [0.0, 0.0])
            task[0] += total
            task[1] += count
        return {name: total / max(count, 1.0) for name, (total, count) in sorted(sums.items())}
