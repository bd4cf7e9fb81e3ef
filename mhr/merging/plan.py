"""What is to be merged and how, from what a user asks for: opened, checked and ready to be written, but nothing computed yet."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.collapse import collapse_task
from mhr.adapters.find import find_adapters
from mhr.adapters.layer import ADAPTER_LAYERS
from mhr.adapters.open import check_by_task, collapsed, needs_task, open_bank, open_plain, open_skills
from mhr.adapters.peft_poly import check_poly
from mhr.adapters.plain import PlainAdapter, plain_checkpoint
from mhr.errors import ConfigError, MergeError, nearest
from mhr.merging import angles, fisher, mera, sce, soups, task_vectors  # noqa: F401  each registers what it does
from mhr.merging.averages import input_amounts, input_shares
from mhr.merging.banks import average_banks, check_same_layout, file_of
from mhr.merging.combination import Combination, combiners, merge_methods
from mhr.merging.inputs import check_sources
from mhr.merging.judge import Judge
from mhr.merging.merged import Merging
from mhr.merging.methods import MERGE_METHODS, MergeMethod, own_settings
from mhr.merging.on_disk import held_on_disk
from mhr.merging.report import Gram, MergeReport
from mhr.runs.run import RunFolder
from mhr.setting import settings_of

Item = TypeVar("Item")

Weights = Mapping[str, float] | Sequence[float] | None


JUDGING = {**dict.fromkeys(("tasks", "names", "limit", "batch_size", "on_bad_row")), "split": "train"}
"""Settings of scoring, as they are where nothing is said."""


@dataclass
class Order:
    """What a user asks for, see `mhr.merging.merge`. settings: those of methods that are not None; whole: whether what is written
    has to be a bank."""

    paths: list[str | Path]
    method: str | None
    tasks: list[str]
    weights: Weights
    space: str | None
    rank: int | None
    rank_energy: float | None
    settings: dict[str, Any]
    base: str | None
    kind: str | None
    whole: bool = False
    judging: dict[str, Any] = field(default_factory=dict)

    def refuse(self, **given: Any) -> None:
        """Raise MergeError for the first of these settings that is given, naming the methods that take it."""
        for name, value in given.items():
            if value:
                raise MergeError(f"merge method {self.method!r} takes no {name}: {_mend(name, self.method or '')}")


def _mend(name: str, method: str) -> str:
    """What to do about a setting that the method does not take."""
    if name == "task":
        return (
            "it averages all of a bank; leave --task out, add --method task for the one task's mixture, or name several tasks to "
            "merge their mixtures"
        )
    if name in ("rank", "rank_energy"):
        other = "" if "delta" in MERGE_METHODS[method].spaces else "--method uniform "
        return f"leave it out, or add {other}--space delta"
    weighing = ["weighted", *(n for n, m in MERGE_METHODS.items() if m.weights == "optional")]
    found = weighing if name == "weights" else own_settings()[name][2]
    return f"leave it out, or choose {', '.join(found[:-1])}{' or ' if found[1:] else ''}{found[-1]}"


@dataclass
class MergePlan:
    """A merge that is ready. result: what is to be written; its layers are merged when they are read.

    bank    the same where whole banks are averaged, and it can stay a bank; `merging` what computes it otherwise
    before  name of each input -> it, in memory, for scoring
    task    name of the one task of what is written
    gram    inner products of the inputs, filled while the result is read; `places` the input's place in it for each input
    runs    runs that inputs are of, in their order
    """

    result: PlainAdapter
    report: MergeReport
    judge: Judge | None
    before: Mapping[str, Callable[[], AdapterCheckpoint]]
    task: str = "merged"
    bank: AdapterCheckpoint | None = None
    merging: Merging | None = None
    gram: Gram | None = None
    places: list[int] = field(default_factory=list)
    runs: list[RunFolder] = field(default_factory=list)

    def finish(self) -> MergeReport:
        """The report, complete once every layer was read."""
        report = self.report
        report.layers = len(self.result.shapes)
        report.rank = (
            sorted({shape.rank for shape in self.result.shapes.values() if shape.part != "prefix"})
            if ADAPTER_LAYERS[self.result.kind].ranked
            else []
        )
        if self.merging is not None and self.merging.errors:
            by_layer = {layer: loss.relative for layer, loss in self.merging.errors.items()}
            report.error = {"overall": self.merging.loss.relative, "layers": by_layer}
        if self.gram is not None:
            for name in ("distance", "cosine"):
                table = getattr(self.gram, name)
                setattr(report, name, [[table[i][j] for j in self.places] for i in self.places])
        return report


def make_plan(order: Order) -> MergePlan:
    """Opens and checks the inputs of a merge, and lets methods that look at data do so. Raises MhrError for what does not fit."""
    paths = [found for path in order.paths for found in find_adapters(path)]
    if not paths:
        raise MergeError("nothing to merge: name at least one run, adapter checkpoint or PEFT folder")
    if order.whole:
        return _whole(order, paths)
    bank = open_bank(paths[0]) if len(paths) == 1 else None
    if order.method is None:
        if bank is not None:
            check_by_task(bank)
        one_task = bank is not None and len(order.tasks or bank.tasks) == 1 and order.space != "delta"
        order.method = "task" if one_task else "uniform"
    if order.method not in MERGE_METHODS:
        raise ConfigError(f"unknown merge method {order.method!r}: {nearest(order.method, sorted(MERGE_METHODS))}")
    if bank is not None and order.method == "task":
        check_by_task(bank)
    if bank is not None and order.method in merge_methods and order.space != "delta" and len(order.tasks) < 2:
        return _within(order, bank)
    if order.method == "task":
        if len(paths) == 1 and bank is None:
            raise MergeError(f"{paths[0]} is a PEFT adapter, which has no tasks to merge: leave out task")
        if len(order.tasks) > 1 and len(paths) == 1:
            raise MergeError(
                f"merge method 'task' takes one task, and {len(order.tasks)} are named: name one, or choose a method that merges their mixtures, "
                "such as uniform"
            )
        if len(paths) == 1:
            raise MergeError(
                "merge method 'task' takes a task's factors as they are, which are in no space 'delta': leave --space out, or choose uniform"
            )
        raise MergeError(
            f"merge method 'task' merges one bank, not {len(paths)} inputs: choose another method; --task says what each input "
            "stands for"
        )
    method = MERGE_METHODS[order.method]
    banks = [open_bank(path) for path in paths] if order.method.startswith("soup-") and len(paths) > 1 else []
    if _are_whole(order, banks):
        return _of_banks(order, method, [b for b in banks if b is not None])
    return _of_sources(order, method, _open(order, paths, bank))


# ---- one bank --------------------------------------------------------------------------------------------------------


def _within(order: Order, bank: AdapterCheckpoint) -> MergePlan:
    """The merge of one bank by fixed routing weights, exactly."""
    assert order.method is not None
    order.refuse(rank=order.rank, rank_energy=order.rank_energy, **dict.fromkeys(order.settings, True))
    function = merge_methods[order.method]
    tasks = bank.tasks
    if order.method == "task" and not order.tasks and len(tasks) == 1:
        order.tasks = tasks[:]
    task = order.tasks[0] if order.tasks else None
    options: dict[str, Any] = {"task": task, "weights": order.weights}
    wanted = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    order.refuse(**{name: value is not None for name, value in options.items() if name not in wanted})
    order.settings = {name: options[name] for name in wanted}
    for name, value in order.settings.items():
        if value is None:
            raise MergeError(f"merge method {order.method!r} needs {name}: give it with --{name}")
    how = f"{order.method} {order.settings}"
    result = collapsed(bank, partial(function, **order.settings), how, task)
    result.task = task
    result.layers[next(iter(result.shapes))]  # settings that do not fit are refused before anything is written
    report = report_of(order, "factor", [result], [1.0], {})
    place_base(order, [result])
    judge = _judge(order, [result])
    before = {bank.name: partial(_load_bank, bank)}
    return MergePlan(result, report, judge, before, task or "merged", runs=runs_of([result]))


# ---- whole banks -----------------------------------------------------------------------------------------------------


def _are_whole(order: Order, banks: Sequence[AdapterCheckpoint | None]) -> bool:
    """Whether inputs are banks with routing that can only be averaged as such, or that share their tasks."""
    if order.tasks or not banks or any(bank is None for bank in banks):
        return False
    found = [bank for bank in banks if bank is not None]
    routed = any(c.config.skills_for(len(c.tasks)) > 1 for c in found)
    return routed and (any(needs_task(c) for c in found) or all(c.tasks == found[0].tasks for c in found))


def _whole(order: Order, paths: Sequence[Path]) -> MergePlan:
    """One bank as it is, or several averaged as banks. Raises MergeError for what is, or would become, one plain adapter."""
    order.method = order.method or "soup-uniform"
    plain = "--to peft-poly writes a bank with its routing: write one plain adapter with --to peft-lora"
    if order.method not in MERGE_METHODS or not order.method.startswith("soup-"):
        raise MergeError(f"merge method {order.method!r} makes one plain adapter, but {plain}")
    if order.tasks:
        raise MergeError(f"--task names {order.tasks[0]!r}, whose mixture is one plain adapter, but {plain}")
    banks = []
    for path in paths:
        bank = open_bank(path)
        if bank is None:
            raise MergeError(f"{path} is one plain adapter, but {plain}")
        check_poly(bank)
        banks.append(bank)
    return _of_banks(order, MERGE_METHODS[order.method], banks)


def _of_banks(order: Order, method: MergeMethod, banks: list[AdapterCheckpoint]) -> MergePlan:
    given = dict.fromkeys(order.settings, True)
    order.refuse(rank=order.rank, rank_energy=order.rank_energy, weights=order.weights, **given)
    if order.space == "delta":
        raise MergeError(
            "banks are merged skill by skill, in factor space: name a task with --task to merge its products"
        )
    for bank in banks:
        check_by_task(bank)
    check_same_layout(banks)
    routed = [_routed(bank) for bank in banks]
    place_base(order, routed)
    check_sources(routed, "factor", order.base)
    unique, weights, places = _canonical(
        banks, [file_of(bank).digest for bank in banks], input_shares(None, [[bank.name] for bank in banks])
    )
    judge = _judge(order, routed)

    def load(weights: Sequence[float]) -> AdapterCheckpoint:
        return _load_bank(average_banks(unique, weights))

    sources = [routed[places.index(i)] for i in range(len(unique))]
    combination = _combine(order, method, sources, weights, judge, load)
    bank = average_banks(unique, combination.weights)
    result = _routed(bank)
    place_base(order, [result])
    bank = dataclasses.replace(bank, base=result.base)
    report = report_of(order, "bank", routed, _shared_out(combination.weights, places), combination.notes)
    gram = Gram(len(unique))
    for key in unique[0].tensors:
        gram.add_tensors([other.tensors[key] for other in unique])
    before = {b.name: partial(_load_bank, b) for b in banks}
    task = bank.tasks[0] if len(bank.tasks) == 1 else "merged"
    return MergePlan(result, report, judge, before, task, bank, None, gram, places, runs_of(routed))


def _routed(bank: AdapterCheckpoint) -> PlainAdapter:
    """A bank as its one task is routed. With several tasks no plain adapter stands for it, and its layers are not read."""
    plain = collapsed(bank, partial(collapse_task, task=bank.tasks[0]), "bank")
    plain.task = bank.tasks[0] if len(bank.tasks) == 1 else None
    return plain


def _load_bank(bank: AdapterCheckpoint) -> AdapterCheckpoint:
    return dataclasses.replace(bank, tensors=file_of(bank).read())


# ---- several adapters ------------------------------------------------------------------------------------------------


def _open(order: Order, paths: list[Path], bank: AdapterCheckpoint | None) -> list[PlainAdapter]:
    """The adapters that paths stand for: one each, or one for each task that is named, or the skills of one bank."""
    tasks = order.tasks
    if len(paths) == 1 and len(tasks) > 1:
        return [open_plain(paths[0], task) for task in tasks]
    if bank is not None and not tasks and bank.config.skills_for(len(bank.tasks)) > 1:
        return open_skills(bank)
    if len(tasks) > 1 and len(tasks) != len(paths):
        raise MergeError(
            f"got {len(tasks)} tasks for {len(paths)} inputs: name one for all, or one for each in their order"
        )
    each = tasks if len(tasks) == len(paths) else [tasks[0] if tasks else None] * len(paths)
    return [open_plain(path, task) for path, task in zip(paths, each, strict=True)]


def _of_sources(order: Order, method: MergeMethod, sources: list[PlainAdapter]) -> MergePlan:
    if method.n_inputs not in (None, len(sources)):
        raise MergeError(
            f"merge method {order.method!r} merges {method.n_inputs} inputs, and {len(sources)} are given: name {method.n_inputs}, or choose "
            "a method that takes any number"
        )
    space = _space(order, method, sources[0])
    place_base(order, sources)
    check_sources(sources, space, order.base)
    shares = _weights(order, method, sources)
    unique, weights, places = _canonical(sources, [source.digest for source in sources], shares)
    if not any(weights):
        raise MergeError(
            f"weights are {shares}, which cancel, for the inputs are copies of each other: nothing is left"
        )
    judge = _judge(order, sources)

    def load(weights: Sequence[float]) -> AdapterCheckpoint:
        return plain_checkpoint(
            Merging(unique, Combination(list(weights)), space, order.rank, None, order.rank_energy).adapter
        )

    combination = _combine(order, method, unique, weights, judge, load)
    gram = Gram(len(unique))
    merging = Merging(unique, combination, space, order.rank, gram.add, order.rank_energy)
    result = merging.adapter
    if order.rank_energy is not None:
        layers, shapes = held_on_disk(result.layers)
        result = dataclasses.replace(result, layers=layers, shapes=shapes)
    report = report_of(order, space, sources, _shared_out(combination.weights, places), combination.notes)
    before = {source.name: partial(plain_checkpoint, source) for source in sources}
    tasks = {source.task for source in sources}
    task = (tasks.pop() if len(tasks) == 1 else None) or "merged"
    return MergePlan(result, report, judge, before, task, None, merging, gram, places, runs_of(sources))


def _space(order: Order, method: MergeMethod, source: PlainAdapter) -> str:
    """The space that is asked for, or the method's own; what has no products is merged as it is. Raises MergeError for adapters that are not
    merged layer by layer."""
    if ADAPTER_LAYERS[source.kind].tied:
        raise MergeError(
            f"{source.name} is {ADAPTER_LAYERS[source.kind].title}, whose head reads the state of its own controller, so that it does not merge "
            "with others: keep it as it is, or merge the heads of one bank with --method task, weighted or uniform"
        )
    space = order.space or (method.spaces[0] if source.kind == "lora" else "factor")
    ranked = ADAPTER_LAYERS[source.kind].ranked
    no_update = source.kind != "lora" and (ranked or ADAPTER_LAYERS[source.kind].unfit)
    if no_update and method.spaces == ("delta",):
        raise MergeError(
            f"merge method {order.method!r} merges weight updates, and {source.name} is {ADAPTER_LAYERS[source.kind].title}, which is none: "
            f"choose uniform{', weighted or mera' if ADAPTER_LAYERS[source.kind].aligned else ' or weighted'}"
        )
    updates = not ranked and space == "factor" and "delta" in method.spaces  # vectors are their own updates
    if space not in method.spaces and not updates:
        raise MergeError(f"merge method {order.method!r} does not work in space {space!r}: leave --space out")
    if space == "delta" and source.kind != "lora":
        raise MergeError(f"{source.name} is no LoRA, so it has no products of factors: leave --space out")
    for name in ("rank", "rank_energy"):
        if getattr(order, name) is not None and space != "delta":
            raise MergeError(
                f"{name} is {getattr(order, name)}, but factors are merged as they are: leave it out, or use --space delta"
            )
    return space


def _weights(order: Order, method: MergeMethod, sources: Sequence[PlainAdapter]) -> list[float]:
    if method.weights == "none":
        order.refuse(weights=order.weights)
    if method.weights == "needed" and order.weights is None:
        raise MergeError(f"merge method {order.method!r} needs weights: give it with --weights")
    # A task names an input only where no other one stands for it too.
    tasks = [source.task for source in sources]
    names = [[s.name, *([s.task] if s.task and tasks.count(s.task) == 1 else [])] for s in sources]
    if not method.sums:
        return input_shares(order.weights, names)
    found = input_amounts(order.weights, names)
    if min(found) < 0 and sources[0].states:
        raise MergeError(
            f"weights are {found}, but {sources[0].name} brings {min(sources[0].states)!r} whole, which is averaged and takes no weight "
            "below 0: give weights of at least 0"
        )
    return found


def _canonical(
    items: Sequence[Item], holds: Sequence[str], weights: Sequence[float]
) -> tuple[list[Item], list[float], list[int]]:
    """Items in the order of what they hold and each once, with all of its weight; and for each item given, its place there.

    Sums of floating-point numbers depend on their order, so merges would depend on the order of inputs otherwise.
    """
    first = {digest: item for item, digest in zip(reversed(items), reversed(holds), strict=True)}
    digests = sorted(first)
    summed = [math.fsum(w for d, w in zip(holds, weights, strict=True) if d == digest) for digest in digests]
    return [first[d] for d in digests], summed, [digests.index(digest) for digest in holds]


def _shared_out(found: Sequence[float], places: Sequence[int]) -> list[float]:
    """The weight of each input, copies sharing one evenly."""
    return [found[place] / places.count(place) for place in places]


# ---- what all need ---------------------------------------------------------------------------------------------------


def _combine(
    order: Order,
    method: MergeMethod,
    sources: Sequence[PlainAdapter],
    weights: list[float],
    judge: Judge | None,
    load: Callable[[Sequence[float]], AdapterCheckpoint],
) -> Combination:
    order.refuse(**{name: True for name in order.settings if name not in settings_of(method.settings)})
    given = dict(order.settings)
    combiner = combiners[method.name]
    if "judge" in combiner.needs:
        given["judge"] = judge
    if "score" in combiner.needs:
        assert judge is not None
        given["score"] = lambda weights: judge.dev_score(load(weights))
    return combiner.combine(sources, weights, **given)


def _judge(order: Order, sources: Sequence[PlainAdapter]) -> Judge | None:
    """The judge, where something is to be scored."""
    wants = order.method in combiners and combiners[order.method or ""].needs
    judging = dict(order.judging)
    if not judging.pop("evaluate") and not wants:
        for name, usual in JUDGING.items():
            if judging[name] != usual:
                flag = "dev-task" if name == "names" else name.replace("_", "-")
                raise MergeError(f"--{flag} is given, but nothing is scored: add --evaluate, or leave it out")
        return None
    runs = runs_of(sources)
    path = str(runs[0].path) if runs else sources[0].name
    tasks = [source.task for source in sources if source.task]
    return Judge(sources[0].base, path, runs, tasks, **judging)


def runs_of(sources: Sequence[PlainAdapter]) -> list[RunFolder]:
    """The runs that sources are of, each once."""
    return list({source.run.path: source.run for source in sources if source.run is not None}.values())


def place_base(order: Order, sources: Sequence[PlainAdapter]) -> None:
    """What the user says of the base model, told to the sources. Raises ConfigError for a kind that they are not of."""
    for source in sources:
        if order.kind is not None:
            if source.base.kind not in ("", order.kind):
                raise ConfigError(
                    f"kind is {order.kind!r}, but {source.name} is of kind {source.base.kind!r}: leave kind out"
                )
            source.base = dataclasses.replace(source.base, kind=order.kind)
        if order.base is not None:
            source.base = dataclasses.replace(source.base, name_or_path=order.base, revision="")


def report_of(
    order: Order, space: str, sources: Sequence[PlainAdapter], weights: Sequence[float], notes: Mapping[str, Any]
) -> MergeReport:
    inputs = [
        {
            "name": source.name,
            "task": source.task,
            "base": source.base.name_or_path,
            "rank": sorted({shape.rank for shape in source.shapes.values() if shape.part != "prefix"})
            if ADAPTER_LAYERS[source.kind].ranked
            else [],
            "scaling": sorted({shape.scaling for shape in source.shapes.values()}) if source.kind == "lora" else [],
            "weight": weight,
        }
        for source, weight in zip(sources, weights, strict=True)
    ]
    assert order.method is not None
    given = {"rank": order.rank, "rank_energy": order.rank_energy, **order.settings}
    return MergeReport(
        order.method, space, "", None, {k: v for k, v in given.items() if v is not None}, inputs, notes=dict(notes)
    )
