"""The table of methods: how a bank routes, what a user trains by which name, and how a run is adapted.

Three tables, each of the one before it:

    ROUTING_METHODS   how tasks are routed over a bank        `AdapterConfig.method`, and the name of a router
    METHODS           what `mhr pretrain --method` trains     a routing method with a kind of adapter, or all weights
    MODES             how `mhr adapt --mode` goes on from it  what it loads and trains; `refusal` says where it cannot

The command line's help, the names in reports and every decision that depends on a method are made of these rows; no other
module names one. A new routing method is a row of the first two and a class in `mhr/routing/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mhr.method_settings.contexts import ContextSettings, HyperSettings, PhaSettings
from mhr.method_settings.generative_adapter import GenerativeSettings
from mhr.method_settings.hydra import HydraSettings, MtlLoraSettings
from mhr.method_settings.shared_heads import SharedHeadsSettings
from mhr.method_settings.tokens import TokenSettings
from mhr.setting import Settings


@dataclass(frozen=True, slots=True)
class RoutingMethod:
    """How tasks are routed over the skills of a bank.

    summary         one line for help and docs
    n_heads         heads of a bank unless `AdapterConfig.n_heads` says otherwise; with one_head there can be no more
    n_skills        skills likewise; with one_skill there can be no more. skill_per_task: skill s is task s's own, and their number
                    is that of the tasks
    learned         whether the router has parameters that are trained
    noisy           whether it takes noise, temperature and straight_through: it is made of logits
    drawn           whether skills are drawn at random in training, and averaged only otherwise
    contexts        whether routing is computed from contexts of tasks (`mhr.routing.contexts`), its own settings a ContextSettings
    gates           whether what tokens choose by is trained, by mhr route, when the LoRAs are finished
    joint           whether that is trained on all tasks together, and not for each LoRA on its own task
    gate_lr         the rate that it is trained at unless `RouteConfig.lr` says otherwise
    over            kinds of finished adapters that tokens choose among
    by_token        whether each token is routed by itself, by what the layer reads (`mhr.routing.tokens`): such a bank is made of LoRAs that
                    are trained already, and is no one adapter for any task
    share           the projection that all skills have in common, unless `AdapterConfig.share` says otherwise; None where they never do
    transforms      whether each task has a matrix [R, R] of its own between factors A and B (`Router.transform`), which makes the method one
                    for LoRAs
    convex          whether weights are shares, at least 0 and together 1, so that skills are adapters with an average; otherwise they are any
                    numbers, and skills are what `skills_are` says
    tied            whether layers of one shape share a bank (`mhr.layers.tied`)
    norm            whether bottlenecks have a layer norm, unless `AdapterConfig.norm` says otherwise
    needs_tasks     whether tasks are routed differently; if not, a model may be called without task ids
    all_rows        whether each step trains what all tasks have of their own, drawn or not
    unused          settings of a bank that change nothing with it, beside those that follow from the above (`idle`)
    settings        settings of its own (`mhr.setting`): the keys of `AdapterConfig.router`, and `Router.settings` to the router
    """

    name: str
    summary: str
    n_heads: int = 1
    one_head: bool = False
    n_skills: int = 8
    one_skill: bool = False
    skill_per_task: bool = False
    learned: bool = False
    noisy: bool = False
    drawn: bool = False
    contexts: bool = False
    gates: bool = False
    joint: bool = False
    gate_lr: float = 5e-3
    over: tuple[str, ...] = ("lora",)
    by_token: bool = False
    share: str | None = None
    transforms: bool = False
    convex: bool = True
    tied: bool = False
    norm: bool = False
    needs_tasks: bool = True
    all_rows: bool = False
    unused: tuple[str, ...] = ()
    settings: type[Settings] | None = None

    @property
    def one_adapter(self) -> bool:
        """Whether what is trained is one adapter for all tasks, or its copies."""
        return self.one_skill and self.convex or self.drawn

    @property
    def skills_are(self) -> str:
        """What skills are where they are no adapters (not `convex`), in words."""
        return (
            "factors that a task's matrix stands between" if self.transforms else "directions that tasks take sums of"
        )

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings, by their names without section, that change nothing with it."""
        follow = {
            "temperature": self.noisy,
            "router_lr": self.learned,
            "router_weight_decay": self.learned,
            "share": self.share is not None,
            "lazy_rows": (self.learned or self.skill_per_task) and not self.by_token and not self.all_rows,
        }
        return (*self.unused, *(name for name, used in follow.items() if not used))


