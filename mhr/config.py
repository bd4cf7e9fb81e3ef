"""Settings of an adapter bank. Every field is documented where it stands; every fault is one line that names the field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mhr.checks import check_number, check_whole
from mhr.errors import ConfigError, nearest

METHODS = ("mhr", "poly", "shared", "private", "uniform", "random", "hash", "adamix")
ADAPTERS = ("lora", "ia3", "bottleneck")
GRANULARITIES = ("fine", "layer", "block", "coder", "coarse")
NOISES = ("off", "per_example", "per_task")
INITS = ("mhr", "peft")
SHARES = ("none", "up", "down")


@dataclass
class AdapterConfig:
    """One bank of adapters and how tasks are routed over it."""

    method: str = "mhr"
    """Routing method: mhr, poly (MHR with one head), shared (one adapter for all tasks), private (one per task),
    uniform, random (fixed), hash (fixed by the task's name), adamix (a skill drawn at random for each training pass, their
    average otherwise)."""

    adapter: str = "lora"
    """What is routed: lora (two low-rank factors per Linear), ia3 (one vector that scales its output) or bottleneck (down,
    GELU, up, with biases and a residual, after its output)."""

    n_skills: int | None = None
    """Skills in the bank, S. None: 8, or 4 for adamix, or 1 for shared, or as many as tasks for private, which takes no other
    number."""

    n_heads: int | None = None
    """Heads, H: blocks of the input and output features that are routed apart. None: 8 for mhr, otherwise 1."""

    rank: int = 4
    """Rank r of each low-rank factor; the width of a bottleneck."""

    alpha: float = 1.0
    """LoRA alpha: the update is scaled by alpha / rank."""

    dropout: float = 0.0
    """LoRA dropout: share of the input of the factors that is dropped while training."""

    targets: list[str] | str | None = None
    """Layers to adapt. A list holds names or their endings ("q", "attention.query"); a string is a regular expression
    for the whole name. None: the attention projections of the model's architecture; the outputs of its feed-forward blocks
    for a bottleneck."""

    modules_to_save: list[str] | None = None
    """Modules outside the bank that are trained and stored whole. None: the head of a sequence-classification model, and what
    the base model's checkpoint does not hold (the pooler of an encoder that was saved without one)."""

    granularity: str = "fine"
    """Which layers share one routing table: fine (none), layer (attention, feed-forward ...), block (transformer
    block), coder (encoder, decoder), coarse (all)."""

    noise: str = "off"
    """Relaxed-Bernoulli noise on the routing while training: off, per_example (as published), per_task."""

    temperature: float = 1.0
    """Temperature of the relaxed Bernoulli."""

    straight_through: bool = False
    """Round the routing in the forward pass and keep its gradient."""

    init: str = "mhr"
    """Initial A of a LoRA: mhr (U(-b, b), b = sqrt(1/3)/sqrt(in)) or peft (b = 1/sqrt(in/H)). B starts at 0."""

    share: str = "none"
    """Projection of which adamix has one for all skills: none, up (factor B) or down (factor A)."""

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("adapter", self.adapter, ADAPTERS)
        _one_of("granularity", self.granularity, GRANULARITIES)
        _one_of("noise", self.noise, NOISES)
        _one_of("init", self.init, INITS)
        _one_of("share", self.share, SHARES)
        if self.n_heads is None:
            self.n_heads = 8 if self.method == "mhr" else 1
        if self.n_skills is None and self.method != "private":
            self.n_skills = {"shared": 1, "adamix": 4}.get(self.method, 8)
        if self.method in ("poly", "adamix") and self.n_heads != 1:
            raise ConfigError(f"n_heads is {self.n_heads}, but {self.method} has 1 head: use method 'mhr' for more")
        if self.method == "shared" and self.n_skills != 1:
            raise ConfigError(f"n_skills is {self.n_skills}, but shared has 1 skill: use 'uniform' to average more")
        if self.method == "private" and self.n_skills is not None:
            raise ConfigError(f"n_skills is {self.n_skills}, but private has one skill per task: leave n_skills out")
        for name in ("n_heads", "n_skills", "rank"):
            if name != "n_skills" or self.method != "private":
                check_whole(name, getattr(self, name), at_least=1)
        for name in ("alpha", "temperature"):
            check_number(name, getattr(self, name), above=0)
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}, expected a number of at least 0 and below 1")
        if self.dropout and self.adapter != "lora":
            raise ConfigError(
                f"dropout is {self.dropout}, which is for lora, but adapter is {self.adapter!r}: leave it out"
            )
        if self.share != "none" and (self.method != "adamix" or self.adapter == "ia3"):
            raise ConfigError(
                f"share is {self.share!r}, but {self.method} routes {self.adapter} as a whole: only adamix draws the two "
                "projections of a lora or bottleneck apart"
            )
        for name, idle in (("noise", "off"), ("straight_through", False)):
            value = getattr(self, name)
            if value != idle and self.method not in ("mhr", "poly"):
                raise ConfigError(
                    f"{name} is {value!r}, but method {self.method!r} has no learned routing: set {name} to {idle!r}"
                )

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def skills_for(self, n_tasks: int) -> int:
        """Skills in the bank when it serves `n_tasks` tasks."""
        return n_tasks if self.n_skills is None else self.n_skills

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdapterConfig:
        """The configuration with these settings. An unknown one is an error that names the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown adapter setting {key!r}: {nearest(key, known)}")
        return cls(**values)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(allowed)}: {nearest(str(value), allowed)}")
