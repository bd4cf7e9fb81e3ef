"""Settings of a run, documented field by field. `mhr.runs.config.load_config` reads them from files and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mhr.checks import check_choice, check_number, check_whole
from mhr.config import AdapterConfig
from mhr.errors import ConfigError
from mhr.runs.adapt_settings import SCHEDULERS, AdaptConfig
from mhr.runs.methods import METHODS

SAMPLERS = ("proportional", "uniform", "temperature")
OPTIMIZERS = ("adamw", "adafactor")
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

    template: str | None = None
    """Prompt templates: a YAML file, or the name of a packaged one (glue). None takes inputs and choices as they are read."""

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

    length_norm: float = 1.0
    """Power of a choice's number of tokens that its log-likelihood is divided by where choices are ranked (generators): 0 sums
    over its tokens, 1 takes their mean."""

    mc_loss: float = 0.0
    """Weight of ranking the right choice first, for generators on tasks with choices (T-Few); encoders are trained so anyway."""

    unlikely_loss: float = 0.0
    """Weight of making the tokens of wrong choices unlikely, for generators on tasks with choices (T-Few)."""

    switch_to_mu_at: int | None = None
    """Step after which all skills weigh alike: from there the bank trains as its average, one adapter for all tasks, which is
    the result of the run. None never switches."""

    anneal_to_mu: int | None = None
    """Last steps over which the routing weights go to uniform by a cosine, instead of a switch. None leaves them."""

    consistency: float | None = None
    """AdaMix: weight of the divergence of two passes that draw different skills; 0 leaves the second pass out. None: as published,
    1 where choices are ranked, 100 per target token where text is generated."""

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
        for name in ("weight_decay", "clip", "warmup", "length_norm", "mc_loss", "unlikely_loss"):
            check_number(name, getattr(self, name), at_least=0)
        for name, low in (("switch_to_mu_at", 0), ("anneal_to_mu", 1)):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, at_least=low)
                if value > self.steps - (name == "switch_to_mu_at"):
                    raise ConfigError(
                        f"{name} is {value}, but the run has {self.steps} steps: use fewer, or more steps"
                    )
        if self.switch_to_mu_at is not None and self.anneal_to_mu is not None:
            raise ConfigError("anneal_to_mu and switch_to_mu_at are both given: leave one out")
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        check_number("label_smoothing", self.label_smoothing, at_least=0, below=1)
        if self.consistency is not None:
            check_number("consistency", self.consistency, at_least=0)
        check_choice("precision", self.precision, PRECISIONS)
        check_whole("seed", self.seed, at_least=0)

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.steps * self.warmup) if self.warmup < 1 else int(self.warmup)

    @property
    def ranks(self) -> bool:
        """Whether generators are trained on the choices of a task, not on its right answers alone."""
        return self.mc_loss > 0 or self.unlikely_loss > 0

    @property
    def ends_in_mu(self) -> bool:
        """Whether the result is the average of the bank, one adapter for all tasks."""
        return self.switch_to_mu_at is not None or self.anneal_to_mu is not None


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
    """What is trained: mhr, poly, lora (one for all tasks), private (one per task), ia3, poly-ia3, bottleneck (one for all
    tasks), adamix (bottlenecks) or adamix-lora (a skill drawn at random for each pass), random, uniform, hash (routing that is
    not learned), full (all weights, no adapter)."""

    adapter: AdapterConfig | None = field(default_factory=AdapterConfig)
    """Settings of the adapter bank; None with method full."""

    init_skills: list[str] | None = None
    """Adapters (folders of ours or PEFT's, or folders of them) that the first skills of the bank begin as. None: all skills
    are drawn."""

    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(METHODS))
        if self.init_skills and METHODS[self.method] is None:
            raise ConfigError(f"init_skills is given, but method {self.method!r} has no skills: leave it out")
        if self.kind is not None:
            check_choice("kind", self.kind, KINDS)
        fixed = METHODS[self.method]
        if fixed is None:
            self.adapter = None
        elif self.adapter is None or any(getattr(self.adapter, key) != value for key, value in fixed.items()):
            raise ConfigError(f"adapter does not fit method {self.method!r}: expected AdapterConfig with {fixed}")
        if self.train.ends_in_mu and (self.adapter is None or self.adapter.method in ("shared", "uniform", "adamix")):
            name = "anneal_to_mu" if self.train.switch_to_mu_at is None else "switch_to_mu_at"
            raise ConfigError(
                f"train.{name} is given, but method {self.method!r} routes no skills by task, so there is nothing to average: "
                "use it with mhr, poly, private, random or hash"
            )
        self._check_consistency()

    def _check_consistency(self) -> None:
        weight = self.train.consistency
        if self.adapter is None or self.adapter.method != "adamix":
            if weight:
                raise ConfigError(
                    f"train.consistency is {weight}, but method {self.method!r} draws no skills whose passes could differ: "
                    "leave it out, or use adamix"
                )
        elif self.adapter.n_skills == 1 and weight != 0:
            raise ConfigError(
                "adapter.n_skills is 1, and the passes that consistency compares cannot draw different skills: use at least 2, "
                "or set train.consistency to 0"
            )
