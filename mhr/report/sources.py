"""What a report is made from: run folders, adaptations, evaluations, inspections, score tables and studies, read and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mhr.analysis.scores import Score, Scores
from mhr.errors import CheckpointError, DataError
from mhr.evaluation import METRICS
from mhr.files import read_json
from mhr.training.run import RUN_FILE, RunFolder

EXPECTED = (
    "expected a run (run.json), adaptations (adapt.json), an evaluation (evaluation.json), an inspection (inspection.json), "
    "a sweep (sweep.json), a demo (demo.json), a study, or a table of scores (.jsonl or .parquet)"
)
COLUMNS = ("task", "mode", "method", "seed", "metric", "value")
"""Columns of a table of scores, one number a row; "category" may stand beside them. The table of a sweep has a column for each
metric instead."""

METHOD_NAMES = {
    "mhr": "MHR",
    "poly": "Poly",
    "lora": "shared LoRA",
    "private": "private LoRA",
    "ia3": "IA3",
    "poly-ia3": "Poly-IA3",
    "random": "random routing",
    "uniform": "uniform routing",
    "hash": "hash routing",
    "full": "full fine-tuning",
    "adamix": "AdaMix",
}
SUFFIXES = {"z": "-z", "mu": "-mu", "full": ", all weights", "random": ", fresh bank"}


@dataclass
class Group:
    """One run, or the adaptations of one run in one mode to several tasks with several seeds.

    runs         its run folders; none where only scores are known
    trained      numbers that one of them trains, where that is known
    protocol     how settings were chosen, where that is known
    inspections  what `mhr inspect --output` wrote about them
    """

    label: str
    path: Path
    runs: list[RunFolder] = field(default_factory=list)
    trained: int | None = None
    protocol: str = ""
    inspections: list[dict[str, Any]] = field(default_factory=list)

    @property
    def info(self) -> dict[str, Any]:
        return self.runs[0].info if self.runs else {}

    @property
    def pretrained(self) -> bool:
        return self.info.get("kind") == "pretrain"


@dataclass
class Material:
    """Everything that was found, in the order it was named. notes: what a reader has to know about it, one line each."""

    groups: dict[str, Group] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)
    notes: list[str] = field(default_factory=list)
    collections: dict[str, str] = field(default_factory=dict)
    """Label of a group -> the task collection it was trained or judged on."""

    def group(self, label: str, path: Path) -> Group:
        """A new group; a label that is taken gets its path behind it."""
        if label in self.groups:
            label = f"{label} ({path})"
        if label in self.groups:
            raise DataError(f"{path} is given twice: name each run once")
        self.groups[label] = Group(label, path)
        return self.groups[label]


def read_sources(paths: Sequence[str | Path]) -> Material:
    """Read what the paths name. Raises DataError or CheckpointError, one line, for what is no material of a report."""
    if not paths:
        raise DataError(f"no run is named: {EXPECTED}")
    material = Material()
    seen: dict[Path, str] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder: {EXPECTED}")
        if path.resolve() in seen:
            raise DataError(f"{path} is given twice{_as(seen[path.resolve()], path)}: name each run once")
        seen[path.resolve()] = str(path)
        _read(path, material)
    _tell_apart(material)
    return material


def _as(first: str, again: Path) -> str:
    return "" if first == str(again) else f", first as {first}"


# ---- telling what a path is ------------------------------------------------------------------------------------------


def _read(path: Path, material: Material) -> None:
    if path.is_file():
        _reader_of_file(path)(path, material)
        return
    for mark, reader in FOLDERS.items():
        if (path / mark).is_file():
            reader(path / mark, material)
            return
    inside = sorted({p.parent for mark in FOLDERS for p in path.glob(f"*/{mark}")})
    if inside:
        raise DataError(f"{path} is no run but holds {len(inside)}: name them, as in {inside[0]} ({path}/* names all)")
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:4]) or "nothing"
    raise DataError(f"{path} is nothing to report (it holds {held}): {EXPECTED}")


def _reader_of_file(path: Path) -> Callable[[Path, Material], None]:
    if path.name in FOLDERS:
        return FOLDERS[path.name]
    if path.suffix in (".jsonl", ".parquet"):
        return _read_table
    if path.suffix != ".json":
        raise DataError(f"{path} is nothing to report: {EXPECTED}")
    keys = read_json(path, DataError).keys()
    if {"scores", "plan"} <= keys:
        return _read_study
    if {"tasks", "model", "split"} <= keys:
        return _read_evaluation
    raise DataError(f"{path} is nothing to report (its keys are {', '.join(sorted(keys)[:5]) or 'none'}): {EXPECTED}")


# ---- runs ------------------------------------------------------------------------------------------------------------


def _read_run(path: Path, material: Material) -> None:
    _add_runs(path.parent, [RunFolder.open(path.parent)], material)


def _read_adaptations(path: Path, material: Material) -> None:
    folder, described = path.parent, read_json(path, CheckpointError)
    listed = [folder / run["path"] for run in described.get("runs", [])]
    begun = [RunFolder.open(run) for run in listed if (run / RUN_FILE).is_file()]
    if not begun:
        raise CheckpointError(
            f"{folder} lists {len(listed)} adaptations and holds none of them: run mhr adapt --resume"
        )
    if len(begun) < len(listed):
        material.notes.append(f"{folder}: {len(listed) - len(begun)} of its {len(listed)} adaptations are missing")
    _add_runs(folder, begun, material)


def _add_runs(path: Path, runs: list[RunFolder], material: Material) -> None:
    unfinished = [run for run in runs if run.status != "done"]
    for run in unfinished[:3]:
        material.notes.append(f"{run.path} is not done (status {run.status}): what it logged so far is shown")
    info = runs[0].info
    group = material.group(label_of(info), path)
    group.runs = runs
    group.trained = (info.get("parameters") or {}).get("trained")
    group.protocol = str(info.get("protocol") or "")
    material.collections[group.label] = str((info.get("config") or {}).get("tasks", ""))
    judged = 0
    for run in runs:
        for file in sorted([*run.path.glob("evaluation.json"), *run.path.glob("*/evaluation.json")]):
            judged += _add_evaluation(read_json(file, DataError), file, group, material, run.info)
        for file in sorted([*run.path.glob("inspection.json"), *run.path.glob("*/inspection.json")]):
            group.inspections.append(read_json(file, DataError))
    if not judged:
        material.notes.append(
            f"{path} has no scores: mhr evaluate {runs[0].path} --output {runs[0].path / 'evaluation'}"
        )


def label_of(info: Mapping[str, Any]) -> str:
    """What a run is called: its method, its mode, and how it met its tasks."""
    if info.get("kind") == "adapt":
        return adapted_label(str(info.get("method")), str(info.get("mode")), len(info.get("shots", [])))
    return f"{_method_name(str(info.get('method', 'run')))}, pretrained"


def adapted_label(method: str, mode: str, shots: int | None) -> str:
    """What an adaptation is called: "MHR-z, 32 shots"."""
    return _method_name(method) + SUFFIXES.get(mode, "") + (f", {shots} shots" if shots else "")


def _method_name(method: str) -> str:
    return METHOD_NAMES.get(method, method)


# ---- scores ----------------------------------------------------------------------------------------------------------


def _read_evaluation(path: Path, material: Material) -> None:
    result = read_json(path, DataError)
    group = material.group(str(result.get("model", path.parent.name)), path.parent)
    _add_evaluation(result, path, group, material, {})


def _add_evaluation(
    result: dict[str, Any], path: Path, group: Group, material: Material, info: Mapping[str, Any]
) -> int:
    """The scores of one evaluation of `group`, whose run is `info`. Returns how many it gave."""
    if result.get("split") != "test":
        material.notes.append(f"{path} judges the {result.get('split')} split: left out")
        return 0
    adapted = info.get("kind") == "adapt"
    seed = str(info["seed"]) if adapted else None
    trained_on = info["tasks"][0] if adapted else None
    tasks = result.get("tasks")
    if not isinstance(tasks, dict):
        raise DataError(f"{path} is no evaluation: it has no tasks")
    material.collections.setdefault(group.label, str(result.get("source", "")))
    material.scores.add(
        _score(group.label, task, measures, path, seed=seed, trained_on=trained_on) for task, measures in tasks.items()
    )
    return len(tasks)


def _score(
    label: str,
    task: str,
    measures: Mapping[str, Any],
    path: Path,
    seed: str | None = None,
    trained_on: str | None = None,
) -> Score:
    try:
        value = float(measures["score"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: task {task!r} has no score: expected what mhr evaluate --output writes") from None
    metric = next((name for name in METRICS if name in measures), "score")
    majority, n = measures.get("majority"), measures.get("n")
    return Score(label, task, value, metric, seed, str(measures.get("category") or ""), trained_on, majority, n)


def _read_study(path: Path, material: Material) -> None:
    """Contestant -> task -> seed -> measures, as the studies of mhr_benchmarks write them."""
    study = read_json(path, DataError)
    for name, tasks in study["scores"].items():
        group = material.group(name, path)
        run = study.get("runs", {}).get(name) or study.get("runs", {}).get(_run_of(name), {})
        group.trained = run.get("parameters", {}).get("trained")
        material.collections[group.label] = str(study.get("tasks") or path.stem)
        material.scores.add(
            _score(group.label, task, measures, path, seed=None if seed == "None" else seed)
            for task, seeds in tasks.items()
            for seed, measures in seeds.items()
        )


def _run_of(name: str) -> str:
    """The run that a study's contestant comes from: "32-shot mhr-z" -> "adapted mhr-z"."""
    how, _, method = name.partition(" ")
    return f"{'adapted' if how.endswith('-shot') and how != 'zero-shot' else 'pretrained'} {method}"


