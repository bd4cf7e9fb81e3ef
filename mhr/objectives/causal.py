"""Decoders: cross-entropy of the target's tokens."""

from __future__ import annotations

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

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> PassLosses:
        inputs, labels = model_inputs(model, batch)
        return losses_of_tokens(model(**inputs).logits[:, :-1], labels[:, 1:], smoothing, batch)
