"""Settings of methods that route a task by its context. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mhr.errors import ConfigError
from mhr.setting import Settings, setting

BACKBONE_ENCODER = "backbone"
"""The encoder that is the base model itself."""
LONGEST_TEXT = 512
"""Tokens of a text that an encoder reads, or as many as it has positions for; of a longer one its beginning and its end, as a shot ends in its
answer."""

CONTEXT_KINDS = ("definition", "shots", "learnt")
LEARNT_SIZE = 64
"""Length of a vector that is learnt: a context, or what stands for a block or a place in it."""


@dataclass
class EmbeddingSettings(Settings):
    """What a context is made of.

    answers  whether a shot is embedded with its answer
    pooled   whether the embeddings of several shots are averaged
    """

    answers: ClassVar[bool] = True
    pooled: ClassVar[bool] = True

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
        reads=True,
    )
    shots: int = setting(32, "Training examples that a context of shots is the mean of.", at_least=1)
    size: int | None = setting(
        None, f"Length of a context (unset: {LEARNT_SIZE} where learnt, otherwise as the encoder has it).", at_least=1
    )
    network_lr: float = setting(3e-3, "Learning rate of the network.", above=0)

    @property
    def embedded(self) -> bool:
        """Whether something of a task is embedded."""
        return self.context != "learnt"

    @property
    def told(self) -> str:
        """What a new task is routed by, in words."""
        return self.context

    @property
    def size_name(self) -> str:
        """The setting that is the length of an embedding."""
        return "size"

    @property
    def width(self) -> int:
        """C, the length of a context: as set."""
        return LEARNT_SIZE if self.size is None else self.size


@dataclass
class ContextSettings(EmbeddingSettings):
    """The same, and the network that turns a context into routing."""

    hidden: int = setting(64, "Hidden units of the network.", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_kind()

    def _check_kind(self) -> None:
        """Raise ConfigError for settings that the kind of context has no use for."""
        if self.context == "learnt" and self.encoder != BACKBONE_ENCODER:
            raise ConfigError(f"encoder is {self.encoder!r}, but a learnt context is no embedding: leave it out")
        if self.context != "shots" and self.shots != type(self).shots:
            raise ConfigError(f"shots is {self.shots}, but the context is {self.context!r}: leave it out")


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


@dataclass
class PhaSettings(HyperSettings):
    """The same where learnt contexts are prototypes of tasks, near to embeddings of their examples."""

    answers: ClassVar[bool] = False
    pooled: ClassVar[bool] = False

    context: str = setting(
        "learnt", "What a task's context is: learnt, a vector trained with the bank.", choices=("learnt",)
    )
    encoder: str = setting(
        BACKBONE_ENCODER,
        """What embeds the inputs of examples: backbone (the base model itself), or a hub id or folder of a sentence encoder. An embedding is
        the mean of the last hidden states, without the bank.""",
        reads=True,
    )
    shots: int = setting(32, "Training examples of each task that its prototype is kept near to.", at_least=2)
    instance_size: int | None = setting(
        None, "Length of an example's embedding (unset: as the encoder has it).", at_least=1
    )
    contrast: float = setting(0.1, "Weight of the two contrastive losses.", above=0)
    tau: float = setting(0.1, "Temperature that cosines are divided by.", above=0)

    def _check_kind(self) -> None:
        """Its contexts are learnt, and its examples embedded."""

    @property
    def embedded(self) -> bool:
        return True

    @property
    def instance_width(self) -> int:
        """X, the length of an example's embedding."""
        return LEARNT_SIZE if self.instance_size is None else self.instance_size

    @property
    def told(self) -> str:
        return "examples, which find the nearest prototype"

    @property
    def size_name(self) -> str:
        return "instance_size"
