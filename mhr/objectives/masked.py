"""Masked language models that answer a prompt at its mask (LM-BFF, Gao et al. 2021, arXiv 2012.15723).

Of an example with choices c, their words' tokens v(c), and the logits z of the masked-LM head at the mask,

    p(c) = exp z[v(c)] / sum_c' exp z[v(c')]        loss = (1 - e) * -log p(y) + e * mean_c -log p(c)

The head is the base model's own and stays as it is; it is applied at the masks alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mhr.data import Example, TaskCollection
from mhr.data.collators import Batch, Collator
from mhr.data.mask_collator import MaskedCollator
from mhr.data.mask_tokens import encode_masked, masked_lengths
from mhr.objectives.heads import states_at
from mhr.objectives.objective import objectives
from mhr.objectives.ranking import ChoiceObjective


@objectives.register("masked")
class MaskedObjective(ChoiceObjective):
    """Masked language models: a choice's score is the logit of its word at the mask of the example's one row."""

    kind = "masked"
    collates = MaskedCollator

    def scores(self, model: nn.Module, inputs: Batch, counts: list[int]) -> Tensor:
        return word_scores(model, inputs, inputs.pop("places"), inputs.pop("words"), counts)

    def input_lengths(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
        return masked_lengths(tokenizer, examples)


def word_scores(model: nn.Module, inputs: Batch, places: Tensor, words: Tensor, counts: list[int]) -> Tensor:
    """The logits [sum of counts] of words at the mask of their example: places [B], words [sum of counts], example after example."""
    at_mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    at_mask[torch.arange(len(places), device=places.device), places] = True
    states = states_at(model, inputs, at_mask)
    rows = torch.repeat_interleave(torch.tensor(counts, device=words.device), output_size=len(words))
    return states.logits(states.values)[rows, words]


def check_words(collator: Collator, tasks: TaskCollection) -> None:
    """Raise DataError, before anything is trained, where a word of a task cannot be said at a mask, or where a prompt leaves no room
    for the task's longest input."""
    if isinstance(collator, MaskedCollator):
        for task in tasks.values():
            for example in task.train:
                collator.words(example)
            encode_masked(collator.tokenizer, [max(task.train, key=lambda e: len(e.input))], collator.max_input_length)
