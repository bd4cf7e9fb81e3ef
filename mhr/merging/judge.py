"""Scores, losses and examples for merges that look at data: one base model that adapters are put on in turn."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.adapters.base import BaseModel, kind_of
from mhr.adapters.checkpoint import AdapterCheckpoint, attach_checkpoint
from mhr.adapters.plain import PlainAdapter
from mhr.backbones import load_backbone
from mhr.data import Example, TaskCollection
from mhr.errors import DataError
from mhr.evaluation import EvaluationResult, LoadedModel, evaluate
from mhr.evaluation.scope import tasks_to_judge
from mhr.layers import detach
from mhr.loading import Loading
from mhr.objectives import make_objective
from mhr.runs.data_settings import DataConfig
from mhr.runs.run import RunFolder


class Judge:
    """What a merge may know of its tasks.

    base         the model that all inputs belong to; loaded when it is first needed
    path         where the inputs' task collection is recorded: a run, or anything else where `tasks` names a collection
    runs         the runs that inputs came from: examples that these adapted on are no dev examples
    own          tasks that the inputs stand for
    tasks        the collection; None takes that of the run at `path`
    names        tasks of the collection to score on; None: those of `own` that it holds, or else its held-out ones, or all
    split        what dev scores are taken on: "train", without what the runs adapted on, or "test"
    limit        at most this many examples of each task
    on_bad_row   how the collection is read, where not as the run at `path` says
    loading      see `load_backbone`

    Raises ConfigError and the like where there is no collection or it lacks a task.
    """

    def __init__(
        self,
        base: BaseModel,
        path: str,
        runs: Sequence[RunFolder],
        own: Sequence[str],
        *,
        tasks: str | None = None,
        names: Sequence[str] | None = None,
        split: str = "train",
        limit: int | None = None,
        batch_size: int | None = None,
        on_bad_row: str | None = None,
        loading: Loading | None = None,
        progress: bool = True,
    ):
        base.where(None, path)
        self.base, self.split, self.limit = base, split, limit
        self.batch_size, self.progress = batch_size, progress
        self.loading = base.loading(loading)
        self.data = next((run.config().data for run in runs), DataConfig())
        self.runs = runs
        everything = tasks_to_judge(path, tasks=tasks, part="all", on_bad_row=on_bad_row)
        held = list(dict.fromkeys(task for task in own if task in everything))
        self.everything = everything
        chosen = list(names) if names is not None else held
        self.collection = everything.select(chosen) if chosen else everything.held_out() or everything

    @cached_property
    def _parts(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_backbone(self.base.name_or_path, self.base.kind or None, self.loading)

    def of(self, task: str) -> Judge:
        """The same for one task of the collection, with the same model. Raises TaskError where the collection lacks it."""
        self._parts  # noqa: B018  loaded once, for all of them
        one = copy.copy(self)
        one.collection = self.everything.select([task])
        return one

    @contextmanager
    def wearing(self, adapter: AdapterCheckpoint) -> Iterator[LoadedModel]:
        """The base model, in evaluation mode, with an adapter on it inside the block."""
        model, tokenizer = self._parts
        attach_checkpoint(adapter, model)
        try:
            yield self._loaded(model, tokenizer, "the adapter")
        finally:
            detach(model)

    def evaluate(self, adapter: AdapterCheckpoint, split: str = "test") -> EvaluationResult:
        """How an adapter does on the tasks to score on."""
        with self.wearing(adapter) as loaded:
            return self._score(loaded, split)

    def evaluate_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
        """How a model that an adapter was folded into does on the tests of the tasks to score on."""
        return self._score(self._loaded(model, tokenizer, "the merged model"), "test")

    def _loaded(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, called: str) -> LoadedModel:
        lengths = self.data.max_input_length, self.data.max_target_length
        return LoadedModel(model.eval(), tokenizer, kind_of(model), called, trained_with=lengths, chat=self.data.chat)

    def _score(self, loaded: LoadedModel, split: str) -> EvaluationResult:
        collection = self._dev if split == "train" else self.collection
        return evaluate(
            loaded, collection, split=split, limit=self.limit, batch_size=self.batch_size, progress=self.progress
        )

    def dev_score(self, adapter: AdapterCheckpoint) -> float:
        """The mean score over tasks on the dev examples."""
        return self.evaluate(adapter, self.split).mean["score"]

    @cached_property
    def _dev(self) -> TaskCollection:
        """The tasks to score on, with the training examples that no run adapted on."""
        seen = _shots(self.runs)
        left = []
        for task in self.collection.values():
            train = [e for e in task.train if e.id not in seen.get(task.name, set())]
            if not train:
                raise DataError(
                    f"task {task.name!r} has no training example that no input adapted on: score on the test split, with "
                    "--split test, or on another task"
                )
            left.append(dataclasses.replace(task, train=train))
        return TaskCollection(left, self.collection.source)

    def examples_of(self, source: PlainAdapter, n: int) -> list[Example]:
        """The first `n` examples of each task that an adapter stands for: of its shots, where a run records them, otherwise of
        the training examples; of all tasks to score on where it stands for none of the collection."""
        known = source.task is not None and source.task in self.everything
        tasks = [self.everything[source.task or ""]] if known else list(self.collection.values())
        shots = _shots([source.run] if source.run is not None else [])
        found: list[Example] = []
        for task in tasks:
            among = [e for e in task.train if e.id in shots.get(task.name, set())] or task.train
            found += among[:n]
        if not found:
            raise DataError(f"{source.name} has no training examples to estimate its Fisher information on")
        return found

    def loss(self, loaded: LoadedModel, example: Example) -> Tensor:
        """The training loss of one example, summed over its tokens."""
        objective = make_objective(loaded.kind, heads=loaded.heads)
        batch = objective.collator(loaded.tokenizer, *loaded.lengths(), loaded.chat)([example])
        placed = {key: value.to(loaded.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        if loaded.bank is not None:  # it serves one task, whatever it is called
            placed["task_ids"] = loaded.bank.tasks * len(batch["task_ids"])
        return objective(loaded.model, placed).sums.sum()


def _shots(runs: Sequence[RunFolder]) -> dict[str, set[str]]:
    """Task -> ids of the examples that runs adapted on."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for task in run.info.get("tasks", []) if run.info.get("shots") else []:
            found.setdefault(task, set()).update(run.info["shots"])
    return found
