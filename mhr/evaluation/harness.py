"""Our models in EleutherAI's lm-evaluation-harness (package lm-eval): its tasks, its prompts, its metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mhr.data.chat_template import find_chat_template
from mhr.errors import ConfigError, nearest
from mhr.evaluation.generation import cache_settings
from mhr.evaluation.habits import without_habits
from mhr.evaluation.loaded import LoadedModel
from mhr.runs.scoring import ScoringConfig


def evaluate_in_harness(
    loaded: LoadedModel,
    tasks: Sequence[str],
    *,
    include: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    how: Asking | None = None,
) -> dict[str, Any]:
    """The harness's results on its `tasks`, task by task: {"results": {task: {metric: value}}, "versions", "n-shot", ...}; the "model",
    its "routing" and "dtype", the "limit", the version of "lm_eval", and the settings of `how` as "asked".

    loaded      a model without a bank, for the harness knows no task names: `mhr.evaluation.fold_bank` makes one
    include     folder of further task files (YAML), beside those that come with the harness
    limit       at most this many examples a task
    how         how its questions are put. The chat template is that of `loaded.chat` where it renders every row, and so is the
                system text

    Raises ConfigError where lm-eval is not installed, for an encoder or a bank, and for an unknown task, naming the nearest.
    """
    return ask(loaded, tasks, find_tasks(tasks, include), limit, batch_size, how)


@dataclass(frozen=True, slots=True)
class Asking:
    """How the harness puts its questions; what is None or empty is as each of its tasks says.

    shots    in-context examples; a task whose own file says 0 keeps that, which "n-shot" of the results tells
    seed     what they are drawn by
    stop     texts that a generated answer ends before, instead of a task's own
    n_beams  beams of generated answers
    cache    see `mhr.evaluation.generate_answers`

    Raises ConfigError for values out of range.
    """

    shots: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n_beams: int | None = None
    cache: str = "dynamic"

    def __post_init__(self) -> None:
        ScoringConfig(
            shots=self.shots or 0, seed=self.seed, stop=list(self.stop), n_beams=self.n_beams or 1, cache=self.cache
        )

    def settings(self, loaded: LoadedModel) -> dict[str, Any]:
        """Arguments of the harness's `simple_evaluate`."""
        generation: dict[str, Any] = cache_settings(loaded, self.cache)
        if self.stop:
            generation["until"] = list(self.stop)
        if self.n_beams is not None:
            generation["num_beams"] = self.n_beams
        found: dict[str, Any] = {"num_fewshot": self.shots}
        if loaded.chat.chosen:  # without a template the harness would put the system text straight before the question
            found |= {"apply_chat_template": True, "system_instruction": loaded.chat.system}
        if self.seed is not None:
            found["fewshot_random_seed"] = self.seed
        return found | ({"gen_kwargs": generation} if generation else {})


def ask(
    loaded: LoadedModel,
    tasks: Sequence[str],
    manager: Any,
    limit: int | None = None,
    batch_size: int | None = None,
    how: Asking | None = None,
    routing: str = "none: it has no bank",
) -> dict[str, Any]:
    """What `evaluate_in_harness` returns, with the manager that `find_tasks` made. routing: what was folded into the model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    if not loaded.objective.generates:
        raise ConfigError(
            f"{loaded.description} is an encoder, and the harness asks for likelihoods of texts: use a generator"
        )
    if loaded.routed:
        raise ConfigError(
            f"{loaded.description} has a bank: fold it into the base weights first, mhr.evaluation.fold_bank(loaded)"
        )
    loaded.check_trained()
    loaded.collator(*loaded.lengths())  # refuses a chat template that the model or its tokenizer has no use for
    backend = "causal" if loaded.objective.shares_row else "seq2seq"
    model = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend=backend,
        batch_size=batch_size or 1,
        device=str(loaded.device),
    )
    how = how or Asking()
    with without_habits(loaded.model), _chat_template(loaded):
        found = simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            **how.settings(loaded),
        )
    kept = {key: found[key] for key in ("results", "versions", "n-shot", "higher_is_better") if key in found}
    chat = loaded.chat
    told = {"template": chat.name, "system": chat.system} if chat.chosen else {"template": None, "system": None}
    about = {
        "model": loaded.description,
        "routing": routing,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "limit": limit,
        "lm_eval": metadata.version("lm_eval"),
    }
    return {**about, **kept, "asked": {**asdict(how), **told}}


@contextmanager
def _chat_template(loaded: LoadedModel) -> Iterator[None]:
    """The chat template that every row is rendered by, where there is such, as the tokenizer's own inside the block."""
    before = loaded.tokenizer.chat_template
    if loaded.chat.chosen:
        loaded.tokenizer.chat_template = find_chat_template(loaded.tokenizer, loaded.chat).text
    try:
        yield
    finally:
        loaded.tokenizer.chat_template = before


def find_tasks(names: Sequence[str], include: str | Path | None = None) -> Any:
    """The harness's manager of tasks, which knows these. That of all tasks takes long to make, so those of `include` are tried alone
    first.

    Raises ConfigError where lm-eval is not installed, and for an unknown task, naming the nearest.
    """
    try:
        import lm_eval  # noqa: F401  (a part of a package may be loaded where the package cannot be)
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError("--harness needs lm-evaluation-harness: pip install 'mhr[harness]'") from None

    if include is not None:
        if not Path(include).is_dir():
            raise ConfigError(f"no folder of harness tasks at {include}")
        alone = TaskManager(include_path=str(include), include_defaults=False)
        if set(names) <= set(alone.all_tasks):
            return alone
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(f"unknown harness task {name!r}: {nearest(name, manager.all_tasks)}")
    return manager
