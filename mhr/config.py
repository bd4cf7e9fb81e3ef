"""Settings of an adapter bank. Every field is documented where it stands; every error is one line that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mhr.errors import ConfigError
from mhr.method_settings.shared_heads import SharedHeadsSettings
from mhr.methods import ROUTING_METHODS, RoutingMethod, listed
from mhr.setting import Settings, convert, expected, setting, settings_of

MODEL_KINDS = ("seq2seq", "causal", "encoder", "masked")
"""What a model is asked to do: answer after reading, go on writing, answer through a head, or say the word at a mask."""

ADAPTERS = ("lora", "ia3", "film", "bias", "bottleneck", "recurrent", "prompt", "prefix", "gated")
RANKED = ("lora", "bottleneck", "recurrent", "gated")
"""Kinds of adapters with two projections and a rank between them; the others are vectors."""

BEHIND = ("bottleneck", "recurrent")
"""Kinds that stand behind feed-forward blocks, unless targets say otherwise; the others stand in attention."""

VIRTUAL = ("prompt", "prefix")
"""Kinds of adapters that are virtual tokens in front of what a model reads; the others act on layers."""

WITH_TOKENS = (*VIRTUAL, "gated")
"""Kinds that have virtual tokens, also those that have them in their layers alone."""

GRANULARITIES = ("fine", "layer", "block", "coder", "coarse")
NOISES = ("off", "per_example", "per_task")
INITS = ("mhr", "peft")
SHARES = ("none", "up", "down")


@dataclass
class AdapterConfig(Settings):
    """One bank of adapters and how tasks are routed over it."""

    method: str = setting(
        "mhr",
        f"Routing method: {listed(ROUTING_METHODS)}.",
        choices=lambda: ROUTING_METHODS,
    )
    adapter: str = setting(
        "lora",
        """Kind of adapter that is routed: lora, ia3, film, bias, bottleneck, recurrent, prompt, prefix or gated. lora: two low-rank factors per
        Linear; ia3: one vector that scales its output; film: one that scales and one that shifts it; bias: one that shifts the biases of
        Linear layers and layer norms; bottleneck: down, GELU, up, with biases and a residual, after its output; recurrent: behind its
        output a controller that all layers and tasks share, and a routed head; prompt: embeddings of virtual tokens before the input;
        prefix: keys and values of such in each self-attention of a decoder; gated: a lora on q and v, a prefix and a bottleneck in each block,
        each scaled by a gate.""",
        choices=ADAPTERS,
        flag="--adapter",
        of_method=True,
    )
    n_skills: int | None = setting(
        None,
        """Skills in the bank, S (unset: 8). Methods that draw skills have 4, those of one adapter for all tasks 1, and those of
        one adapter a task as many as tasks, and no other number.""",
        at_least=1,
        flag="--n-skills --skills",
        of_method=True,
    )
    n_heads: int | None = setting(
        None,
        """Heads, H: blocks of features, each routed independently (unset: 8 for mhr, else 1). They must divide the input and output sizes of the
        adapted layers.""",
        at_least=1,
        at_most=2**16,
        flag="--n-heads --heads",
        of_method=True,
    )
    rank: int = setting(
        4,
        "Rank of the low-rank factors; width of a bottleneck or controller.",
        at_least=1,
        flag="--rank",
        only={"adapter": RANKED},
    )
    virtual_tokens: int = setting(
        20,
        "Virtual tokens of a prompt or prefix.",
        at_least=1,
        at_most=2**16,
        flag="--virtual-tokens",
        only={"adapter": WITH_TOKENS},
    )
    width: int | None = setting(
        None,
        "Width of the bottlenecks of gated adapters. Unset: that of rank, which their LoRAs have.",
        at_least=1,
        flag="--width",
        only={"adapter": ("gated",)},
    )
    alpha: float = setting(
        1.0, "LoRA alpha: the adapter's output is scaled by alpha / rank.", above=0, only={"adapter": ("lora",)}
    )
    dropout: float = setting(
        0.0,
        "LoRA dropout: share of the input of the factors that is dropped while training.",
        at_least=0,
        below=1,
        of_method=True,
    )
    targets: list[str] | str | None = setting(
        None,
        """Layers to adapt: all-linear, attention, feed-forward, outputs, or names or their endings, as in q,v. all-linear: every Linear of
        the transformer blocks; outputs: those that attention and feed-forward parts end in. A list holds such words and names ("q",
        "attention.query"); in a file, a string is one of the words, or a regular expression for the whole name. Unset: attention; for
        bottleneck and recurrent, the outputs of the feed-forward blocks; for bias, all layers that have one.""",
        flag="--targets",
        metavar="NAME,...",
    )
    parts: list[str] | None = setting(
        None,
        """Parts of a fused projection that are adapted, each by itself: [q, v] of GPT-2's c_attn. Each has a LoRA of an equal part of the
        rank, which is then that of all together. Unset: a fused projection is adapted as one.""",
        only={"adapter": ("lora",)},
    )
    modules_to_save: list[str] | None = setting(
        None,
        """Modules outside the bank that are trained and stored whole. Unset: the head of a sequence-classification model, and
        what the base model's checkpoint does not hold (the pooler of an encoder that was saved without one).""",
    )
    granularity: str = setting(
        "fine",
        """Which layers share one routing table: fine, layer, block, coder or coarse. fine: none; layer: the attention, the
        feed-forward ... of a block; block: a transformer block; coder: encoder, decoder; coarse: all.""",
        choices=GRANULARITIES,
    )
    noise: str = setting(
        "off",
        "Relaxed-Bernoulli noise on the routing while training: off, per_example (as published), per_task.",
        choices=NOISES,
        of_method=True,
    )
    temperature: float = setting(
        1.0, "Temperature of the relaxed Bernoulli.", above=0, only={"noise": ("per_example", "per_task")}
    )
    straight_through: bool = setting(
        False, "Round the routing in the forward pass and keep its gradient.", of_method=True
    )
    init: str = setting(
        "mhr",
        "Initial A of a LoRA: mhr (U(-b, b), b = sqrt(1/3)/sqrt(in)) or peft (b = 1/sqrt(in/H)). B starts at 0.",
        choices=INITS,
        only={"adapter": ("lora",)},
    )
    share: str | None = setting(
        None,
        """Projection of which there is one for all skills: none, up (factor B) or down (factor A). For methods that take the two
        separately. Unset, as published: up where they are drawn (adamix), down of hydra and of recurrent adapters.""",
        choices=SHARES,
        switches={"--share-up": "up", "--share-down": "down", "--share-none": "none"},
        words=("none",),
        of_method=True,
    )
    norm: bool | None = setting(
        None,
        """A layer norm behind the up projection of a bottleneck. Its scale and shift are routed with it: y = h + LN(up(gelu(down(h)))).
        Unset, as published: of hyperformer and hyperformer++.""",
        of_method=True,
    )
    router: dict[str, Any] = setting(
        {},
        """Settings of the routing method's own, by their names; most methods have none. `RoutingMethod.settings` declares them; in
        a file they are `adapter: {router: {hidden: 64}}`, on the command line `--set adapter.router.hidden=64`.""",
        of_method=True,
    )

    def __post_init__(self) -> None:
        routing = ROUTING_METHODS.get(self.method)
        if routing is not None and self.n_heads is None:
            self.n_heads = routing.n_heads
        if routing is not None and self.n_skills is None and not routing.skill_per_task:
            self.n_skills = routing.n_skills
        if self.share is None:
            shared = "down" if self.recurrent else routing is not None and self.adapter in RANKED and routing.share
            self.share = shared or "none"
        if self.norm is None:
            self.norm = routing is not None and self.adapter == "bottleneck" and routing.norm
        super().__post_init__()
        routing = self.routing
        self._check_router()
        if routing.one_head and self.n_heads != 1:
            raise ConfigError(f"n_heads is {self.n_heads}, but {self.method} has 1 head: {_with_more('one_head')}")
        if routing.one_skill and self.n_skills != 1:
            raise ConfigError(f"n_skills is {self.n_skills}, but {self.method} has 1 skill: {_with_more('one_skill')}")
        if routing.skill_per_task and self.n_skills is not None:
            raise ConfigError(f"n_skills is {self.n_skills}, but {self.method} has one skill per task: leave it out")
        if routing.by_token:
            self._check_by_token()
        if self.dropout and self.adapter != "lora":
            raise ConfigError(
                f"dropout is {self.dropout}, which is for lora, but adapter is {self.adapter!r}: leave it out"
            )
        if routing.transforms and self.adapter != "lora":
            raise ConfigError(
                f"adapter is {self.adapter!r}, but method {self.method!r} has a matrix between the two factors of a lora: set adapter to "
                "'lora'"
            )
        if self.norm and self.adapter != "bottleneck":
            raise ConfigError(f"norm is true, which is for bottlenecks, but adapter is {self.adapter!r}: leave it out")
        if self.adapter in VIRTUAL:
            self._check_virtual()
        if self.adapter == "gated":
            self._check_gated()
        if not routing.convex and self.adapter == "ia3":
            raise ConfigError(
                f"adapter is 'ia3', but method {self.method!r} takes sums of skills, and scalings by 1 have none: set adapter to 'film', "
                "'lora' or 'bottleneck'"
            )
        if not routing.convex and self.parts is not None:
            raise ConfigError(
                f"parts is {self.parts}, which method {self.method!r} generates no LoRAs for: leave it out"
            )
        self._check_parts()
        if self.recurrent:
            self._check_recurrent()
        elif self.share != "none" and (routing.share is None or self.adapter not in RANKED):
            sharing = " or ".join(name for name, row in ROUTING_METHODS.items() if row.share is not None)
            raise ConfigError(
                f"share is {self.share!r}, but {self.method} routes {self.adapter} as a whole: only {sharing} takes the two "
                "projections of a lora or bottleneck separately"
            )
        for name, idle in (("noise", "off"), ("straight_through", False)):
            value = getattr(self, name)
            if value != idle and not routing.noisy:
                lacks = "logits in its routing" if routing.learned else "learned routing"
                raise ConfigError(
                    f"{name} is {value!r}, but method {self.method!r} has no {lacks}: set {name} to {idle!r}"
                )

    @property
    def routing(self) -> RoutingMethod:
        """What the routing method is: its row of `mhr.methods.ROUTING_METHODS`."""
        return ROUTING_METHODS[self.method]

    def own_settings(self) -> Any:
        """The settings of the routing method's own, as an object of `RoutingMethod.settings`; None where it has none."""
        return None if self.routing.settings is None else self.routing.settings(**self.router)

    @property
    def has_rows(self) -> bool:
        """Whether each task has a row of its own that is trained with the bank: of routing logits, or a context where these are learnt."""
        return self.routing.learned and not (self.routing.contexts and self.own_settings().embedded)

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def recurrent(self) -> bool:
        """Whether adapters hand a state from layer to layer."""
        return self.adapter == "recurrent"

    @property
    def tied(self) -> bool:
        """Whether layers of one shape share a bank: by the method, or by the kind of adapter."""
        return self.routing.tied or self.recurrent

    def in_common(self, name: str) -> bool:
        """Whether all skills have the parameter `name` of a bank in common (`share`)."""
        side = {"up": "_b", "down": "_a"}.get(self.share or "none")
        return side is not None and name.endswith(side)

    def skills_for(self, n_tasks: int) -> int:
        """Skills in the bank when it serves `n_tasks` tasks."""
        return n_tasks if self.n_skills is None else self.n_skills

    def _check_virtual(self) -> None:
        if self.routing.drawn:
            raise ConfigError(
                f"adapter is {self.adapter!r}, but method {self.method!r} draws projections, which virtual tokens have none of: choose "
                "another method"
            )

    def _check_gated(self) -> None:
        """Its skills are whole: their gates stand between no two factors, and directions have none."""
        routing = self.routing
        why = "draws projections" if routing.drawn else "routes one of two projections" if self.share != "none" else ""
        why = why or ("" if routing.convex else "generates adapters")
        if why:
            raise ConfigError(
                f"adapter is 'gated', but method {self.method!r} {why}, which do not go with gates: choose another method"
            )

    def size_of(self, part: str) -> int:
        """Of a part of gated adapters (lora, bottleneck or prefix) the rank, the hidden units or the virtual tokens."""
        return {
            "lora": self.rank,
            "bottleneck": self.rank if self.width is None else self.width,
            "prefix": self.virtual_tokens,
        }[part]

    @property
    def prepended(self) -> int:
        """Virtual tokens in front of what the model reads; 0 for adapters that act on layers."""
        return self.virtual_tokens if self.adapter in VIRTUAL else 0

    def _check_by_token(self) -> None:
        if self.adapter not in self.routing.over:
            raise ConfigError(
                f"adapter is {self.adapter!r}, but method {self.method!r} routes each token over finished adapters of kind "
                f"{' or '.join(map(repr, self.routing.over))}"
            )
        for name, fixed in (("granularity", "fine"), ("dropout", 0.0)):
            if getattr(self, name) != fixed:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, but method {self.method!r} routes each token over finished LoRAs, layer by layer: "
                    f"expected {fixed!r}"
                )

    def _check_recurrent(self) -> None:
        """One controller and, for each task, one head serve all layers."""
        if self.share != "down":
            raise ConfigError(
                f"share is {self.share!r}, but the skills of a recurrent adapter share their controller: leave it out"
            )
        if not self.routing.convex:
            raise ConfigError(
                f"adapter is 'recurrent', but method {self.method!r} generates adapters, and the heads of those are trained: set adapter to "
                "'bottleneck', or choose another method"
            )
        routed = "granularity" not in self.routing.unused
        if routed and self.granularity not in ("coder", "coarse"):
            raise ConfigError(
                f"granularity is {self.granularity!r}, but a recurrent adapter has the same head in all layers: set granularity to 'coarse', "
                "or to 'coder'"
            )

    def _check_parts(self) -> None:
        if self.parts is None:
            return
        if self.adapter != "lora":
            raise ConfigError(
                f"parts is {self.parts}, which is for lora, but adapter is {self.adapter!r}: leave it out"
            )
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ConfigError(f"parts is {self.parts}: expected each part once, and at least one")
        if self.rank % len(self.parts):
            raise ConfigError(f"parts is {self.parts}, and rank {self.rank} does not divide by their number")

    def _check_router(self) -> None:
        """Check the settings of the routing method's own, and fill in their defaults."""
        own = self.routing.settings
        if own is None:
            if self.router:
                raise ConfigError(
                    f"router is {self.router!r}, but method {self.method!r} has no settings of its own: leave it out"
                )
            return
        types = {name: hint for name, (hint, _) in settings_of(own).items()}
        values = {}
        for name, value in self.router.items():
            try:
                values[name] = convert(value, types[name]) if name in types else value
            except ValueError:
                raise ConfigError(f"router.{name} is {value!r}, expected {expected(types[name])}") from None
        try:
            settings = own.from_dict(values, f"setting of method {self.method!r}")
            self.router = settings.to_dict()
        except ConfigError as error:
            dot = "." if str(error).partition(" ")[0] in values else ": "
            raise ConfigError(f"router{dot}{error}") from None
        if isinstance(settings, SharedHeadsSettings):
            settings.check_heads(self.n_heads or 1)

    def to_dict(self) -> dict[str, Any]:
        """Every setting; those of the routing method's own where it has any."""
        values = super().to_dict()
        if not values["router"]:
            del values["router"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "adapter setting") -> AdapterConfig:
        """The configuration with these settings. An unknown one is an error that names the nearest known one."""
        return super().from_dict(values, what)


def _with_more(restriction: str) -> str:
    """Methods without a restriction of theirs to one head or skill, as a way on."""
    names = [name for name, row in ROUTING_METHODS.items() if not getattr(row, restriction) and not row.skill_per_task]
    return f"leave it out, or use method {', '.join(map(repr, names[:-1]))} or {names[-1]!r}"
