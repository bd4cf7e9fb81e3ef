"""Settings of methods that route a task by its context. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.errors import ConfigError
from mhr.setting import Settings, setting

BACKBONE_ENCODER = "backbone"
"""The encoder that is the base model itself."""

CONTEXT_KINDS = ("definition", "shots", "learnt")
LEARNT_SIZE = 64
"""Length of a vector that is learnt: a context, or what stands for a block or a place in it."""


@dataclass
class ContextSettings(Settings):
    """What a context is made of, and the network that turns it into routing."""

    context: str = setting(
        "definition",
        """What a task's context is: definition, shots or learnt. definition: an embedding of the task's definition; shots: the mean of
        the embeddings of some training examples, each an input with its answer; learnt: a vector trained with the bank, which says
        nothing of new tasks.""",
        choices=CONTEXT_KINDS,
    )
    encoder: str = setting(
        BACKBONE_ENCODER,
        """What embeds texts: backbone (the base model itself), or a hub id or folder of a sentence encoder. An embedding is the mean of
        the last hidden states, without the bank.""",
    )
    shots: int = setting(32, "Training examples that a context of shots is the mean of.", at_least=1)
    size: int | None = setting(
        None, f"Length of a context (unset: {LEARNT_SIZE} where learnt, otherwise as the encoder has it).", at_least=1
    )
    hidden: int = setting(64, "Hidden units of the network.", at_least=1)
    network_lr: float = setting(3e-3, "Learning rate of the network.", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context == "learnt" and self.encoder != BACKBONE_ENCODER:
            raise ConfigError(f"encoder is {self.encoder!r}, but a learnt context is no embedding: leave it out")
        if self.context != "shots" and self.shots != type(self).shots:
            raise ConfigError(f"shots is {self.shots}, but the context is {self.context!r}: leave it out")

    @property
    def width(self) -> int:
        """C, the length of a context: as set."""
        return LEARNT_SIZE if self.size is None else self.size


@dataclass
class HyperSettings(ContextSettings):
    """The same of a hypernetwork, whose contexts are learnt unless set otherwise."""

    context: str = setting(
        "learnt",
        """What a task's context is: learnt, definition or shots. learnt: a vector trained with the bank, which says nothing of new tasks;
        definition: an embedding of the task's definition; shots: the mean of the embeddings of some training examples, each an input with
        its answer.""",
        choices=CONTEXT_KINDS,
    )
    hidden: int = setting(128, "Hidden units of the network.", at_least=1)
    network_lr: float = setting(1e-3, "Learning rate of the network.", above=0)
