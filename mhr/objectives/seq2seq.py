"""Encoder-decoders: cross-entropy of the target's tokens."""

from __future__ import annotations

from torch import Tensor, nn

from mhr.data.collators import IGNORED, Batch, Seq2SeqCollator
from mhr.objectives.objective import Objective, PassLosses, losses_of_tokens, model_inputs, objectives
from mhr.objectives.shifting import shift_right
from mhr.objectives.wrapping import bare


@objectives.register("seq2seq")
class Seq2SeqObjective(Objective):
    """The decoder reads the target moved to the right, as its model moves it, and predicts each token of it."""

    kind = "seq2seq"
    collates = Seq2SeqCollator

    def count(self, batch: Batch) -> Tensor:
        return batch["labels"].ne(IGNORED).sum()

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float = 0.0, *, compared: bool = False) -> PassLosses:
        inputs, labels = model_inputs(model, batch)
        inputs["decoder_input_ids"] = shift_right(bare(model), labels)
        return losses_of_tokens(model, inputs, labels, batch, smoothing, compared)
