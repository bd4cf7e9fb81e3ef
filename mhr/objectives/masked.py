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
from mhr.objectives.heads import States, states_at
from mhr.objectives.objective import Distributions, Objective, PassLosses, model_inputs, objectives
from mhr.objectives.ranking import choice_losses, pad_choices


@objectives.register("masked")
class MaskedObjective(Objective):
    """The softmax goes over the words of an example's own choices."""

    kind = "masked"
    generates = False
    consistency = 1.0
    collates = MaskedCollator

    def count(self, batch: Batch) -> int:
        return len(batch["choice_counts"])

    def __call__(self, model: nn.Module, batch: Batch, smoothing: float = 0.0, *, compared: bool = False) -> PassLosses:
        inputs, labels = model_inputs(model, batch)
        counts: list[int] = inputs.pop("choice_counts")
        places, words = inputs.pop("places"), inputs.pop("words")
        scores = word_scores(model, inputs, places, words, counts)
        every = torch.ones_like(labels)
        predicted = None
        if compared:
            logits = pad_choices(scores, counts)
            predicted = Distributions(States(logits), every, classes=~logits.isinf())
        return PassLosses(choice_losses(scores, counts, labels, smoothing), every, batch["task_ids"], predicted)

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
