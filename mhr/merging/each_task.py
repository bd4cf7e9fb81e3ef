"""A plain adapter for each task of a bank: one folder a task, and an index of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mhr.adapters.base_name import commit_here
from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.find import find_adapters, run_of
from mhr.adapters.index import AdapterIndex, folders_for, read_index
from mhr.adapters.model_card import name_for_others
from mhr.adapters.open import check_by_task, collapsed, needs_task, open_bank, plain_of, read_bank
from mhr.adapters.peft_export import PeftWriter
from mhr.adapters.peft_modules import check_opens
from mhr.adapters.plain import bank_size
from mhr.adapters.push import check_push, push_folder
from mhr.adapters.tensor_file import digest_of
from mhr.adapters.write import write_plain
from mhr.errors import ConfigError, DataError, MergeError, MhrError
from mhr.files import (
    INDEX_FILE,
    LEFT_BEHIND,
    held_in,
    is_index,
    make_folder,
    prepare_output,
    read_json,
    writing_folder,
)
from mhr.loading import Loading
from mhr.locks import one_writer
from mhr.merging.averages import merge_uniform
from mhr.merging.banks import file_of
from mhr.merging.judge import Judge
from mhr.merging.methods import AVERAGE, EACH_FORMS, PEFT_FORM, MergeConfig
from mhr.merging.plan import MergePlan, Order, place_base, report_of, runs_of
from mhr.merging.report import REPORT_FILE
from mhr.merging.to_folder import finish_folder, peft_writer, told_scores
from mhr.runs.run import RunFolder, clear


@one_writer
def merge_each_task(
    path: str | Path,
    *,
    to: str = "mhr",
    output: str | Path,
    with_average: bool = False,
    dtype: str | None = None,
    rank_multiple: int | None = None,
    push: str | None = None,
    public: bool = False,
    evaluate: bool = False,
    tasks: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    on_bad_row: str | None = None,
    base: str | None = None,
    kind: str | None = None,
    loading: Loading | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> AdapterIndex:
    """Write the adapter of every task of a bank into a folder of its own in `output`, and beside them the index that is returned.

        A = concat_h sum_s w_t[h,s] A[h,s], B likewise: the mixture of task t, what `merge(path, method="task", task=t)` writes

    path           a run or an adapter whose bank does something else for each of its tasks
    to             one of EACH_FORMS
    with_average   also the average of the skills, w = 1/S (MHR-mu), in the folder AVERAGE
    evaluate       score each adapter, as it was written, on the test examples of its task; otherwise the index has the scores that
                   `mhr evaluate` left in the run, if there are any
    progress       show a bar on standard error
    overwrite      replace what `output` holds

    dtype, rank_multiple, push, public, base, kind, loading, tasks, limit, batch_size, on_bad_row    see `merge`

    Layers are read, merged and written one by one, in the memory that one task takes. Each folder appears whole, and the same call
    goes on after an interruption. Raises ConfigError and MergeError for settings and banks that do not go with it, MhrError for an
    `output` that holds anything else, and what `merge` raises, before anything is written.
    """
    MergeConfig(to=to, dtype=dtype, evaluate=evaluate, rank_multiple=rank_multiple, push=push, public=public)
    if to not in EACH_FORMS:
        raise ConfigError(f"to is {to!r}, expected {' or '.join(EACH_FORMS)}: each task gets an adapter of its own")
    scored: dict[str, Any] = {"tasks": tasks, "limit": limit, "on_bad_row": on_bad_row}
    for name, value in (scored | {"batch_size": batch_size}).items():
        if value is not None and not evaluate:
            flag = name.replace("_", "-")
            raise MergeError(f"--{flag} is given, but nothing is scored: add --evaluate, or leave it out")
    if push is not None:
        check_push(push)
    output = Path(output)
    goes_on = is_index(output) and not overwrite
    if not goes_on:
        prepare_output(output, overwrite, [path, base, tasks])
    source = _Source(_bank_at(path), base, kind, None if dtype is None else getattr(torch, dtype))
    if with_average:
        source.check_average()
    first = source.plan(source.tasks[0])
    writer = peft_writer(first, base, loading, rank_multiple, False)
    made_with: dict[str, Any] = {"bank": source.digest, "base": writer.base, "revision": writer.revision, "kind": kind}
    made_with |= {"to": to, "dtype": dtype, "rank_multiple": rank_multiple, "with_average": with_average}
    made_with |= {"evaluate": evaluate, **scored, "tasks": tasks and name_for_others(tasks)}
    index = (
        _going_on(output, made_with) if goes_on else source.index(made_with, commit_here(writer.base, writer.revision))
    )
    if not goes_on:
        prepare_output(output, overwrite, [first.result.base.name_or_path])
    check_opens(first.result, first.result.base) if to == "mhr" else writer.check(first.result)
    judge = source.judge(loading, batch_size=batch_size, **scored) if evaluate else None
    if not goes_on and held_in(output):
        clear(output)
    _sweep(output)
    names: list[str | None] = [*source.tasks, *([None] if with_average else [])]
    try:
        with torch.no_grad(), _bar(progress, len(names)) as bar:
            if not all(_stands(output, entry) for entry in index.entries):
                index.status = "running"
                index.write(make_folder(output))
            for task, entry in zip(names, index.entries, strict=True):
                if not _stands(output, entry):
                    found, remarks = _write(source, task, output / entry["folder"], to, writer, judge)
                    entry |= found
                    index.remarks = list(dict.fromkeys([*index.remarks, *remarks]))
                    index.write(output)
                bar.advance(bar.task_ids[0])
    except KeyboardInterrupt:
        done = sum(_stands(output, entry) for entry in index.entries)
        raise KeyboardInterrupt(f"{done} of {len(names)} folders are written in {output}.") from None
    except MhrError:
        if not any(_stands(output, entry) for entry in index.entries):
            _undo(output)
        raise
    index.status = "done"
    index.write(output)
    if push is not None:
        push_folder(output, push, public=public, without=[f"*/{REPORT_FILE}"])
    return index


class _Source:
    """A bank and what is said of its base model: what each task's adapter is made of."""

    def __init__(self, bank: AdapterCheckpoint, base: str | None, kind: str | None, dtype: torch.dtype | None):
        self.bank, self.base, self.kind, self.dtype = bank, base, kind, dtype
        self.run = run_of(Path(bank.name))
        # A bank that does the same for all tasks may have a head for each.
        self.tasks = list(bank.tasks if bank.heads is None or needs_task(bank) else bank.heads.tasks)

    @property
    def digest(self) -> str:
        """The same for banks that hold the same."""
        return digest_of(file_of(self.bank), self.bank.config.to_dict(), self.bank.tasks, self.bank.groups)

    def plan(self, task: str | None) -> MergePlan:
        """The merge for a task; None: for none of them, the average."""
        method = "uniform" if task is None else "task"
        settings = {} if task is None else {"task": task}
        order = Order([self.bank.name], method, [], None, None, None, None, settings, self.base, self.kind)
        plain = collapsed(self.bank, merge_uniform, method) if task is None else plain_of(self.bank, task)
        plain.task, plain.name = task, self.bank.name
        report = report_of(order, "factor", [plain], [1.0], {})
        report.dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        place_base(order, [plain])
        result = plain if self.dtype is None else plain.cast(self.dtype)
        return MergePlan(result, report, None, {}, task or "merged", runs=runs_of([plain]))

    def check_average(self) -> None:
        """Raise MergeError where the average of the skills is no one adapter, or none at all."""
        if not self.bank.config.routing.convex:
            raise MergeError(
                f"{self.bank.name} has method {self.bank.config.method!r}, whose skills are {self.bank.config.routing.skills_are}, and have no "
                "average: leave --with-average out"
            )
        heads = self.bank.heads
        if heads is not None and len(heads.heads) > 1:
            raise MergeError(
                f"{self.bank.name} has heads for {len(heads.tasks)} tasks, so that the average of its skills is no one adapter: leave "
                "--with-average out"
            )

    def index(self, made_with: dict[str, Any], commit: str | None) -> AdapterIndex:
        """The index before anything is written: no entry has a rank yet."""
        plain = self.plan(None).result
        folders = folders_for(self.tasks, AVERAGE)
        scores = {} if made_with["evaluate"] or self.run is None else scores_in(self.run)
        categories = {} if self.run is None else self.run.info.get("categories") or {}
        return AdapterIndex(
            status="running",
            made_with=made_with,
            form=made_with["to"],
            kind=plain.kind,
            source=name_for_others(self.bank.name),
            method=self.bank.config.method,
            base=made_with["base"],
            base_kind=plain.base.kind,
            revision=made_with["revision"],
            commit=commit,
            modules=list(plain.modules),
            tasks={
                task: {"folder": folders[task], "category": categories.get(task, ""), **scores.get(task, {})}
                for task in self.tasks
            },
            average={"folder": AVERAGE} if made_with["with_average"] else {},
        )

    def judge(self, loading: Loading | None, **asked: Any) -> Judge:
        """What scores the adapters. Raises TaskError where the collection lacks a task."""
        runs = [] if self.run is None else [self.run]
        base = self.plan(None).result.base
        return Judge(base, self.bank.name, runs, [], names=self.tasks, loading=loading, progress=False, **asked)


