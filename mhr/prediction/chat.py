"""A conversation with a decoder: its turns, in the words of the chat template, one answer after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mhr.data.chat_format import PLAIN
from mhr.data.example import Example
from mhr.data.forms.messages import render
from mhr.errors import ConfigError
from mhr.prediction.predictor import Answer, Predictor
from mhr.prediction.settings import PredictConfig

MOST_TOKENS = 2**31
"""Of a prompt: as many as the model takes."""


class Chat:
    """turns: what was said so far, {"role", "content"} of user and assistant in turn; a system turn is the predictor's.

    As much of the turns is read as the model has room for; more is truncated from the middle, see `mhr.data.chat_rows`.

    Raises ConfigError for an encoder or encoder-decoder, for a decoder without a chat template, and for settings that are out of
    range or change nothing; TaskError for an unknown task.
    """

    def __init__(self, predictor: Predictor, config: PredictConfig | None = None):
        config = config or PredictConfig()
        loaded = predictor.loaded
        if not loaded.objective.shares_row:
            raise ConfigError(
                f"{loaded.description} is of kind {loaded.kind!r}, expected a decoder, which a chat template is for: ask it by mhr predict"
            )
        if loaded.chat.template == PLAIN:
            raise ConfigError(
                f"{loaded.description} reads plain text (chat_template none), which has no turns: ask it by mhr predict, or give a chat "
                "template (--chat-template)"
            )
        if config.choices is not None:
            raise ConfigError("choices are ranked, and a chat generates: leave choices out")
        predictor.check(config)
        self.predictor = predictor
        self.config = replace(config, max_input_length=config.max_input_length or MOST_TOKENS)
        self.turns: list[Mapping[str, Any]] = []
        loaded.collator(*loaded.lengths()).chat_rows()  # which refuses a tokenizer without a chat template
        predictor.check_examples([self._question([{"role": "user", "content": "a"}])], self.config)

    def say(self, text: str, stream: Callable[[str], None] | None = None) -> Answer:
        """The answer to a further user turn; both join the turns once it is complete. stream: see `Predictor.answer`."""
        turns = [*self.turns, {"role": "user", "content": text}]
        (answer,) = self.predictor.answer([self._question(turns)], self.config, first=len(self.turns), stream=stream)
        self.turns = [*turns, {"role": "assistant", "content": answer.text}]
        return answer

    def reset(self) -> None:
        """Forget the turns."""
        self.turns = []

    def _question(self, turns: list[Mapping[str, Any]]) -> Example:
        unanswered = {"role": "assistant", "content": ""}
        task = self.predictor.default_task(self.config)
        return Example(task, render(turns), ("",), (), str(len(turns)), (*turns, unanswered))
