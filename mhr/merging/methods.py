"""What a merge is asked for, told once and without torch: the methods with their settings, and what holds of every merge.

A method is a row of MERGE_METHODS and a function: `combines(name)` of `mhr.merging.combination` makes one of several adapters,
`merge_methods.register(name)` of the same module one within a bank. The keywords of `mhr.merging.merge`, the flags of
`mhr merge` and the errors of both are made of what stands here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mhr.errors import ConfigError
from mhr.setting import Setting, Settings, setting, settings_of

SPACES = ("factor", "delta")
"""What is merged: the tensors of the adapters as they are, or the weight updates that LoRA factors stand for."""

POLY_FORM = "peft-poly"
PEFT_FORM = "peft-lora"
FORMS = ("mhr", PEFT_FORM, POLY_FORM, "model")
"""What a merge can write: an adapter checkpoint of ours, a PEFT folder, a whole bank with its routing as a PEFT Poly folder, or a whole
plain transformers model."""

EACH_FORMS = ("mhr", PEFT_FORM)
"""Those that one adapter for each task can have."""

AVERAGE = "average"
"""Folder of the average of a bank's skills beside those of its tasks."""

STORED_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass
class NoSettings(Settings):
    """Those of a method that has none."""


@dataclass
class ScaleSettings(Settings):
    scale: float = setting(1.0, "What the merged update is multiplied by (lambda).", above=0)


@dataclass
class DareSettings(Settings):
    drop: float = setting(0.9, "Drop rate, the fraction of elements set to 0 at random.", at_least=0, below=1)
    seed: int = setting(0, "Seed of the draws.", at_least=0)


@dataclass
class ScaledDareSettings(DareSettings, ScaleSettings):
    """Those of both."""


@dataclass
class DellaSettings(ScaledDareSettings):
    epsilon: float = setting(
        0.1,
        "Width of the drop rates: from drop + epsilon / 2 for the smallest magnitude to drop - epsilon / 2 for the largest.",
        at_least=0,
        below=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.epsilon / 2 <= self.drop and self.drop + self.epsilon / 2 < 1):
            raise ConfigError(
                f"drop is {self.drop:g} and epsilon {self.epsilon:g}, so drop rates go from {self.drop - self.epsilon / 2:g} to "
                f"{self.drop + self.epsilon / 2:g}: expected at least 0 and below 1; choose a smaller --epsilon"
            )


@dataclass
class ExampleSettings(Settings):
    examples: int = setting(64, "Examples of each input's task that are looked at.", at_least=1)


@dataclass
class TrackSettings(Settings):
    tracks: int | None = setting(
        None,
        "Groups of inputs most alike (cosine of their updates) that are merged first, and then with one another. Unset: one group.",
        at_least=1,
    )


@dataclass
class DensitySettings(Settings):
    density: float = setting(0.2, "The fraction of each tensor's elements that is kept.", above=0, at_most=1)


@dataclass
class TrimSettings(DensitySettings, ScaleSettings):
    """Those of both."""


@dataclass
class SearchSettings(Settings):
    tries: int = setting(40, "Weights that are tried, each on all dev examples.", at_least=1)
    seed: int = setting(0, "Seed of the draws.", at_least=0)