def _bank_at(path: str | Path) -> AdapterCheckpoint:
    """The bank at a path. Raises MergeError for what has no adapter for each of its tasks."""
    found = find_adapters(path)
    if len(found) > 1:
        raise MergeError(
            f"{path} holds {len(found)} adapters, but --each-task takes one bank: name one of them, as in {found[0]}"
        )
    bank = open_bank(found[0])
    if bank is None:
        raise MergeError(f"{path} is one PEFT adapter without tasks of its own: leave --each-task out")
    check_by_task(bank)
    heads = 0 if bank.heads is None else len(bank.heads.tasks)
    if len(bank.tasks) > 1 and not needs_task(bank) and heads < 2:
        raise MergeError(
            f"{path} was trained with method {bank.config.method!r}, which does the same for all of its {len(bank.tasks)} tasks, so that "
            "it is one adapter: leave --each-task out"
        )
    return bank


def _going_on(output: Path, made_with: Mapping[str, Any]) -> AdapterIndex:
    """The index that an interrupted merge left. Raises MhrError where that was another one."""
    found = read_index(output)
    for name in {**found.made_with, **made_with}:
        there, here = found.made_with.get(name), made_with.get(name)
        if there != here:
            what = (
                f"of {found.source}, which is another bank"
                if name == "bank"
                else f"with {name} {there!r}, not {here!r}"
            )
            raise MhrError(
                f"output folder {output} holds the adapters of another merge ({what}): choose another, or pass --overwrite to replace what "
                "is there"
            )
    return found


