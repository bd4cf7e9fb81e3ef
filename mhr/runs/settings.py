"""Settings of a run, documented where they stand. `mhr.runs.config.load_config` reads them from files and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from mhr.config import MODEL_KINDS, AdapterConfig
from mhr.data.chat_format import PLAIN, TRAIN_ON, ChatFormat, is_file
from mhr.data.definition_forms import DEFINITION_FORMS
from mhr.data.faults import ON_BAD_ROW
from mhr.data.templates import given_templates, read_templates
from mhr.errors import ConfigError
from mhr.loading import Loading
from mhr.methods import METHODS, ROUTING_METHODS, RoutingMethod, listed, method_of
from mhr.runs.adapt_settings import AdaptConfig, OptimizationConfig
from mhr.setting import MOST_SEED, Settings, as_in, setting
from mhr.task_heads import HEAD_CHOICES, MLM, RANK, REGRESS

SAMPLERS = ("proportional", "uniform", "temperature")
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
LAZY_OPTIMIZERS = ("adamw", "adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Those that move an element by its own gradient and states, which begin as zeros: rows may be trained without the others."""
REPORTERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Where a run can be reported to, by Trainer's names."""
BEST_BY = ("loss", "score")
ANNEALINGS = ("half", "quarter")
AS_IT_IS, AS_AVERAGE = "bank", "mu"
PRECISIONS = ("no", "bf16", "fp16")


