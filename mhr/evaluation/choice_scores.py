"""Scores while training: what validation asks for beside its loss."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.data.example import Example
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.measuring import score_answers
from mhr.evaluation.ranking import rank_choices
from mhr.runs.settings import RunConfig


class ChoiceScorer:
    """Answers examples by `rank_choices`, or by the heads of the model, with the lengths, length norm and precision of a run."""

    def __init__(self, loaded: LoadedModel, config: RunConfig):
        self.loaded, self.config = loaded, config

    def __call__(self, examples: Sequence[Example]) -> list[str]:
        """The answer to each example. Every example needs choices, or a head that needs none."""
        data, train = self.config.data, self.config.train
        ranked = rank_choices(
            self.loaded,
            examples,
            max_input_length=data.max_input_length,
            max_target_length=data.max_target_length,
            length_norm=train.length_norm,
            precision=train.precision,
        )
        return [r.answer for r in ranked]

    def score(self, task: str, metrics: Sequence[str], examples: Sequence[Example], answers: Sequence[str]) -> float:
        """The first of `metrics` that fits, otherwise accuracy (Pearson correlation of numbers), of the answers to examples of one task."""
        heads = self.loaded.heads
        head = None if heads is None else heads.heads[heads.of(task, examples[0].choices)]
        return score_answers(metrics, examples, answers, head)


def choice_scorer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, config: RunConfig
) -> ChoiceScorer:
    """What scores validation examples of a run whose model is in training."""
    return ChoiceScorer(LoadedModel(model, tokenizer, kind, "the model in training", chat=config.data.chat), config)