def _read_demo(path: Path, material: Material) -> None:
    demo, folder = read_json(path, DataError), path.parent
    config = demo.get("made_with", {}).get("config", {})
    for run in sorted(folder.glob("pretrain/*/run.json")):
        opened = RunFolder.open(run.parent)
        material.group(label_of(opened.info), run.parent).runs = [opened]
    for column, trained in demo.get("trained", {}).items():
        group = material.group(column, folder)
        group.trained = trained
        material.collections[group.label] = str(config.get("tasks", ""))
        majority = demo.get("majority", {})
        material.scores.add(
            Score(group.label, task, scores[column], "score", majority=majority.get(task))
            for task, scores in demo["scores"].items()
        )


def _read_sweep(path: Path, material: Material) -> None:
    table = path.parent / "results.jsonl"
    if not table.is_file():
        raise DataError(f"{path.parent} is a sweep without results yet: go on with mhr sweep --resume")
    _read_table(table, material)


def _read_table(path: Path, material: Material) -> None:
    """A table of scores: of a sweep, or one number a row. A contestant is a method in a mode, of one run."""
    groups: dict[tuple[str, ...], Group] = {}
    latest: dict[tuple[str, ...], Score] = {}
    failed = 0
    for number, row in _rows(path):
        where = f"{path}:{number}"
        of_sweep = {"run", "mode", "task", "seed", "status"} <= row.keys()
        if of_sweep and row["status"] != "done":
            failed += 1
            continue
        missing = [] if of_sweep else [name for name in COLUMNS if name not in row]
        if missing:
            raise DataError(f"{where}: no {missing[0]!r}: a table of scores has the columns {', '.join(COLUMNS)}")
        if not of_sweep and row["metric"] not in METRICS:
            continue
        key = str(row.get("run", "")), str(row["method"]), str(row["mode"])
        if key not in groups:
            groups[key] = _group_of_row(row, path, material)
        found = _score_of_row(row, groups[key].label, where)
        at = (found.contestant, found.task, str(found.seed))
        if at in latest and not of_sweep:
            material.scores.add([latest[at], found])  # which refuses them, naming both
        latest[at] = found  # a unit of a sweep that was tried again counts once
    if not latest:
        raise DataError(f"{path} holds no scores: expected rows with a metric of {', '.join(METRICS)}")
    if failed:
        material.notes.append(f"{path}: {failed} units failed and are left out")
    material.scores.add(latest.values())


