"""Decoders: cross-entropy of the target's tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mhr.data.collators import IGNORED, Batch, CausalCollator
from mhr.objectives.objective import Objective, PassLosses, losses_of_tokens, model_inputs, objectives


@objectives.register("causal")
class CausalObjective(Objective):
    """Position l of prompt and target in one row predicts label l + 1."""

    kind = "causal"
    shares_row = True
    collates = CausalCollator

    def count(self, batch: Batch) -> Tensor:
        return batch["labels"][:, 1:].ne(IGNORED).sum()

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float = 0.0, *, compared: bool = False) -> PassLosses:
        inputs, labels = model_inputs(model, batch)
        return losses_of_tokens(model, inputs, next_labels(labels), batch, smoothing, compared)


def next_labels(labels: Tensor) -> Tensor:
    """What each position predicts, IGNORED at the last one; labels [B, L]."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)