@dataclass
class BreadcrumbSettings(TrimSettings):
    gamma: float = setting(
        0.01, "The fraction of each tensor's elements that is dropped for being the largest.", at_least=0, below=1
    )


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A way to merge.

    summary     for help
    spaces      of SPACES that it merges several inputs in, the default first; none: it merges within one bank alone
    weights     whether a user gives weights of several inputs: "none" (they are equal), "optional" or "needed"
    settings    its own
    n_inputs    how many inputs it merges; None: any number
    sparsifier  what thins out each input first, a key of `mhr.merging.sparsifiers.SPARSIFIERS`; None: nothing does
    consensus   how what is left becomes one, "sum", "mean" or "sign" (`mhr.merging.task_vectors`); None: by a function of its own
    """

    name: str
    summary: str
    spaces: tuple[str, ...]
    weights: str = "none"
    settings: type[Settings] = NoSettings
    n_inputs: int | None = None
    sparsifier: str | None = None
    consensus: str | None = None

    @property
    def sums(self) -> bool:
        """Whether weights are factors as they are given, 1 each unless they are, and not shares of an average."""
        return self.consensus == "sum"


BOTH, UPDATES = ("delta", "factor"), ("delta",)

_TASK_VECTORS = (
    MergeMethod("task_arithmetic", "sums", UPDATES, "optional", ScaleSettings, None, None, "sum"),
    MergeMethod("magnitude_prune", "trims, sums", UPDATES, "optional", TrimSettings, None, "magnitude", "sum"),
    MergeMethod("ties", "trims, elects signs", BOTH, "optional", TrimSettings, None, "magnitude", "sign"),
    MergeMethod("dare", "drops elements at random, averages", BOTH, "optional", DareSettings, None, "random", "mean"),
    MergeMethod("dare_linear", "the same, sums", UPDATES, "optional", ScaledDareSettings, None, "random", "sum"),
    MergeMethod("dare_ties", "the same, elects signs", BOTH, "optional", ScaledDareSettings, None, "random", "sign"),
    MergeMethod(
        "della_linear", "drops small ones more often, sums", UPDATES, "optional", DellaSettings, None, "rank", "sum"
    ),
    MergeMethod("della", "the same, elects signs", BOTH, "optional", DellaSettings, None, "rank", "sign"),
    MergeMethod(
        "breadcrumbs", "trims both ends, sums", UPDATES, "optional", BreadcrumbSettings, None, "both-ends", "sum"
    ),
    MergeMethod(
        "breadcrumbs_ties", "the same, elects signs", BOTH, "optional", BreadcrumbSettings, None, "both-ends", "sign"
    ),
)
"""Sparsifier x consensus: the same functions in other pairs (`mhr.merging.task_vectors`). The mean of a sum is its --scale 1/K."""

MERGE_METHODS = {
    row.name: row
    for row in (
        MergeMethod("uniform", "the average; of one bank MHR-mu", ("factor", "delta")),
        MergeMethod("weighted", "by --weights", ("factor", "delta"), "needed"),
        MergeMethod("task", "the mixture of one task of one bank, exactly", ()),
        MergeMethod("soup-uniform", "the average, also of whole banks", ("factor", "delta")),
        MergeMethod("soup-greedy", "adds what improves the dev score", ("factor", "delta")),
        MergeMethod("fisher", "by Fisher information", ("factor",), "optional", ExampleSettings),
        MergeMethod("search", "by the dev score", ("factor", "delta"), "optional", SearchSettings),
        *_TASK_VECTORS,
        MergeMethod("sce", "selects by variance", BOTH, settings=DensitySettings),
        MergeMethod("model_stock", "by angles", UPDATES),
        MergeMethod("slerp", "of two, by angle", UPDATES, "optional", n_inputs=2),
        MergeMethod("mera", "aligns hidden units first", ("factor",), "optional", TrackSettings),
        MergeMethod("mera-activations", "by what they do", ("factor",), "optional", ExampleSettings),
    )
}


def _told(row: MergeMethod) -> str:
    """A row in help; of sparsifier x consensus the name alone, for these are many."""
    return row.name if row.consensus is not None else f"{row.name} ({row.summary})"


@dataclass
class MergeConfig(Settings):
    """What is asked of a merge, whatever its method, see `mhr.merging.merge`."""

    method: str | None = setting(
        None,
        f"""How inputs become one: {", ".join(_told(row) for row in MERGE_METHODS.values())}. Unset: task for a bank with one task, otherwise
        uniform.""",
        flag="--method",
    )
    task: list[str] | None = setting(
        None,
        """Task of an input: whose mixture is taken from a bank, or that an adapter was trained for. Once for all
        inputs, or once for each; several for one bank merge its mixtures.""",
        flag="--task",
        metavar="NAME,...",
        repeated=True,
    )
    weights: dict[str, float] | list[float] | None = setting(
        None,
        """Weights of the inputs in their order, as in 0.7,0.3, or by their names or tasks, as in a=0.7,b=0.3. Of one bank those of
        its tasks, or of all its skills in order. Divided by their sum, save in sums (--method task_arithmetic and the like), where they
        are factors as they are, of any sign.""",
        flag="--weights",
        metavar="NAME=W,...",
    )
    space: str | None = setting(
        None,
        """factor (merge the low-rank factors as they are) or delta (merge their products, and factor the result again). Unset:
        delta for sparsifiers, sign election, angles, otherwise factor.""",
        choices=SPACES,
        flag="--space",
    )
    rank: int | None = setting(
        None,
        "Rank of the factors after --space delta. Unset: the largest of the inputs.",
        at_least=1,
        flag="--rank",
    )
    rank_energy: float | None = setting(
        None,
        """With --space delta: of each layer the least rank that keeps this share of the squared Frobenius norm of the merged update, as in
        0.95, up to --rank.""",
        above=0,
        at_most=1,
        flag="--rank-energy",
    )
    to: str = setting(
        "mhr",
        """mhr (an adapter for this library), peft-lora (a folder that PEFT loads), peft-poly (a whole bank of Poly or MHR, its routing
        included, that PEFT loads) or model (folded into the base weights: a plain transformers model).""",
        choices=FORMS,
        flag="--to",
        metavar="FORM",
    )
    dtype: str | None = setting(
        None,
        f"Of the tensors written: {', '.join(STORED_DTYPES)}. Unset: as the adapter is; with --to model as the base model is.",
        choices=STORED_DTYPES,
        flag="--dtype",
    )
    evaluate: bool = setting(False, "Score the inputs and the merged adapter on the test examples.", flag="--evaluate")
    dev_tasks: list[str] | None = setting(
        None,
        """Tasks of the collection to score on, for soup-greedy, search, fisher, mera-activations and --evaluate. Unset: the tasks that the inputs stand for,
        otherwise the held-out ones.""",
        flag="--dev-task",
        metavar="NAME,...",
        repeated=True,
    )
    split: str = setting(
        "train",
        "Dev examples of soup-greedy and search: train, without those that a run adapted on, or test.",
        choices=("train", "test"),
        flag="--split",
    )
    each_task: bool = setting(
        False,
        """One adapter for each task of one bank, in a folder each, with an index.json; exact. The same command goes on after an
        interruption.""",
        flag="--each-task",
    )
    with_average: bool = setting(
        False,
        f"With --each-task: also the average of the bank's skills (MHR-mu), in the folder {AVERAGE}.",
        flag="--with-average",
    )
    rank_multiple: int | None = setting(
        None,
        """With --to peft-lora: fill the rank up with zeros to a multiple of this. Readers of some sizes alone take it so: 8 is enough
        for vLLM. Unset: the highest rank of the layers.""",
        at_least=1,
        at_most=512,
        flag="--rank-multiple",
    )
    patterns: bool = setting(
        False,
        """With --to peft-lora: keep each layer's own rank and alpha, as rank_pattern and alpha_pattern, which vLLM and llama.cpp
        ignore. Unset: all layers have one rank and one alpha.""",
        flag="--patterns",
    )
    push: str | None = setting(
        None,
        """With --to peft-lora or peft-poly: upload the folder to the Hugging Face hub as this model repository. A new one is private. It takes a
        token: hf auth login, or HF_TOKEN.""",
        flag="--push",
        metavar="OWNER/NAME",
    )
    public: bool = setting(False, "With --push: everyone can read the repository that is made.", flag="--public")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank_multiple", "patterns"):
            value = getattr(self, name)
            if value not in (None, False) and self.to != PEFT_FORM:
                raise ConfigError(
                    f"{name} is {value!r}, but with to {self.to!r} no PEFT folder of one LoRA is written: use --to {PEFT_FORM}, or leave it "
                    "out"
                )
        if self.push is not None and self.to not in (PEFT_FORM, POLY_FORM):
            raise ConfigError(
                f"push is {self.push!r}, but to is {self.to!r}, and what is pushed is a PEFT folder: use --to {PEFT_FORM}, or leave it out"
            )
        if self.patterns and self.rank_multiple is not None:
            raise ConfigError(
                f"rank_multiple is {self.rank_multiple}, but patterns keep each layer's own rank: leave one of the two out"
            )
        if self.public and self.push is None:
            raise ConfigError("public is true, but nothing is pushed: add --push OWNER/NAME, or leave it out")


def in_words(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


@cache
def own_settings() -> dict[str, tuple[Any, Setting, list[str]]]:
    """Every setting of a method: its name -> its type, what is known of it with its flag, and the methods that take it."""
    takers: dict[str, list[str]] = {}
    found: dict[str, tuple[Any, Setting]] = {}
    for row in MERGE_METHODS.values():
        for name, one in settings_of(row.settings).items():
            takers.setdefault(name, []).append(row.name)
            found.setdefault(name, one)
    return {
        name: (
            hint,
            dataclasses.replace(
                known,
                doc=f"With {in_words(takers[name])}: {known.doc[0].lower()}{known.doc[1:]}",
                flag=(f"--{name}",),
            ),
            takers[name],
        )
        for name, (hint, known) in found.items()
    }
