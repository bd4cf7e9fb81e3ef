"""What is asked of a model, and how it answers, see `mhr.prediction.Predictor`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.errors import ConfigError
from mhr.runs.data_settings import DataConfig
from mhr.runs.scoring import ScoringConfig
from mhr.setting import MOST_SEED, Settings, as_in, setting


@dataclass
class PredictConfig(Settings):
    """Of answers to texts and rows, and in a chat."""

    task: str | None = setting(
        None,
        """Task of the texts, or of rows whose column task is missing, empty or the same. Rows of another task are refused. Unset: of each row
        its own, otherwise the only one that the model knows.""",
        flag="--task",
    )
    choices: list[str] | None = setting(
        None,
        "Answers to rank, the best of which is given. For texts, and for rows that have no choices of their own.",
        flag="--choices",
        metavar="A,B,...",
    )
    unseen: str = setting(
        "error",
        """A task that the model does not know, or that is not named: error, or uniform, the average of its skills.""",
        choices=("error", "uniform"),
        flag="--unseen",
    )
    definition: str | None = setting(
        None,
        """What a task asks for that the model does not know, and that --task gives a name: it is routed by this text, without training.
        For runs that route by definitions.""",
        flag="--definition",
        metavar="TEXT",
    )
    max_new_tokens: int | None = setting(
        None,
        "Maximum tokens of an answer. Unset: as many as targets had in training, otherwise 128.",
        at_least=1,
        flag="--max-new-tokens",
    )
    max_input_length: int | None = as_in(
        DataConfig,
        "max_input_length",
        None,
        doc="Maximum tokens of an input. Longer ones are truncated, and counted. Unset: as in training, otherwise 512.",
    )
    temperature: float = setting(
        0.0,
        "Draw tokens by their probability at this temperature. 0: take the likeliest.",
        at_least=0,
        flag="--temperature",
    )
    top_p: float = setting(
        1.0,
        "With --temperature: draw among the likeliest tokens that have this share of the probability.",
        above=0,
        at_most=1,
        flag="--top-p",
    )
    seed: int | None = setting(
        None, "With --temperature: seed of the draws. Unset: none.", at_least=0, at_most=MOST_SEED, flag="--seed"
    )
    stop: list[str] = as_in(ScoringConfig, "stop", [])
    batch_size: int | None = as_in(
        ScoringConfig, "batch_size", None, doc="Texts per batch. Unset: as many as fit in memory."
    )

    @property
    def of_generation(self) -> str:
        """The first setting that differs from its default and is of generated answers alone; "" where none does."""
        names = ("temperature", "stop", "max_new_tokens")
        return next((name for name in names if getattr(self, name) not in (0, [], None)), "")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.definition is not None and not (self.definition.strip() and self.task):
            missing = "task names none" if self.definition.strip() else "it is empty"
            raise ConfigError(
                f"definition says what a task asks for, but {missing}: give --task and --definition together"
            )
        for name, value, usual in (("top_p", self.top_p, 1.0), ("seed", self.seed, None)):
            if value != usual and not self.temperature:
                raise ConfigError(
                    f"{name} is {value}, but temperature is 0, so that no token is drawn: set a temperature too, or leave {name} out"
                )
        if not all(self.stop):
            raise ConfigError("stop has an empty string, expected some text in each")
        if self.choices is not None and (not all(self.choices) or len(set(self.choices)) < max(len(self.choices), 2)):
            raise ConfigError(f"choices are {', '.join(map(repr, self.choices))}, expected two or more different texts")