@dataclass
class DataConfig(Settings):
    """Which examples are read, how they are truncated, and how often each task is drawn."""

    max_input_length: int = setting(
        256,
        "Maximum input length in tokens. Longer inputs are truncated, and counted.",
        at_least=2,
        flag="--max-input-length",
    )
    max_target_length: int = setting(64, "Maximum target length in tokens.", at_least=2, flag="--max-target-length")
    packing: bool = setting(
        False,
        """Put several examples of a batch in one row, up to max_input_length + max_target_length tokens (decoders). Each is
        routed, attended to and learnt as if it stood alone.""",
        flag="--packing",
    )
    sampler: str = setting(
        "proportional",
        """How tasks are drawn: proportional, uniform or temperature. proportional: to their number of examples; temperature:
        to size ** (1 / temperature).""",
        choices=SAMPLERS,
    )
    temperature: float = setting(
        2.0,
        "Temperature of the temperature sampler: 1 is proportional, large values are nearly uniform.",
        above=0,
        only={"sampler": ("temperature",)},
    )
    max_train: int | None = setting(
        None,
        """Training examples of a task that are read, at most. Drawn by a fixed seed; the others are never trained on. Unset: all.""",
        at_least=1,
    )
    max_per_task: int | None = setting(
        None,
        "Maximum size of a task in the sampling proportions. Unset: no limit.",
        at_least=1,
    )
    weights: dict[str, float] = setting(
        {},
        """Weights of tasks: how many times as often each is drawn as the sampler says. sums=2,capitals=0.5; a task without one
        has 1.""",
        above=0,
        flag="--weights",
        metavar="TASK=WEIGHT,...",
    )
    group_by_length: bool = setting(
        False,
        """Batch examples of like length, so that less of a batch is padding. Within windows of 50 batches; each task is drawn
        as often.""",
        flag="--group-by-length",
    )
    workers: int = setting(
        0,
        """Processes that make batches beside the training process. 0: it makes them itself. Also the number of those that tokenise
        ahead, which is one for each core with 0. Batches are the same with any number.""",
        at_least=0,
        at_most=1024,
        flag="--workers",
    )
    cache: bool | None = setting(
        None,
        """Tokenise all examples before training, and keep the result for later runs. In the cache folder: MHR_CACHE, or
        ~/.cache/mhr. Losses are the same. Unset: from 10000 examples on, where the run draws as many or more.""",
        flag="--cache",
    )
    definitions: bool = setting(
        True, "Begin an input with the definition of its task (Super-NaturalInstructions).", flag="--definitions"
    )
    definition_form: str = setting(
        "plain",
        """How an input follows the definition of its task: plain or published (Super-NaturalInstructions). plain: the definition, an empty
        line, the input; published: "Task definition: ..." and "Now complete the following example -", without positives.""",
        choices=DEFINITION_FORMS,
    )
    positives: int = setting(
        0, "Solved examples shown before an input (Super-NaturalInstructions).", at_least=0, flag="--positives"
    )
    column_map: dict[str, str] | None = setting(
        None,
        """Columns by the name they have here: input=question,targets=answer. Of input, targets, choices, task and split, where
        those of files or of a Hugging Face dataset have other names; a dot leads into a nested column, translation.de.""",
        flag="--columns",
        metavar="OURS=THEIRS,...",
    )
    on_bad_row: str = setting(
        "error",
        """What a faulty row does: error or skip. error: the collection is refused, naming file and line; skip: the row is left
        out and counted.""",
        choices=ON_BAD_ROW,
        flag="--on-bad-row",
    )
    split_list: str | None = setting(
        None,
        """Folder of splits/ that says which tasks are held out (Super-NaturalInstructions). Unset: default.""",
        flag="--split-list",
    )
    subset: str | None = setting(
        None, "Configuration of a Hugging Face dataset (sst2 of nyu-mll/glue).", flag="--subset"
    )
    fit: bool = setting(False, "Keep only the tasks whose inputs fit max_input_length, so that nothing is truncated.")
    max_choices: int | None = setting(
        None,
        """Keep only the tasks with at most this many answer choices. An encoder reads its input once for each. Unset: no
        limit.""",
        at_least=2,
    )
    template: str | None = setting(
        None,
        """Prompt templates: a YAML file, or the name of a packaged one (glue). Unset: inputs and choices as they are read, or as
        the run's settings say.""",
        flag="--template",
        metavar="FILE",
    )
    prompt: str | None = setting(
        None,
        """Prompt of all tasks, as `input` of a template: "{sentence} It was {mask}.". {input}, {task} and the columns of a row are its
        fields; {mask}, once, is where a masked language model answers. Unset: as template says.""",
        flag="--prompt",
        metavar="TEXT",
    )
    verbalizers: dict[str, str] = setting(
        {},
        """Words that stand for the labels: negative=terrible,positive=great. With {mask} in the prompt each is one token. Unset: the
        labels themselves.""",
        flag="--verbalizers",
        metavar="LABEL=WORD,...",
    )
    chat_template: str | None = setting(
        None,
        """Chat template of a decoder: auto (its tokenizer's own), none, a name (chatml) or a Jinja file. All of these but none render
        every row, one that is no conversation as a user turn and its answer. Unset: conversations are rendered by the tokenizer's
        own, other rows are plain text.""",
        flag="--chat-template",
        metavar="NAME|FILE",
        words=(PLAIN,),
    )
    train_on: str = setting(
        "last",
        "Turns of a conversation that are trained on: last, or all of the assistant's.",
        choices=TRAIN_ON,
        flag="--train-on",
    )
    system: str | None = setting(
        None, "System turn of rows that a chat template renders and that have none.", flag="--system", metavar="TEXT"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.definition_form == "published" and self.positives:
            raise ConfigError(
                f"positives is {self.positives}, but definition_form is 'published', which shows none: leave one of them out"
            )
        self.chat  # noqa: B018  (refuses settings that do not fit each other)
        if self.prompt is not None or self.verbalizers:
            if self.template is not None:
                raise ConfigError(
                    f"template is {self.template!r}, and {'prompt' if self.prompt is not None else 'verbalizers'} is given, which a "
                    "template has itself: leave one out"
                )
            given_templates(self.prompt, self.verbalizers)  # refuses what has no meaning

    @property
    def masked(self) -> bool:
        """Whether a prompt has a {mask}, for a masked language model to answer at."""
        if self.template is not None:
            return read_templates(self.template).masked
        return given_templates(self.prompt, self.verbalizers).masked

    @property
    def chat(self) -> ChatFormat:
        """How the rows of a decoder become text."""
        return ChatFormat(self.chat_template, self.train_on, self.system)


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
        """Train what a task has of its own (rows of routing, a private adapter) in the steps that draw it alone, as torch.optim.SparseAdam does.
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


@dataclass
class RunConfig(Settings):
    """Everything that decides a pretraining run, and the defaults for adapting from it."""

    model: str = setting(
        "builtin:t5-tiny",
        "Backbone: a hub id, a folder, a GGUF file, builtin:t5-tiny or builtin:smollm2-135m.",
        flag="--model",
    )
    kind: str | None = setting(
        None,
        """seq2seq, causal, encoder or masked. encoder: answers through heads; masked: by a word at the {mask} of a prompt. Unset: what the
        model's own configuration says, or head.""",
        choices=MODEL_KINDS,
        flag="--kind",
    )
    dtype: str = as_in(Loading, "dtype", "float32")
    quantize: str = as_in(Loading, "quantize", "no")
    attn: str | None = as_in(Loading, "attn", None)
    device_map: str | None = as_in(Loading, "device_map", None)
    revision: str | None = as_in(Loading, "revision", None)
    trust_remote_code: bool = as_in(Loading, "trust_remote_code", False)
    tasks: str = setting(
        "builtin:skills",
        """Task collection: a folder, a file, a Hugging Face dataset, or builtin:skills. A file or folder of rows (JSON, JSONL,
        CSV, TSV, Parquet), a Super-NaturalInstructions or CrossFit folder, or a hub id or saved folder of datasets.""",
        flag="--tasks",
        metavar="PATH",
    )
    method: str = setting(
        "mhr",
        f"What is trained, such as mhr, poly, context-mhr, lora or full. All: {listed(METHODS)}.",
        choices=lambda: METHODS,
        flag="--method",
    )
    adapter: AdapterConfig | None = field(default_factory=AdapterConfig)
    """Settings of the adapter bank; None with method full."""

    head: str = setting(
        "auto",
        """What an encoder answers with: auto, classify, regress, rank or mlm. classify: a class of the task's label set; regress: a number; rank:
        the choice whose pair with the input scores highest; mlm: the word of a label at the {mask} of a prompt, by the masked-LM head that
        its checkpoint has; auto: mlm where the prompt has {mask}, otherwise as the data of each task says. classify and regress make a
        classifier of a decoder too.""",
        choices=HEAD_CHOICES,
        flag="--head",
    )
    share_heads: bool = setting(
        False,
        "Let tasks of the same label set share one head. Unset: each task has its own.",
        flag="--share-heads",
    )
    init_skills: list[str] | None = setting(
        None,
        """Adapters (folders of ours or PEFT's) to initialise the first skills from. Or folders of them; repeat the flag for more.
        Unset: all skills are drawn.""",
        flag="--init-skills",
        metavar="FOLDER",
    )

    continue_from: str | None = setting(
        None, "Finished run whose adapter is trained on, with a new optimizer and schedule. Unset: none."
    )
    continue_as: str | None = setting(
        None,
        """What goes on of the run that is trained on: its bank, or mu, the average of its skills. The average is one adapter for all
        tasks, for zero-shot use.""",
        choices=(AS_IT_IS, AS_AVERAGE),
        switches={"--continue-as-mu": AS_AVERAGE},
    )

    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_heads and self.head in (RANK, REGRESS):
            raise ConfigError(
                f"share_heads is true, but head is {self.head!r}, which knows no label sets: leave it out"
            )
        Loading.of(self)  # which checks that they go together
        method = METHODS[self.method]
        if self.init_skills and method.routing is None:
            raise ConfigError(f"init_skills is given, but method {self.method!r} has no skills: leave it out")
        if method.routing is None:
            self.adapter = None
        elif self.adapter is None or any(getattr(self.adapter, key) != value for key, value in method.fixed.items()):
            raise ConfigError(
                f"adapter does not fit method {self.method!r}: expected AdapterConfig with {method.fixed}"
            )
        self._check_continued()
        if self.ends_in_mu and (self.adapter is None or not self.adapter.routing.needs_tasks):
            name = "train.anneal_to_mu" if self.train.switch_to_mu_at is None else "train.switch_to_mu_at"
            name = "continue_as 'mu'" if self.continue_as == AS_AVERAGE else name
            fitting = [row.name for row in METHODS.values() if row.routing and ROUTING_METHODS[row.routing].needs_tasks]
            raise ConfigError(
                f"{name} is given, but method {self.method!r} routes no skills by task, so there is nothing to average: "
                f"use it with {', '.join(fitting[:-1])} or {fitting[-1]}"
            )
        if self.adapter is not None and not self.adapter.routing.convex:
            self._check_directions(self.adapter.routing)
        if self.adapter is not None and self.adapter.prepended:
            self._check_virtual(self.adapter)
        if self.train.lazy_rows and self.adapter is not None and self.adapter.routing.all_rows:
            raise ConfigError(
                f"train.lazy_rows is true, but a step of method {self.method!r} trains what each task has of its own, drawn or not: leave it out"
            )
        self._check_consistency()
        self._check_mask()

    def _check_virtual(self, adapter: AdapterConfig) -> None:
        """Raise ConfigError for what leaves virtual tokens no place in front of a call."""
        asked = {"data.packing": self.data.packing}
        asked |= {
            f"train.{name}": getattr(self.train, name) for name in ("gradient_checkpointing", "torch_compile", "fsdp")
        }
        for name, given in asked.items():
            if given:
                raise ConfigError(
                    f"{name} is true, but method {self.method!r} with adapter {adapter.adapter!r} puts virtual tokens in front of what the model "
                    "reads, which does not go with it: leave it out"
                )

    def _check_directions(self, routing: RoutingMethod) -> None:
        """Raise ConfigError for what takes each skill for an adapter, where skills are none."""
        asked = {"init_skills": self.init_skills, "continue_as": self.continue_as == AS_AVERAGE}
        asked |= {name: getattr(self.train, name) is not None for name in ("switch_to_mu_at", "anneal_to_mu")}
        for name, given in asked.items():
            if given:
                raise ConfigError(
                    f"{name} is given, but the skills of method {self.method!r} are no adapters, only {routing.skills_are}: "
                    "leave it out"
                )

    @property
    def trained_as(self) -> str:
        """`method`, by its most particular name where the kind of adapter gives it one."""
        return self.method if self.adapter is None else method_of(self.adapter.method, self.adapter.adapter)

    @property
    def answers_with(self) -> str:
        """`head`, with what a {mask} in the prompt chooses where it is left open."""
        return MLM if self.head == "auto" and self.data.masked else self.head

    def _check_mask(self) -> None:
        """What a template file says is seen when its tasks are read: a stored run may outlive it."""
        if self.kind == "masked" and self.head not in ("auto", MLM):
            raise ConfigError(
                f"head is {self.head!r}, but kind is 'masked', which answers at the mask of a prompt: leave one out"
            )
        if self.head == MLM and self.kind in ("seq2seq", "causal"):
            raise ConfigError(
                f"head is 'mlm', but kind is {self.kind!r}, and only a masked language model has one: leave kind out"
            )
        if self.data.template is not None:
            return
        if self.head == MLM and not self.data.masked:
            raise ConfigError(
                "head is 'mlm', but no prompt has a {mask} where it could answer: give one, as in --prompt '{input} It was {mask}.'"
            )
        if self.data.masked and self.kind in ("seq2seq", "causal"):
            raise ConfigError(
                f"the prompt has {{mask}}, which only a masked language model answers at, but kind is {self.kind!r}: leave kind or {{mask}} out"
            )
        if self.data.masked and self.head not in ("auto", MLM):
            raise ConfigError(
                f"head is {self.head!r}, but the prompt has {{mask}}, which head mlm answers at: leave head or {{mask}} out"
            )

    @property
    def ends_in_mu(self) -> bool:
        """Whether the result is the average of the bank, one adapter for all tasks."""
        return self.train.ends_in_mu or self.continue_as == AS_AVERAGE

    def _check_continued(self) -> None:
        if self.continue_from is None:
            if self.continue_as is not None:
                raise ConfigError(
                    f"continue_as is {self.continue_as!r}, but no run is named: mhr pretrain RUN --continue-as-mu"
                )
            return
        self.continue_as = self.continue_as or AS_IT_IS
        if self.init_skills:
            raise ConfigError("init_skills is given, but the run begins with the skills of another: leave it out")
        if self.continue_as == AS_AVERAGE and self.train.ends_in_mu:
            raise ConfigError(
                "continue_as is 'mu', which begins as the average: leave switch_to_mu_at and anneal_to_mu out"
            )

    def _check_consistency(self) -> None:
        weight = self.train.consistency
        if self.adapter is None or not self.adapter.routing.drawn:
            if weight:
                drawing = [row.name for row in METHODS.values() if row.routing and ROUTING_METHODS[row.routing].drawn]
                raise ConfigError(
                    f"train.consistency is {weight}, but method {self.method!r} draws no skills whose passes could differ: "
                    f"leave it out, or use {' or '.join(drawing)}"
                )
        elif self.adapter.n_skills == 1 and weight != 0:
            raise ConfigError(
                "adapter.n_skills is 1, and the passes that consistency compares cannot draw different skills: use at least 2, "
                "or set train.consistency to 0"
            )


def with_chat_template(config: RunConfig) -> RunConfig:
    """The settings with the text of a chat template in place of its file, so that the run keeps it. Raises ConfigError."""
    return replace(config, data=replace(config.data, chat_template=config.data.chat.with_text().template))


def paths_read(config: RunConfig) -> list[str | None]:
    """What a run with these settings reads: paths, and names of what is no path."""
    chat = config.data.chat_template if is_file(config.data.chat_template) else None
    return [
        config.model,
        config.tasks,
        config.data.template,
        chat,
        config.data.split_list,
        config.continue_from,
        *(config.init_skills or ()),
    ]
