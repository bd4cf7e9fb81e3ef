"""Settings of a run, documented field by field. `mhr.training.config.load_config` reads them from files and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mhr.config import AdapterConfig
from mhr.errors import ConfigError, nearest
from mhr.training.methods import METHODS

SAMPLERS = ("proportional", "uniform", "temperature")
OPTIMIZERS = ("adamw", "adafactor")
SCHEDULERS = ("linear", "cosine", "constant")
PRECISIONS = ("no", "bf16", "fp16")
KINDS = ("seq2seq", "causal", "encoder")


@dataclass
class DataConfig:
    """Which examples are read, how they are cut, and how often each task is drawn."""

    max_input_length: int = 256
    """Tokens of an input that are kept; longer inputs are truncated, and counted."""

    max_target_length: int = 64
    """Tokens of a target that are kept."""

    sampler: str = "proportional"
    """How tasks are drawn: proportional (to their number of examples), uniform, temperature (size ** (1 / temperature))."""

    temperature: float = 2.0
    """Temperature of the temperature sampler: 1 is proportional, large values are nearly uniform."""

    max_per_task: int | None = None
    """A task counts as having at most this many examples when tasks are drawn; None sets no limit."""

    definitions: bool = True
    """Begin an input with the definition of its task (Super-NaturalInstructions)."""

    positives: int = 0
    """Solved examples shown before an input (Super-NaturalInstructions)."""

    column_map: dict[str, str] | None = None
    """Columns of JSONL, Parquet or a Hugging Face dataset by the name they have here: {input: question, targets: answer}."""

    split_list: str | None = None
    """Super-NaturalInstructions: folder of splits/ that says which tasks are held out; None takes "default"."""

    subset: str | None = None
    """Configuration of a Hugging Face dataset (sst2 of nyu-mll/glue)."""

    fit: bool = False
    """Keep only the tasks whose inputs fit max_input_length, so that nothing is truncated."""

    max_choices: int | None = None
    """Keep only the tasks with at most this many answer choices: an encoder reads its input once for each. None sets no limit."""

    def __post_init__(self) -> None:
        for name in ("max_input_length", "max_target_length"):
            check_whole(name, getattr(self, name), at_least=2)
        check_choice("sampler", self.sampler, SAMPLERS)
        check_number("temperature", self.temperature, above=0)
        if self.max_per_task is not None:
            check_whole("max_per_task", self.max_per_task, at_least=1)
        if self.max_choices is not None:
            check_whole("max_choices", self.max_choices, at_least=2)
        check_whole("positives", self.positives, at_least=0)


@dataclass
class TrainConfig:
    """How a run is trained."""

    steps: int = 1000
    """Updates of the weights."""

    batch_size: int = 16
    """Examples per process and forward pass. The global batch is batch_size x accumulation x processes."""

    accumulation: int = 1
    """Forward passes per update."""

    lr: float = 1e-3
    """Learning rate of the adapters (of all weights with method full)."""

    router_lr: float = 0.1
    """Learning rate of the routing logits Z, which have no weight decay."""

    optimizer: str = "adamw"
    """adamw, or adafactor (without relative steps and parameter scaling)."""

    weight_decay: float = 0.0
    """Weight decay of the adapters (of all weights but biases and norms with method full)."""

    clip: float = 1.0
    """Greatest norm of the gradient of all parameters together; 0 does not clip."""

    warmup: float = 0.06
    """Steps over which the learning rate rises: below 1 a share of all steps, otherwise their number."""

    scheduler: str = "linear"
    """Learning rate after the warm-up: linear (to 0), cosine (to 0), constant."""

    label_smoothing: float = 0.0
    """Probability mass spread over the whole vocabulary (over the choices for encoders)."""

    precision: str = "no"
    """no (the dtypes of the weights), bf16 or fp16 (automatic mixed precision)."""

    gradient_checkpointing: bool = False
    """Compute each transformer block again during backward: less memory, more time."""

    seed: int = 42
    """Seed of initial values, the order of examples, dropout and routing noise."""

    save_every: int = 500
    """Updates between two resumable checkpoints."""

    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    log_every: int = 20
    """Updates between two lines of the log."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "save_every", "keep_checkpoints", "log_every"):
            check_whole(name, getattr(self, name), at_least=1)
        for name in ("lr", "router_lr"):
            check_number(name, getattr(self, name), above=0)
        for name in ("weight_decay", "clip", "warmup"):
            check_number(name, getattr(self, name), at_least=0)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        check_number("label_smoothing", self.label_smoothing, at_least=0, below=1)
        check_choice("precision", self.precision, PRECISIONS)
        check_whole("seed", self.seed, at_least=0)

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.steps * self.warmup) if self.warmup < 1 else int(self.warmup)


