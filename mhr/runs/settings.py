"""Settings of a run, documented where they stand. `mhr.runs.config.load_config` reads them from files and flags."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mhr.config import MODEL_KINDS, WITH_TOKENS, AdapterConfig
from mhr.data.chat_format import is_text
from mhr.errors import ConfigError
from mhr.loading import Loading
from mhr.methods import METHODS, ROUTING_METHODS, RoutingMethod, listed, method_of
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.data_settings import DataConfig
from mhr.runs.train_settings import TrainConfig
from mhr.setting import Settings, as_in, read_by, setting
from mhr.task_heads import HEAD_CHOICES, MLM, RANK, REGRESS

AS_IT_IS, AS_AVERAGE = "bank", "mu"


@dataclass
class RunConfig(Settings):
    """Everything that decides a pretraining run, and the defaults for adapting from it."""

    model: str = setting(
        "builtin:t5-tiny",
        "Backbone: a hub id, a folder, a GGUF file, builtin:t5-tiny or builtin:smollm2-135m.",
        reads=True,
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
        reads=True,
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
        reads=True,
        flag="--init-skills",
        metavar="FOLDER",
    )

    continue_from: str | None = setting(
        None, "Finished run whose adapter is trained on, with a new optimizer and schedule. Unset: none.", reads=True
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
            routed = {row.name: ROUTING_METHODS[row.routing] for row in METHODS.values() if row.routing}
            fitting = [name for name, row in routed.items() if row.needs_tasks and row.convex]
            raise ConfigError(
                f"{name} is given, but method {self.method!r} routes no skills by task, so there is nothing to average: "
                f"use it with {', '.join(fitting[:-1])} or {fitting[-1]}"
            )
        if self.adapter is not None and not self.adapter.routing.convex:
            self._check_directions(self.adapter.routing)
        if self.adapter is not None and self.adapter.adapter in WITH_TOKENS:
            self._check_virtual(self.adapter)
        if self.train.lazy_rows and self.adapter is not None and self.adapter.routing.all_rows:
            raise ConfigError(
                f"train.lazy_rows is true, but a step of method {self.method!r} trains what each task has of its own, drawn or not: leave it out"
            )
        if (
            self.train.lazy_rows
            and self.train.ends_in_mu
            and self.adapter is not None
            and self.adapter.routing.skill_per_task
        ):
            raise ConfigError(
                f"train.lazy_rows is true, but the run ends as the average of its skills (switch_to_mu_at, anneal_to_mu), and a step of method "
                f"{self.trained_as!r} then holds the skills of the tasks that it draws alone, not those of all: leave one out"
            )
        self._check_consistency()
        self._check_mask()

    def _check_virtual(self, adapter: AdapterConfig) -> None:
        """Raise ConfigError for what leaves virtual tokens no place in front of a call, or in its layers."""
        asked = {"data.packing": self.data.packing}
        names = ("torch_compile", "fsdp", *(["gradient_checkpointing"] if adapter.prepended else []))
        asked |= {f"train.{name}": getattr(self.train, name) for name in names}
        place = "in front of what the model reads" if adapter.prepended else "in each layer"
        for name, given in asked.items():
            if given:
                raise ConfigError(
                    f"{name} is true, but method {self.method!r} with adapter {adapter.adapter!r} puts virtual tokens {place}, which does not go "
                    "with it: leave it out"
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


def paths_read(config: RunConfig) -> list[str]:
    """What a run with these settings reads: paths, and names of what is no path. Of a chat template its file, until
    `with_chat_template` has put its text in place of that."""
    router = None if config.adapter is None else config.adapter.own_settings()
    parts = [config, config.data, config.adapt, *([] if router is None else [router])]
    return [name for part in parts for name in read_by(part) if not is_text(name)]
