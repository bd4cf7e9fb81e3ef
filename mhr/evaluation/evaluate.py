"""Evaluate a model on a task collection: every task by ranking or by generation, in batches across all tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mhr.contexts import give_contexts
from mhr.data.example import Example, TaskCollection
from mhr.errors import ConfigError, DataError
from mhr.evaluation.by_heads import headed
from mhr.evaluation.generation import generate_answers
from mhr.evaluation.in_context import Prompted, count_dropped, draw_in_context, fit_shots
from mhr.evaluation.inference import Inference
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.measuring import Plan, measure, missing_parts, plan_task, refuse_misfits, versions_of
from mhr.evaluation.ranking import rank_choices
from mhr.evaluation.result import EvaluationResult, Prediction
from mhr.evaluation.truncation import count_truncated
from mhr.objectives.usable import mask_fault, render_samples
from mhr.runs.run import versions
from mhr.runs.scoring import ScoringConfig


def evaluate(
    loaded: LoadedModel,
    collection: TaskCollection,
    *,
    split: str = "test",
    limit: int | None = None,
    batch_size: int | None = None,
    metrics: Sequence[str] | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
    length_norm: float | None = None,
    shots: int = 0,
    seed: int | None = None,
    n_beams: int = 1,
    stop: Sequence[str] = (),
    cache: str = "dynamic",
    precision: str = "no",
    progress: bool = True,
    unseen: str | None = None,
    inference: Inference | None = None,
) -> EvaluationResult:
    """Scores of `loaded` on every task of `collection`; `EvaluationResult` says which.

    split              "test" or "train" examples of the tasks
    limit              at most this many examples a task, the first ones
    batch_size         examples a batch (pairs, for encoders); None finds it, see `in_batches`
    metrics            some of METRICS, the first that fits a task and is a share or a correlation gives its score; None takes those that
                       its data name, or ranks tasks with choices and generates for the others. Tasks that none can judge are skipped,
                       with a note
    max_input_length   tokens of an input with its shots (of a pair, for encoders); longer ones are truncated, and counted. None: as
                       the model was trained, otherwise 512, and as much as an input and an answer for each shot; never more
                       than the model takes
    max_target_length  tokens of a choice or of a generated answer. None: as the model was trained, otherwise 128 (at
                       most half of a decoder's positions)
    length_norm        see `rank_choices`; None: as the model was trained, otherwise 1
    shots              in-context examples before each question, see `mhr.evaluation.in_context`; those that do not fit are left
                       out, and counted
    seed               what the shots are drawn by; None is 0
    n_beams, stop, cache  see `generate_answers`
    precision          "no", "bf16" or "fp16" (automatic mixed precision)
    progress           show a progress bar on stderr
    unseen             how tasks that the bank does not know are routed: "uniform", or "error" to refuse them. None: from their
                       definitions or training examples by a bank that routes by contexts, otherwise uniformly
    inference          how modules that AdaMix drew at random in training are used; None averages them

    Raises ConfigError for settings that are unknown or out of range, DataError where there is nothing to evaluate, TaskError
    for an unknown task with unseen="error".
    """
    inference = inference or Inference()
    ScoringConfig(
        split,
        limit,
        batch_size,
        None if metrics is None else list(metrics),
        shots,
        n_beams,
        list(stop),
        cache,
        inference=inference.how,
        seed=seed,
    )
    length_norm = loaded.length_norm if length_norm is None else length_norm
    start = time.perf_counter()
    room = max_input_length
    max_input_length, max_target_length = loaded.lengths(max_input_length, max_target_length)
    if shots and room is None:
        room = (shots + 1) * max_input_length + shots * max_target_length
        max_input_length, max_target_length = loaded.lengths(room, max_target_length)
    to_rank, to_generate, plans = _share_out(loaded, collection, split, limit, metrics)
    for name, value, usual in (("n_beams", n_beams, 1), ("stop", list(stop), []), ("cache", cache, "dynamic")):
        if value != usual and not to_generate:
            raise ConfigError(f"{name} is {value!r}, but all answers are ranked and none is generated: leave it out")
    notes = [] if unseen is not None else _meet(loaded, collection, plans)
    unseen = unseen or "uniform"
    lengths = max_input_length, max_target_length
    prompted = _prompt(loaded, collection, to_rank, to_generate, shots, seed or 0, lengths)
    ranked_on, asked = ([prompted[id(e)].example for e in part] for part in (to_rank, to_generate))
    render_samples(loaded.collator(max_input_length, max_target_length), (*ranked_on, *asked))
    settings: dict[str, Any] = {
        "max_input_length": max_input_length,
        "batch_size": batch_size,
        "unseen": unseen,
        "precision": precision,
        "draws": inference.repeats,
    }
    with inference.on(loaded), _progress(progress, len(to_rank) + len(to_generate)) as advance:
        ranked = rank_choices(
            loaded, ranked_on, max_target_length=max_target_length, length_norm=length_norm, advance=advance, **settings
        )
        generated = generate_answers(
            loaded,
            asked,
            max_new_tokens=max_target_length,
            n_beams=n_beams,
            stop=stop,
            cache=cache,
            advance=advance,
            **settings,
        )
    by_rank = [
        Prediction(
            e.task, e.id, e.input, e.targets, r.answer, r.how, r.options, r.scores, _ids(prompted[id(e)]), e.part
        )
        for e, r in zip(to_rank, ranked, strict=True)
    ]
    by_word = [
        Prediction(e.task, e.id, e.input, e.targets, g.text, "generation", shots=_ids(prompted[id(e)]), part=e.part)
        for e, g in zip(to_generate, generated, strict=True)
    ]
    return EvaluationResult(
        model=loaded.description,
        kind=loaded.kind,
        source=collection.source,
        split=split,
        tasks=_measure(collection, plans, by_rank, by_word),
        skipped={name: plan.skipped for name, plan in plans.items() if plan.skipped},
        truncated=count_truncated(loaded, ranked_on, ranked, asked, generated, max_target_length),
        shots=count_dropped(prompted.values(), shots),
        notes=[*collection.notes, *notes],
        settings=settings
        | {
            "max_target_length": max_target_length,
            "limit": limit,
            "metrics": list(metrics) if metrics else None,
            "length_norm": length_norm,
            "shots": shots,
            "template": loaded.chat.name if any(map(loaded.renders, [*ranked_on, *asked])) else None,
            "system": loaded.chat.system,
            "n_beams": n_beams,
            "stop": list(stop),
            "cache": cache,
            "task": loaded.task,
            "protocol": loaded.protocol,
            "inference": inference.how,
            "seed": seed or inference.seed or 0,
        },
        versions=versions() | versions_of(plans.values()),
        seconds=time.perf_counter() - start,
        predictions=by_rank + by_word,
    )


def _share_out(
    loaded: LoadedModel, collection: TaskCollection, split: str, limit: int | None, metrics: Sequence[str] | None
) -> tuple[list[Example], list[Example], dict[str, Plan]]:
    """Examples to rank, examples to generate for, and how each task is judged."""
    to_rank: list[Example] = []
    to_generate: list[Example] = []
    plans: dict[str, Plan] = {}
    for task in collection.values():
        examples = task.split(split)[:limit]
        head, why = (None, "") if loaded.heads is None or not examples else headed(loaded, task, examples, split)
        why = why or mask_fault(loaded.kind, examples) or ""
        plan = Plan(skipped=why) if why else plan_task(task, examples, metrics, loaded.objective.generates, head)
        plans[task.name] = plan
        if not examples:
            plan.skipped = f"no {split} examples{missing_parts(task)}"
        to_rank += examples if plan.rank else []
        to_generate += examples if plan.generate else []
    refuse_misfits(plans, metrics)
    if not to_rank and not to_generate:
        why = next((plan.skipped for plan in plans.values()), "it holds no tasks")
        raise DataError(
            f"nothing of {collection.source or 'the collection'} can be evaluated: {why} ({len(plans)} tasks)"
        )
    return to_rank, to_generate, plans


def _meet(loaded: LoadedModel, collection: TaskCollection, plans: Mapping[str, Plan]) -> list[str]:
    """Have the bank route by context the tasks that are judged and that it does not know; a line for the notes where there are any."""
    if loaded.bank is None or loaded.task is not None:
        return []
    judged = [task for task in collection.values() if plans[task.name].rank or plans[task.name].generate]
    names = give_contexts(loaded.model, loaded.tokenizer, judged)
    what = loaded.bank.config.own_settings().told if names else ""
    return [f"{len(names)} tasks that the bank was not trained on are routed by their {what}, without training"] * bool(
        names
    )


def _prompt(
    loaded: LoadedModel,
    collection: TaskCollection,
    to_rank: Sequence[Example],
    to_generate: Sequence[Example],
    shots: int,
    seed: int,
    lengths: tuple[int, int],
) -> dict[int, Prompted]:
    """id of each example -> it with its shots. One that is both ranked and answered in words is asked the same both times."""
    examples = list({id(e): e for e in (*to_rank, *to_generate)}.values())
    drawn: dict[int, tuple[Example, ...]] = {}
    for task in collection.values():
        own = [e for e in examples if e.task == task.name]
        drawn |= zip(map(id, own), draw_in_context(task, own, shots, seed), strict=True)
    prompted = fit_shots(loaded, examples, [drawn[id(e)] for e in examples], *lengths)
    return dict(zip(map(id, examples), prompted, strict=True))


def _ids(prompted: Prompted) -> tuple[str, ...]:
    return tuple(shot.id for shot in prompted.shots)


def _measure(
    collection: TaskCollection, plans: Mapping[str, Plan], by_rank: Sequence[Prediction], by_word: Sequence[Prediction]
) -> dict[str, dict[str, Any]]:
    """The measures of each task that is judged, in the order of the collection."""
    found: dict[str, dict[str, Any]] = {}
    for task in collection.values():
        ranked = [p for p in by_rank if p.task == task.name]
        generated = [p for p in by_word if p.task == task.name]
        if ranked or generated:
            found[task.name] = measure(task, plans[task.name], ranked, generated)
    return found


@contextmanager
def _progress(shown: bool, total: int) -> Iterator[Callable[[float], None]]:
    columns = TextColumn("evaluate"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        job = bar.add_task("evaluate", total=total)
        yield lambda done: bar.advance(job, done)
