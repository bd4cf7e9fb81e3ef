"""Accuracy while training: the score that validation asks for beside its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.data.example import Example
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.ranking import rank_choices
from mhr.runs.settings import RunConfig


def choice_scorer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, config: RunConfig
) -> Callable[[Sequence[Example]], list[float]]:
    """A function that gives 1 for each example whose best-ranked choice is right and 0 for each other, in their order.

    It ranks by `rank_choices` with the lengths, length norm and precision of `config`. Every example needs choices.
    """
    loaded = LoadedModel(model, tokenizer, kind, "the model in training", chat=config.data.chat)
    data, train = config.data, config.train

    def score(examples: Sequence[Example]) -> list[float]:
        ranked = rank_choices(
            loaded,
            examples,
            max_input_length=data.max_input_length,
            max_target_length=data.max_target_length,
            length_norm=train.length_norm,
            precision=train.precision,
        )
        return [float(r.answer in e.targets) for e, r in zip(examples, ranked, strict=True)]

    return score
