"""Settings of adapters that are generated from the hidden states of a task's shots. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.errors import ConfigError
from mhr.method_settings.contexts import BACKBONE_ENCODER, LONGEST_TEXT, EmbeddingSettings
from mhr.setting import setting


@dataclass
class GenerativeSettings(EmbeddingSettings):
    """What is read of a task, and how the generator is trained on it."""

    context: str = setting(
        "shots", "What a task's context is: shots, some examples, each an input with its answer.", choices=("shots",)
    )
    encoder: str = setting(
        BACKBONE_ENCODER,
        """What reads texts: backbone (the base model itself), or a hub id or folder of a sentence encoder. What counts are its last
        hidden states, without the bank.""",
        reads=True,
    )
    shots: int = setting(32, "Examples that a context is made of.", at_least=1)
    pool: int | None = setting(
        None,
        """Training examples of each task from which each training step draws the context (unset: half of them, but at least as many as the
        shots and at most twice that). They are not trained on themselves, so that no context holds the example that is asked for.""",
        at_least=1,
    )
    tokens: int = setting(64, "Tokens of an example that count, the last ones.", at_least=1, at_most=LONGEST_TEXT)
    size: int | None = setting(None, "Length of a hidden state (unset: as the encoder has it).", at_least=1)
    network_lr: float = setting(1e-3, "Learning rate of the generator.", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is not None and self.pool < self.shots:
            raise ConfigError(
                f"pool is {self.pool}, from which {self.shots} shots are drawn: set it to {self.shots} or more"
            )

    def apart(self, examples: int) -> int:
        """Training examples that are set apart for contexts, of a task with so many."""
        return min(2 * self.shots, max(self.shots, examples // 2)) if self.pool is None else self.pool