@dataclass
class AdaptConfig:
    """How a run is adapted to a new task; what is not named here is as in the run's training."""

    shots: int = 32
    """Examples of the task that are trained on."""

    seeds: list[int] = field(default_factory=lambda: [13, 42, 58])
    """One adaptation per seed, which picks the shots, fresh values, their order and dropout."""

    steps: int = 1000
    """Updates of the weights."""

    batch_size: int = 8
    """Examples per update."""

    lr: float = 1e-3
    """Learning rate of the adapters."""

    router_lr: float = 0.1
    """Learning rate of the routing logits."""

    full_lr: float = 1e-4
    """Learning rate where all weights train (mode full)."""

    warmup: float = 0.06
    """Steps over which the learning rate rises: below 1 a share of all steps, otherwise their number."""

    def __post_init__(self) -> None:
        for name in ("shots", "steps", "batch_size"):
            check_whole(name, getattr(self, name), at_least=1)
        if not self.seeds:
            raise ConfigError("seeds is empty: expected at least one whole number")
        for seed in self.seeds:
            check_whole("seeds", seed, at_least=0)
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {self.seeds}: expected each seed once")
        for name in ("lr", "router_lr", "full_lr"):
            check_number(name, getattr(self, name), above=0)
        check_number("warmup", self.warmup, at_least=0)


@dataclass
class RunConfig:
    """Everything that decides a pretraining run, and the defaults for adapting from it."""

    model: str = "builtin:t5-tiny"
    """Backbone: a hub id, a folder, or builtin:t5-tiny."""

    kind: str | None = None
    """seq2seq, causal or encoder (ranks choices). None: what the model's own configuration says."""

    tasks: str = "builtin:skills"
    """Task collection: a folder, a file, a Hugging Face dataset, or builtin:skills."""

    method: str = "mhr"
    """What is trained: mhr, poly, lora (one for all tasks), private (one LoRA per task), ia3, poly-ia3, random, uniform,
    hash (routing that is not learned), full (all weights, no adapter)."""

    adapter: AdapterConfig | None = field(default_factory=AdapterConfig)
    """Settings of the adapter bank; None with method full."""

    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(METHODS))
        if self.kind is not None:
            check_choice("kind", self.kind, KINDS)
        fixed = METHODS[self.method]
        if fixed is None:
            self.adapter = None
        elif self.adapter is None or any(getattr(self.adapter, key) != value for key, value in fixed.items()):
            raise ConfigError(f"adapter does not fit method {self.method!r}: expected AdapterConfig with {fixed}")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, which is unknown: {nearest(str(value), allowed)}")


def check_whole(name: str, value: Any, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} is {value!r}, expected a whole number of at least {at_least}")


def check_number(
    name: str, value: Any, above: float | None = None, at_least: float | None = None, below: float = math.inf
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value < below
    if number and (above is None or value > above) and (at_least is None or value >= at_least):
        return
    low = f"above {above:g}" if above is not None else f"of at least {at_least:g}"
    high = f" and below {below:g}" if below < math.inf else ""
    raise ConfigError(f"{name} is {value!r}, expected a number {low}{high}")
