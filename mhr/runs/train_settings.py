"""Settings of a run's training, documented where they stand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mhr.errors import ConfigError
from mhr.runs.adapt_settings import OptimizationConfig
from mhr.setting import MOST_SEED, as_in, setting

BITSANDBYTES_OPTIMIZERS = (
    *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit"),
    *(
        "paged_lion_8bit",
        "paged_lion_32bit",
        "ademamix",
        "ademamix_8bit",
        "paged_ademamix_8bit",
        "paged_ademamix_32bit",
    ),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
TORCHAO_OPTIMIZERS = ("adamw_torch_8bit", "adamw_torch_4bit")
OPTIMIZERS = (
    *("adamw", "adafactor", "adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop"),
    *(*BITSANDBYTES_OPTIMIZERS, *TORCHAO_OPTIMIZERS),
)
"""adamw, which is adamw_torch, and names of transformers.Trainer: those that take groups of parameters with rates of their own."""
ADAM_OPTIMIZERS = tuple(name for name in OPTIMIZERS if "adam" in name or "ademamix" in name)
"""Those that divide by the root of a second moment and adam_epsilon."""
LAZY_OPTIMIZERS = ("adamw", "adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Those that move an element by its own gradient and states, which begin as zeros: rows may be trained without the others."""
REPORTERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Where a run can be reported to, by Trainer's names."""
BEST_BY = ("loss", "score")
ANNEALINGS = ("half", "quarter")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass
class TrainConfig(OptimizationConfig):
    """How a run is trained."""

    epochs: float | None = setting(
        None,
        """Passes over the training examples, instead of steps. One pass draws as many examples as there are (of each task at most
        max_per_task).""",
        above=0,
        flag="--epochs",
    )
    accumulation: int = setting(
        1,
        """Gradient accumulation: forward passes per optimizer step. The global batch is batch_size x accumulation x
        processes.""",
        at_least=1,
        flag="--accumulation",
    )
    warmup: float = as_in(OptimizationConfig, "warmup", 0.06, flag=("--warmup",))
    optimizer: str = setting(
        "adamw",
        f"""Optimizer, by its name in transformers.Trainer. adamw is adamw_torch; adafactor is without relative steps, and without parameter
        scaling unless scale_parameter is set; the others are {", ".join(OPTIMIZERS[2:])}. Those with 8bit, paged, lion, ademamix and bnb need the package
        bitsandbytes, {" and ".join(TORCHAO_OPTIMIZERS)} torchao. Routing logits keep states of 32 bits.""",
        choices=OPTIMIZERS,
        flag="--optimizer",
    )
    adam_epsilon: float = setting(
        1e-8,
        """Added to the root of the second moment that adamw and its kin divide by: gradients far below it move little. 1e-6 was published for
        AdaMix on GPT-2.""",
        above=0,
        only={"optimizer": ADAM_OPTIMIZERS},
    )
    weight_decay: float = setting(
        0.0, "Weight decay of the adapters (of all weights but biases and norms with method full).", at_least=0
    )
    router_weight_decay: float = setting(
        0.0,
        """Weight decay of the routing logits. With adamw 0.01 was published for SuperNI and CrossFit; without any, routing can saturate
        in runs of tens of thousands of steps.""",
        at_least=0,
    )
    lazy_rows: bool = setting(
        False,
        """Train a task's own rows (of routing, a private adapter) in the steps that draw it alone, as torch.optim.SparseAdam does.
        Time and memory of a step then do not grow with the number of tasks: for thousands of them. Otherwise rows also move, by momentum and
        weight decay, in steps without their task.""",
        flag="--lazy-rows",
    )
    clip: float = setting(1.0, "Maximum gradient norm, of all parameters together; 0 does not clip.", at_least=0)
    label_smoothing: float = setting(
        0.0,
        "Probability mass spread over the whole vocabulary (over the choices for encoders).",
        at_least=0,
        below=1,
    )
    switch_to_mu_at: int | None = setting(
        None,
        """Step after which skills have uniform weights (MHR-mu): one adapter for all tasks. From there the bank trains on as its
        average, which is the result of the run, for zero-shot use.""",
        at_least=0,
        flag="--switch-to-mu-at",
        metavar="STEP",
    )
    anneal_to_mu: int | None = setting(
        None,
        "Number of last steps over which routing is annealed to uniform by a cosine, instead of a switch.",
        at_least=1,
        flag="--anneal-to-mu",
        metavar="STEPS",
    )
    anneal_by: str = setting(
        "half",
        """Cosine by which routing is annealed over N steps: half or quarter. After k of them the share of the uniform weights is half:
        (1 - cos(pi k / N)) / 2, which ends as gently as it begins; quarter: 1 - cos(pi k / 2N), as published.""",
        choices=ANNEALINGS,
    )
    consistency: float | None = setting(
        None,
        """adamix: weight of the consistency regularisation between two passes. They draw different skills; 0 leaves the second
        pass out. Unset: as published, 1 where choices are ranked, 100 per target token where text is generated.""",
        at_least=0,
        flag="--consistency",
        of_method=True,
    )
    precision: str = setting(
        "no",
        "no (the dtypes of the weights), bf16 or fp16 (automatic mixed precision).",
        choices=PRECISIONS,
        flag="--precision",
    )
    gradient_checkpointing: bool = setting(
        False,
        "Recompute each transformer block in the backward pass: less memory, more time.",
        flag="--gradient-checkpointing",
    )
    torch_compile: bool = setting(
        False,
        """Compile the model with torch.compile, by its default backend. The first steps take minutes, and logits are then computed at
        every position.""",
    )
    fsdp: bool = setting(
        False,
        """Shard the frozen base over the processes of torchrun (FSDP2). The bank stays whole in each; `accelerate launch` with a
        config file for FSDP asks for the same.""",
        flag="--fsdp",
    )
    seed: int = setting(
        42,
        "Seed of initial values, the order of examples, dropout and routing noise.",
        at_least=0,
        at_most=MOST_SEED,
        flag="--seed",
    )
    save_every: int = setting(500, "Optimizer steps between two resumable checkpoints.", at_least=1)
    keep_checkpoints: int = setting(2, "Newest checkpoints that are kept.", at_least=1)
    log_every: int = setting(20, "Optimizer steps between two lines of the log.", at_least=1)
    eval_every: int = setting(
        0,
        """Optimizer steps between two validations, on examples of each task that are not trained on. 0: none. They are those of the
        task's validation split, where a test split stands beside it, otherwise drawn from its training examples.""",
        at_least=0,
        flag="--eval-every",
    )
    eval_rows: int | None = setting(
        None,
        """Validation examples of a task, at most. Of its training examples at most a fifth. Unset: 64.""",
        at_least=1,
        flag="--eval-rows",
    )
    eval_every_epochs: float | None = setting(
        None,
        """Epochs between two validations, in place of eval_every: 1 validates after each. An epoch is counted as for epochs.""",
        above=0,
        flag="--eval-every-epochs",
    )
    early_stopping: int | None = setting(
        None,
        "Validations without a better one after which training ends. Unset: all steps are trained.",
        at_least=1,
        flag="--early-stopping",
        metavar="N",
    )
    keep_best: bool = setting(
        False, "The result is the best validation's step instead of the last one.", flag="--keep-best"
    )
    best_by: str | None = setting(
        None,
        """What a better validation has: loss (a lower one) or score (a higher one). The score is the accuracy of the tasks with
        choices, or the metric that a task's data name. Unset: loss.""",
        choices=BEST_BY,
        flag="--best-by",
    )
    report_to: list[str] | None = setting(
        None,
        """Trackers that the run is reported to as it goes, by Trainer's own integrations: wandb, mlflow, trackio. Or tensorboard,
        which every run writes to logs/ anyway. Each takes its settings from its environment variables. Unset: none.""",
        choices=REPORTERS,
        flag="--report-to",
        metavar="NAME,...",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lazy_rows and self.optimizer not in LAZY_OPTIMIZERS:
            raise ConfigError(
                f"lazy_rows is true, but optimizer is {self.optimizer!r}, whose step on a row depends on others: use "
                f"{', '.join(LAZY_OPTIMIZERS[:-1])} or {LAZY_OPTIMIZERS[-1]}, or leave lazy_rows out"
            )
        if self.epochs is not None and self.steps != type(self).steps:
            raise ConfigError(f"epochs is {self.epochs:g}, and steps is {self.steps}: give one of them")
        if self.warmup >= 1 and not float(self.warmup).is_integer():
            raise ConfigError(
                f"warmup is {self.warmup}, expected a fraction of all steps below 1 or an integer number of steps"
            )
        self._check_validation()
        for name in ("switch_to_mu_at", "anneal_to_mu"):
            value = getattr(self, name)
            if value is not None and self.epochs is None and value > self.steps - (name == "switch_to_mu_at"):
                raise ConfigError(f"{name} is {value}, but the run has {self.steps} steps: use fewer, or more steps")
        if self.switch_to_mu_at is not None and self.anneal_to_mu is not None:
            raise ConfigError("anneal_to_mu and switch_to_mu_at are both given: leave one out")
        if self.anneal_by != type(self).anneal_by and self.anneal_to_mu is None:
            raise ConfigError(
                f"anneal_by is {self.anneal_by!r}, but nothing is annealed: set anneal_to_mu, or leave it out"
            )

    def lasting(self, draws: int, processes: int = 1) -> TrainConfig:
        """These settings with steps in place of `epochs` and `eval_every_epochs`, where those are given: enough for that many
        epochs of `draws` examples. Raises ConfigError for an anneal_to_mu or switch_to_mu_at that is beyond them."""

        def steps_of(epochs: float) -> int:
            # Rounding of the product is no reason for a step: 0.1 * 30 is a little above 3.
            return max(math.ceil(round(epochs * draws / (self.batch_size * self.accumulation * processes), 9)), 1)

        known: dict[str, Any] = {}
        if self.epochs is not None:
            known |= {"steps": steps_of(self.epochs), "epochs": None}
        if self.eval_every_epochs is not None:
            known |= {"eval_every": steps_of(self.eval_every_epochs), "eval_every_epochs": None}
        return replace(self, **known) if known else self

    def _check_validation(self) -> None:
        """Raise ConfigError for settings of a validation that there is none of, and that do not go with an end in an average."""
        for name in ("eval_rows", "early_stopping", "keep_best", "best_by"):
            value = getattr(self, name)
            if value and not self.validates:
                raise ConfigError(f"{name} is {value!r}, but nothing is validated: set eval_every, or leave it out")
        if self.eval_every and self.eval_every_epochs is not None:
            raise ConfigError(
                f"eval_every_epochs is {self.eval_every_epochs:g}, and eval_every is {self.eval_every}: give one of them"
            )
        if self.best_by is not None and not (self.keep_best or self.early_stopping):
            raise ConfigError(
                f"best_by is {self.best_by!r}, but nothing depends on the best validation: set keep_best or early_stopping, or leave it out"
            )
        for name in ("keep_best", "early_stopping"):
            if getattr(self, name) and self.ends_in_mu:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, but the run ends as the average of its skills (switch_to_mu_at, "
                    "anneal_to_mu), which no earlier step is: leave one out"
                )

    @property
    def validates(self) -> bool:
        """Whether there are validations on the way."""
        return bool(self.eval_every) or self.eval_every_epochs is not None

    @property
    def ends_in_mu(self) -> bool:
        """Whether the result is the average of the bank, one adapter for all tasks."""
        return self.switch_to_mu_at is not None or self.anneal_to_mu is not None
