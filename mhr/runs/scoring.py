"""Settings of judging a model, wherever that is done: how it is loaded, which tasks it is asked, and how it is scored."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.errors import ConfigError
from mhr.loading import Loading
from mhr.runs.settings import RunConfig
from mhr.setting import Settings, as_in, setting

METRICS = (
    *("accuracy", "exact_match", "rouge_l", "f1", "macro_f1", "micro_f1", "matthews", "pearson", "spearman", "mse"),
    *("accuracy_matched", "accuracy_mismatched", "bleu", "nist"),
)
"""Names of the metrics of `mhr.evaluation.metrics`. Accuracies, F1 and Matthews correlation are of ranking an example's choices;
pearson, spearman and mse of numbers; exact_match, rouge_l, bleu and nist judge a generated answer."""

INFERENCE = ("average", "sentence", "token", "ensemble")
"""How a bank whose modules were drawn at random in training is used, see `mhr.evaluation.Inference`."""

CACHES = ("dynamic", "static")
"""What `generate` keeps keys and values in."""

PARTS = ("held-out", "training", "all")
"""Tasks of a collection by what a run does with them."""


@dataclass
class LoadingConfig(Settings):
    """How the base model of a run or adapter is loaded."""

    base: str | None = setting(
        None,
        "Base model, where it is no longer at the place the checkpoint names.",
        flag="--model",
    )
    kind: str | None = as_in(RunConfig, "kind", None)
    dtype: str | None = as_in(Loading, "dtype", None)
    quantize: str | None = as_in(Loading, "quantize", None)
    attn: str | None = as_in(Loading, "attn", None)
    device_map: str | None = as_in(Loading, "device_map", None)
    revision: str | None = as_in(Loading, "revision", None)
    trust_remote_code: bool = as_in(Loading, "trust_remote_code", False)


@dataclass
class ScopeConfig(Settings):
    """Which tasks of a collection are looked at."""

    names: list[str] | None = setting(
        None,
        "Tasks of the collection, separated by commas; or repeat it.",
        flag="--task",
        metavar="NAME,...",
        repeated=True,
    )
    part: str | None = setting(
        None,
        """held-out, training or all tasks of the collection. Unset: an adapted run's own task, otherwise the held-out ones, or all
        where none is held out.""",
        choices=PARTS,
        flag="--part",
    )


@dataclass
class ScoringConfig(Settings):
    """How a model is scored; the same for evaluate, sweep and merge."""

    split: str = setting(
        "test", "test, or train to see how well it was learnt.", choices=("test", "train"), flag="--split"
    )
    limit: int | None = setting(
        None, "Maximum number of examples scored per task. Unset: all.", at_least=1, flag="--limit"
    )
    batch_size: int | None = setting(
        None, "Examples per batch when scoring. Unset: as many as fit in memory.", at_least=1, flag="--batch-size"
    )
    metrics: list[str] | None = setting(
        None,
        """Metrics, the first that fits a task for its score: accuracy, f1, macro_f1, micro_f1, matthews (of ranked choices), pearson,
        spearman, mse (of numbers), exact_match, rouge_l, bleu, nist (of generated answers). Unset: those that the data name (GLUE's),
        otherwise accuracy where a task has choices or classes, pearson, spearman and mse where a head gives numbers, exact_match and rouge_l elsewhere.""",
        choices=METRICS,
        flag="--metrics",
        metavar="NAME,...",
    )
    shots: int = setting(
        0,
        """In-context examples before each question: training rows of its task with their answers, by the seed.""",
        at_least=0,
        flag="--shots",
    )
    n_beams: int = setting(1, "Beams of generated answers.", at_least=1, flag="--n-beams")
    stop: list[str] = setting(
        [],
        r"""Text that a generated answer ends before; repeat it for more. \n and \t stand for a new line and a tab.""",
        flag="--stop",
        metavar="TEXT",
        repeated=True,
    )
    cache: str = setting(
        "dynamic",
        "Keys and values of generated answers: dynamic, or static, of one size, which compiles plain models on a GPU.",
        choices=CACHES,
        flag="--cache",
    )
    route_as: str | None = setting(
        None,
        "Route every example as this task of the bank. Unset: each as its own, unseen ones by the uniform average.",
        flag="--route-as",
    )
    inference: str = setting(
        "average",
        """AdaMix: the average of its modules, modules drawn for each sentence or token, or an ensemble of several draws.""",
        choices=INFERENCE,
        flag="--inference",
    )
    draws: int | None = setting(
        None, "With --inference ensemble: number of draws. Unset: 8.", at_least=1, flag="--draws"
    )
    seed: int | None = setting(
        None, "With --shots or --inference: seed of what is drawn. Unset: 0.", at_least=0, flag="--seed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws is not None and self.inference != "ensemble":
            raise ConfigError(
                f"draws is {self.draws}, but inference is {self.inference!r}: draws are those of 'ensemble'"
            )
        if self.seed is not None and self.inference == "average" and not self.shots:
            raise ConfigError(
                f"seed is {self.seed}, but inference is 'average' and there are no shots, so that nothing is drawn: leave it out"
            )
        if not all(self.stop):
            raise ConfigError("stop has an empty string, expected some text in each")