@dataclass(frozen=True, slots=True)
class Method:
    """What a run trains, by the name that a user gives it.

    title     its name in reports
    summary   one line for help
    routing   key of ROUTING_METHODS; None trains all weights, without an adapter
    adapter   the kind of adapter that it fixes; None leaves that to `AdapterConfig.adapter`
    targets   the layers that it fixes likewise
    """

    name: str
    title: str
    summary: str
    routing: str | None
    adapter: str | None = None
    targets: str | None = None

    @property
    def fixed(self) -> dict[str, str]:
        """The fields of AdapterConfig that it fixes."""
        found = {"method": self.routing, "adapter": self.adapter, "targets": self.targets}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def task_heads(self) -> bool:
        """Whether each task has a skill of its own that reads what all tasks share, a controller: all that a new task needs."""
        return self.adapter == "recurrent" and self.routing is not None and ROUTING_METHODS[self.routing].skill_per_task


BANK, AVERAGE, ONE, FRESH, BACKBONE = "bank", "average", "one", "fresh", "backbone"


@dataclass(frozen=True, slots=True)
class Mode:
    """How a run is adapted to a new task.

    summary         one line for help
    suffix          what it adds to a method's title in reports
    begins          BANK (the run's, with a fresh row for the task), AVERAGE (its skills' average, one plain adapter), ONE (the one
                    adapter that the run trained), FRESH (a new bank with the run's settings) or BACKBONE
    searches        whether it trains nothing, and finds weights of the run's LoRAs by a search on the shots
    trains_skills   whether the adapter (or, from BACKBONE, the model) is trained; trains_routing: whether a row of routing is; trains_head:
                    whether of the adapter the task's own head is, and nothing else (`Method.task_heads`)
    """

    name: str
    summary: str
    suffix: str
    begins: str
    trains_skills: bool = True
    trains_routing: bool = False
    trains_head: bool = False
    searches: bool = False

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings of training that change nothing: a grid leaves them as they are."""
        follow = {
            "lr": self.trains_skills or self.trains_head,
            "router_lr": self.trains_routing,
            "full_lr": self.begins == BACKBONE,
            **dict.fromkeys(("warmup", "scheduler", "scale_parameter"), not self.searches),
        }
        return tuple(name for name, used in follow.items() if not used)


SHARED = "shared"
"""The routing method of one adapter for all tasks, which every merge yields."""

WHOLE = "full"
"""The method, and the mode, without an adapter."""

PRIVATE, UNIFORM, DRAWN = "private", "uniform", "adamix"
"""The routing methods of one adapter a task, of the average of all, and of AdaMix: what banks that others trained are taken for."""

GENERATED = "context-mhr"
"""The routing method that computes such rows of logits as others learn from contexts."""

UNROUTED = ("n_heads", "granularity")
"""Settings that change nothing where every head of every layer has the same weights."""

ROUTING_METHODS = {
    row.name: row
    for row in (
        RoutingMethod("mhr", "learned for each task and head", n_heads=8, learned=True, noisy=True),
        RoutingMethod("poly", "learned for each task, with one head", one_head=True, learned=True, noisy=True),
        RoutingMethod(
            "context-mhr",
            "computed for each head from a context of the task",
            n_heads=8,
            learned=True,
            noisy=True,
            contexts=True,
            settings=ContextSettings,
        ),
        RoutingMethod(
            "hydra",
            "learned for each task over factors B, with one factor A",
            learned=True,
            share="down",
            settings=HydraSettings,
        ),
        RoutingMethod(
            "mtl-lora",
            "as hydra, with a matrix of each task's own between the factors",
            learned=True,
            share="down",
            transforms=True,
            settings=MtlLoraSettings,
        ),
        RoutingMethod(
            "shared-heads",
            "learned for each task in some heads, and the same for all tasks in the others",
            n_heads=8,
            learned=True,
            settings=SharedHeadsSettings,
        ),
        RoutingMethod(
            "hyperformer",
            "adapters generated from a vector of the task, in each layer by a generator of its own",
            one_head=True,
            n_skills=64,
            learned=True,
            contexts=True,
            convex=False,
            norm=True,
            unused=("granularity",),
            settings=HyperSettings,
        ),
        RoutingMethod(
            "hyperformer++",
            "adapters generated from vectors of the task and of the layer, by one generator for all layers of a shape",
            one_head=True,
            n_skills=64,
            learned=True,
            contexts=True,
            convex=False,
            tied=True,
            norm=True,
            unused=("granularity",),
            settings=HyperSettings,
        ),
        RoutingMethod(
            "pha",
            "adapters generated as by hyperformer++, from prototypes of tasks that examples of a new task find",
            one_head=True,
            n_skills=64,
            learned=True,
            contexts=True,
            convex=False,
            tied=True,
            all_rows=True,
            unused=("granularity",),
            settings=PhaSettings,
        ),
        RoutingMethod(
            "generative-adapter",
            "one adapter for all tasks with a matrix between its factors, which hidden states of a task's shots generate",
            one_head=True,
            n_skills=1,
            one_skill=True,
            learned=True,
            contexts=True,
            transforms=True,
            convex=False,
            settings=GenerativeSettings,
        ),
        RoutingMethod(
            SHARED, "one adapter for all tasks", n_skills=1, one_skill=True, needs_tasks=False, unused=UNROUTED
        ),
        RoutingMethod("private", "one adapter for each task", skill_per_task=True, unused=UNROUTED),
        RoutingMethod("uniform", "uniform weights 1/S", needs_tasks=False, unused=UNROUTED),
        RoutingMethod("random", "drawn once, fixed"),
        RoutingMethod("hash", "fixed by the task's name", unused=("granularity",)),
        RoutingMethod(
            "adamix",
            "a skill drawn at random for each training pass, their average otherwise",
            one_head=True,
            n_skills=4,
            drawn=True,
            share="up",
            needs_tasks=False,
        ),
        RoutingMethod(
            "arrow",
            "each token by the LoRAs' strongest input directions, by mhr route and without training",
            one_head=True,
            skill_per_task=True,
            by_token=True,
            needs_tasks=False,
            unused=UNROUTED,
            settings=TokenSettings,
        ),
        RoutingMethod(
            "phatgoose",
            "each token by gates of the LoRAs, trained by mhr route",
            one_head=True,
            skill_per_task=True,
            gates=True,
            by_token=True,
            needs_tasks=False,
            unused=UNROUTED,
            settings=TokenSettings,
        ),
        RoutingMethod(
            "adapter-fusion",
            "each token attends to what all adapters make of it, by matrices trained by mhr route",
            one_head=True,
            skill_per_task=True,
            learned=True,
            gates=True,
            joint=True,
            gate_lr=1e-4,
            over=("lora", "bottleneck"),
            by_token=True,
            needs_tasks=False,
            unused=UNROUTED,
        ),
    )
}

METHODS = {
    row.name: row
    for row in (
        Method("mhr", "MHR", "routing learned per task and head, the default", "mhr"),
        Method("poly", "Poly", "one head", "poly"),
        Method("context-mhr", "Context-MHR", "routing from a task's definition or shots, new tasks too", "context-mhr"),
        Method("hydra", "HydraLoRA", "one factor A and several B, weighed by task", "hydra", "lora"),
        Method(
            "mtl-lora", "MTL-LoRA", "the same, with a matrix of each task's own between the factors", "mtl-lora", "lora"
        ),
        Method("shared-heads", "Shared heads", "some heads routed by task, the others alike for all", "shared-heads"),
        Method(
            "hyperformer", "HyperFormer", "bottlenecks generated from a vector of the task", "hyperformer", "bottleneck"
        ),
        Method(
            "hyperformer++",
            "HyperFormer++",
            "the same, with one generator for all layers",
            "hyperformer++",
            "bottleneck",
        ),
        Method(
            "hyper-lora", "HyperLoRA", "LoRAs generated so, with one generator for all layers", "hyperformer++", "lora"
        ),
        Method(
            "pha", "PHA", "bottlenecks generated from prototypes, which examples of new tasks find", "pha", "bottleneck"
        ),
        Method(
            "generative-adapter",
            "GenerativeAdapter",
            "LoRAs generated from a task's shots in one forward pass",
            "generative-adapter",
            "lora",
        ),
        Method("lora", "shared LoRA", "one for all tasks", SHARED, "lora"),
        Method("private", "private LoRA", "one per task", "private"),
        Method("ia3", "IA3", "one for all tasks", SHARED, "ia3"),
        Method("film", "FiLM", "one scale and shift per task", "private", "film"),
        Method(
            "hra", "HRA", "one recurrent controller for all layers and tasks, one head per task", "private", "recurrent"
        ),
        Method("poly-ia3", "Poly-IA3", "one head", "poly", "ia3"),
        Method("bitfit", "BitFit", "biases, one set for all tasks", SHARED, "bias"),
        Method("bottleneck", "shared bottleneck", "one for all tasks", SHARED, "bottleneck"),
        Method("houlsby", "Houlsby", "two in each block, one for all tasks", SHARED, "bottleneck", targets="outputs"),
        Method(
            "prompt-tuning",
            "prompt tuning",
            "virtual tokens before the input, the same for all tasks",
            SHARED,
            "prompt",
        ),
        Method("prefix-tuning", "prefix tuning", "virtual keys and values in the decoder, likewise", SHARED, "prefix"),
        Method(
            "unipelt", "UniPELT", "a LoRA, a bottleneck and a prefix in each block, each with a gate", SHARED, "gated"
        ),
        Method("adamix", "AdaMix", "bottlenecks, one drawn at random for each pass", "adamix", "bottleneck"),
        Method("adamix-lora", "AdaMix-LoRA", "the same of LoRAs", "adamix", "lora"),
        Method("arrow", "Arrow", "finished LoRAs, chosen token by token: mhr route", "arrow", "lora"),
        Method("phatgoose", "PHATGOOSE", "the same by gates that are trained for each: mhr route", "phatgoose", "lora"),
        Method(
            "adapter-fusion",
            "AdapterFusion",
            "attention of each token over finished adapters: mhr route",
            "adapter-fusion",
        ),
        Method("random", "random routing", "routing drawn once and fixed", "random"),
        Method("uniform", "uniform routing", "uniform weights 1/S", "uniform"),
        Method("hash", "hash routing", "routing fixed by the task's name", "hash"),
        Method(WHOLE, "full fine-tuning", "all weights, no adapter", None),
    )
}

BY_TOKEN = {name: row for name, row in ROUTING_METHODS.items() if row.by_token}
"""Routing methods that choose among finished LoRAs, token by token."""

MODES = {
    row.name: row
    for row in (
        Mode("mhr", "the bank and a new routing row", "", BANK, trains_routing=True),
        Mode("z", "the routing row alone", "-z", BANK, trains_skills=False, trains_routing=True),
        Mode("head", "the task's head alone, of hra", "-head", BANK, trains_skills=False, trains_head=True),
        Mode("mu", "the bank's average, one plain adapter", "-mu", AVERAGE),
        Mode("lora", "the one adapter of a run that trained one for all tasks", "", ONE),
        Mode(
            "lorahub",
            "weights of the run's LoRAs, searched without gradients",
            "-LoraHub",
            AVERAGE,
            trains_skills=False,
            searches=True,
        ),
        Mode(WHOLE, "all weights of the backbone", ", all weights", BACKBONE),
        Mode("random", "a fresh bank and routing row", ", fresh bank", FRESH, trains_routing=True),
    )
}

MODE_ALIASES = {"poly": "mhr"}
"""Other names of modes."""


def listed(rows: Mapping[str, RoutingMethod] | Mapping[str, Method] | Mapping[str, Mode]) -> str:
    """The rows of a table for help: "mhr (routing ...), poly (one head), ..."."""
    return ", ".join(f"{name} ({row.summary})" for name, row in rows.items())


def title_of(method: str, mode: str | None = None) -> str:
    """What reports call a method, or an adaptation in a mode; a name that no table has stays as it is."""
    title = METHODS[method].title if method in METHODS else method
    return title + (MODES[mode].suffix if mode in MODES else "")


def learned_routing(n_heads: int) -> str:
    """The routing method that learns a row of logits for each task, with this many heads."""
    return "mhr" if n_heads > 1 else "poly"


def method_of(routing: str, adapter: str) -> str:
    """What a user calls a routing method with a kind of adapter on any layers: the row of METHODS that trains that, the most particular
    one."""
    anywhere = [row for row in METHODS.values() if row.targets is None]
    rows = [row for row in anywhere if row.routing == routing and row.adapter in (adapter, None)]
    return max(rows, key=lambda row: row.adapter is not None).name


def refusal(mode: str, method: str, averaged: bool) -> str | None:
    """Why a run of a method cannot be adapted in a mode; None where it can. averaged: it ended as the average of its skills."""
    asked, routed = MODES[mode], METHODS[method].routing
    if routed is None:
        return None if asked.begins == BACKBONE else f"it trained all weights and has no adapter: use mode {WHOLE!r}"
    routing = ROUTING_METHODS[routed]
    if asked.begins in (AVERAGE, ONE) and not routing.convex:
        return f"its skills are {routing.skills_are}, and have no average: use mode 'mhr' or 'z'"
    if asked.searches and (averaged or routing.one_skill):
        return "it has one adapter, which leaves nothing to weigh: use mode 'lora'"
    if routing.by_token and asked.begins in (BANK, ONE, FRESH):
        return "it routes each token by itself over finished LoRAs: adapt the run that trained them, or use mode 'lorahub', or 'mu' for their average"
    if asked.begins == ONE and not (averaged or routing.one_adapter):
        bank = ", or 'mhr'" if refusal("mhr", method, averaged=averaged) is None else ""
        return f"its adapter is not shared by all tasks: use mode 'mu' for its average{bank}"
    if asked.begins != BANK:
        return None
    if averaged:
        return "it ended as the average of its skills, so there is nothing to route: use mode 'lora' or 'mu'"
    heads = METHODS[method].task_heads
    if asked.trains_head and not heads:
        having = " or ".join(name for name, row in METHODS.items() if row.task_heads)
        allowed = [name for name in ("mhr", "z", "mu") if refusal(name, method, averaged=averaged) is None]
        use = f": use mode {' or '.join(map(repr, allowed))}" if allowed else ""
        return f"its tasks have no heads over a common controller, as those of {having} have{use}"
    if not (asked.trains_skills or asked.trains_head or routing.learned):
        return "its routing is not learned, so there is no row to train" + (": use mode 'head'" if heads else "")
    if routing.skill_per_task and not heads:
        return "its tasks have adapters of their own and nothing for a new task: use mode 'mu' or 'random'"
    return None


def predicts_rows(method: str) -> bool:
    """Whether the rows of a method are the logits that `GENERATED` computes."""
    routed = METHODS[method].routing
    return routed is not None and ROUTING_METHODS[routed].noisy and not ROUTING_METHODS[routed].contexts


def idle_rates(mode: str, method: str) -> tuple[str, ...]:
    """Those of `idle_settings` that are the learning rates of adapters and of routing, `lr` and `router_lr`."""
    return tuple(name for name in idle_settings(mode, method) if name in ("lr", "router_lr"))


def idle_settings(mode: str, method: str) -> tuple[str, ...]:
    """Settings of training that change nothing where a run of a method is adapted in a mode."""
    routed = METHODS[method].routing
    learned = routed is not None and ROUTING_METHODS[routed].learned
    return tuple(dict.fromkeys([*MODES[mode].idle, *([] if learned else ["router_lr"])]))