def _group_of_row(row: Mapping[str, Any], path: Path, material: Material) -> Group:
    label = adapted_label(str(row["method"]), str(row["mode"]), row.get("shots"))
    if label in material.groups and row.get("run"):
        label = f"{label} ({row['run']})"
    group = material.group(label, path)
    group.trained, group.protocol = row.get("trained"), str(row.get("protocol") or "")
    material.collections[group.label] = path.parent.name if "run" in row else path.stem
    return group


def _score_of_row(row: Mapping[str, Any], label: str, where: str) -> Score:
    metric = str(row.get("metric") or next((name for name in METRICS if row.get(name) is not None), "score"))
    value = row["value"] if "value" in row else row.get("score")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where}: value is {value!r}, expected a number")
    seed = None if row["seed"] is None else str(row["seed"])
    category = str(row.get("category") or "")
    return Score(label, str(row["task"]), value, metric, seed, category, None, row.get("majority"), row.get("n"))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".parquet":
        try:
            yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from None
        return
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: no valid JSON ({error.msg}): expected one row a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {line:.40}")
        yield number, row


def _read_inspection(path: Path, material: Material) -> None:
    found = read_json(path, DataError)
    group = material.group(f"inspection of {found.get('path', path.parent)}", path.parent)
    group.inspections.append(found)


FOLDERS: dict[str, Callable[[Path, Material], None]] = {
    "run.json": _read_run,
    "adapt.json": _read_adaptations,
    "sweep.json": _read_sweep,
    "demo.json": _read_demo,
    "evaluation.json": _read_evaluation,
    "inspection.json": _read_inspection,
}
"""File that a folder is known by -> what reads it."""


# ---- what a reader has to know -----------------------------------------------------------------------------------------


def _tell_apart(material: Material) -> None:
    """Note where the contestants cannot be compared as they stand."""
    scores = material.scores
    contestants = scores.contestants
    if len(contestants) < 2:
        return
    judged = {material.collections.get(label, "") for label in contestants}
    meeting = scores.meeting()
    apart = [task for task in scores.tasks if task not in meeting]
    if len(judged) > 1:
        names = ", ".join(sorted(filter(None, judged)))
        material.notes.append(f"The runs are of different task collections: {names}.")
    if not meeting:
        material.notes.append("No task was judged for every contestant: they are listed, and not ranked.")
    elif apart:
        material.notes.append(
            f"Contestants are compared on the {len(meeting)} tasks that all of them were judged on, by the same metric; "
            f"{len(apart)} other tasks are listed only."
        )
    uneven = [task for task in scores.uneven if task in meeting]
    if uneven:
        material.notes.append(
            f"On {len(uneven)} tasks contestants were judged by different numbers of examples, as on {uneven[0]}."
        )