def _write(
    source: _Source, task: str | None, folder: Path, to: str, writer: PeftWriter, judge: Judge | None
) -> tuple[dict[str, Any], list[str]]:
    """Write one folder. Returns what its entry in the index says, and the remarks on it."""
    plan = source.plan(task)
    plan.report.to = to
    plain, written, result = plan.result, None, None
    with writing_folder(folder) as temporary:
        if to == PEFT_FORM:
            written = writer.write(plain, temporary)
            rank, alpha = written.rank, written.alpha
        else:
            write_plain(plain, temporary, plan.task)
            rank, alpha = bank_size(plain.shapes.values()) if plain.kind == "lora" else (None, None)
        entry: dict[str, Any] = {"rank": rank, "alpha": alpha}
        if judge is not None and task is not None and judge.everything[task].test:
            result = judge.of(task).evaluate(read_bank(temporary))
            plan.report.scores = {"merged": told_scores(result)}
            entry |= _score(result.tasks[task], judge.limit, "merged")
        report = finish_folder(plan, plain, temporary, written, folder.name, result)
    return entry, report.remarks


def scores_in(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Task -> what evaluations of a run, each task by its own routing and without shots before questions, found on the test examples,
    where `mhr evaluate --output` put them into its folder: category, score, metric, n and limit. Of several evaluations the last."""
    files = [*run.path.glob("evaluation.json"), *run.path.glob("*/evaluation.json")]
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, str(file))):
        result = read_json(file, DataError)
        settings, model = result.get("settings") or {}, str(result.get("model", "")).rpartition(" (")[0]
        of_run = Path(model).name == run.path.name and settings.get("task") is None and not settings.get("shots")
        if of_run and result.get("split") == "test":
            for task, measures in (result.get("tasks") or {}).items():
                found[task] = _score(measures, settings.get("limit"), "run")
    return found


def _score(measures: Mapping[str, Any], limit: int | None, of: str) -> dict[str, Any]:
    known = {"category": measures["category"]} if measures.get("category") else {}
    return {**known, **{name: measures.get(name) for name in ("score", "metric", "n")}, "limit": limit, "of": of}


def _stands(output: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the folder of an entry was written."""
    return "rank" in entry and (output / entry["folder"]).is_dir()


def _sweep(output: Path) -> None:
    """Remove what a kill left in the middle of being written."""
    for entry in output.iterdir() if output.is_dir() else []:
        if LEFT_BEHIND.fullmatch(entry.name):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _undo(output: Path) -> None:
    """Remove a folder that holds an index of nothing."""
    (output / INDEX_FILE).unlink(missing_ok=True)
    if not held_in(output):
        shutil.rmtree(output, ignore_errors=True)


def _bar(shown: bool, total: int) -> Progress:
    columns = TextColumn("merge"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), disable=not shown)
    bar.add_task("merge", total=total)
    return bar
