"""What a report is made from: run folders, adaptations, evaluations, inspections, score tables and studies, read and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mhr.analysis.scores import Score
from mhr.errors import CheckpointError, DataError
from mhr.evaluation import METRICS
from mhr.evaluation.result import unusual
from mhr.files import read_json
from mhr.report.material import Group, Material, label_of
from mhr.report.score_tables import ABOVE_ONE, finite, measures_of, read_sweep, read_table
from mhr.runs.notes import notes_of
from mhr.runs.run import RUN_FILE, RunFolder

EXPECTED = (
    "expected a run (run.json), adaptations (adapt.json), an evaluation (evaluation.json), an inspection (inspection.json), "
    "a sweep (sweep.json), a demo (demo.json), a study, or a table of scores (.jsonl or .parquet)"
)


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
        _read_by(_reader_of_file(path), path, material)
        return
    for mark, reader in FOLDERS.items():
        if (path / mark).is_file():
            _read_by(reader, path / mark, material)
            return
    inside = sorted({p.parent for mark in FOLDERS for p in path.glob(f"*/{mark}")})
    if inside and (path.parent / "adapt.json").is_file():
        raise DataError(
            f"{path} holds the adaptations to one task: name {path.parent}, which holds those to all, and their seeds"
        )
    if inside:
        raise DataError(f"{path} is no run but holds {len(inside)}: name them, as in {inside[0]} ({path}/* names all)")
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:4]) or "nothing"
    raise DataError(f"{path} is nothing to report (it holds {held}): {EXPECTED}")


def _read_by(reader: Callable[[Path, Material], None], path: Path, material: Material) -> None:
    try:
        reader(path, material)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # Each of these files has a hundred places where another type could stand, and all but those that tables hold are written by mhr.
        raise DataError(
            f"{path}, or what it names, is not as this version of mhr writes it ({type(error).__name__}: {error}): make it again, or leave it out"
        ) from error


def _reader_of_file(path: Path) -> Callable[[Path, Material], None]:
    if path.name in FOLDERS:
        return FOLDERS[path.name]
    if path.suffix in (".jsonl", ".parquet"):
        return read_table
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
    material.notes += [f"{folder}: {note}" for note in notes_of(described)]
    _add_runs(folder, begun, material)


def _add_runs(path: Path, runs: list[RunFolder], material: Material) -> None:
    unfinished = [run for run in runs if run.status != "done"]
    for run in unfinished[:3]:
        material.notes.append(f"{run.path} is not done (status {run.status}): what it logged so far is shown")
    for run in runs:
        material.notes += [f"{run.path}: {note}" for note in notes_of(run.info)]
    info = runs[0].info
    group = material.group(label_of(*(run.info for run in runs)), path)
    group.runs = runs
    group.trained = (info.get("parameters") or {}).get("trained")
    group.protocol = str(info.get("protocol") or "")
    material.collections[group.label] = str((info.get("config") or {}).get("tasks", ""))
    judged = 0
    for run in runs:
        for file in sorted([*run.path.glob("evaluation.json"), *run.path.glob("*/evaluation.json")]):
            judged += _add_evaluation(read_json(file, DataError), file, group, material, run.info)
        for file in sorted([*run.path.glob("inspection.json"), *run.path.glob("*/inspection.json")]):
            group.inspections.append(_inspection(file))
    if not judged:
        material.unjudged.append(runs[0].path)


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
    asked = (result.get("settings") or {}) | {
        "protocol": None
    }  # which is how the run was made, and a column of its own
    material.asked.setdefault(group.label, set()).add(", ".join(unusual(asked)))
    scores = [_score(group.label, task, measures, path, seed, trained_on) for task, measures in tasks.items()]
    try:
        material.scores.add(scores)
    except DataError as error:
        raise DataError(f"{path}: {error}; an evaluation inside a run's folder is found by itself") from None
    return len(tasks)


def _score(
    label: str,
    task: str,
    measures: Mapping[str, Any],
    path: Path,
    seed: str | None = None,
    trained_on: str | None = None,
) -> Score:
    value = finite(measures.get("score")) if isinstance(measures, Mapping) else None
    if value is None or abs(value) > 1 + ABOVE_ONE:
        got = (
            f"score {measures['score']!r:.40}" if isinstance(measures, Mapping) and "score" in measures else "no score"
        )
        raise DataError(
            f"{path}: task {task!r} has {got}: expected a number of at most 1, as mhr evaluate --output writes it"
        )
    metric = str(measures.get("metric") or next((name for name in METRICS if name in measures), "score"))
    majority, n = measures.get("majority"), measures.get("n")
    if not (majority is None or finite(majority) is not None) or not (n is None or type(n) is int):
        raise DataError(
            f"{path}: task {task!r} has majority {majority!r:.40} and n {n!r:.40}: expected a number and an integer"
        )
    category = str(measures.get("category") or "")
    return Score(label, task, value, metric, seed, category, trained_on, majority, n, measures_of(measures))


def _read_study(path: Path, material: Material) -> None:
    """Contestant -> task -> seed -> measures, as the studies of mhr_benchmarks write them."""
    study = read_json(path, DataError)
    if not isinstance(study["scores"], dict):
        raise DataError(f"{path} is no study: its scores are {study['scores']!r:.40}, expected an object")
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


def _read_inspection(path: Path, material: Material) -> None:
    inspection = _inspection(path)
    group = material.group(f"inspection of {inspection.get('path', path.parent)}", path.parent)
    group.inspections.append(inspection)


def _inspection(path: Path) -> dict[str, Any]:
    inspection = read_json(path, DataError)
    points = inspection.get("alignment", [])
    if not isinstance(points, list) or not all(
        isinstance(one, dict) and {"step", "mean"} <= one.keys() for one in points
    ):
        raise DataError(
            f"{path}: alignment is {points!r:.60}, expected points with step and mean, as mhr inspect --output writes them"
        )
    return inspection


FOLDERS: dict[str, Callable[[Path, Material], None]] = {
    "run.json": _read_run,
    "adapt.json": _read_adaptations,
    "sweep.json": read_sweep,
    "demo.json": _read_demo,
    "evaluation.json": _read_evaluation,
    "inspection.json": _read_inspection,
}
"""File that a folder is known by -> what reads it."""


# ---- what a reader has to know -----------------------------------------------------------------------------------------


def _tell_apart(material: Material) -> None:
    """Note what lacks scores, and where the contestants cannot be compared as they stand."""
    if material.unjudged:
        first, n = material.unjudged[0], len(material.unjudged)
        who = f"{first} has" if n == 1 else f"{n} runs have"
        material.notes.append(f"{who} no scores: mhr evaluate {first} --output {first / 'evaluation'}")
    scores = material.scores
    contestants = scores.contestants
    if len(contestants) < 2:
        return
    judged = {material.collections.get(label, "") for label in contestants}
    meeting = scores.meeting()
    elsewhere = [task for task in scores.tasks if task not in meeting]
    if len(judged) > 1:
        names = ", ".join(sorted(filter(None, judged)))
        material.notes.append(f"The runs are of different task collections: {names}.")
    if not meeting:
        material.notes.append("No task was judged for every contestant: they are listed, and not ranked.")
    elif elsewhere:
        material.notes.append(
            f"Contestants are compared on the {len(meeting)} tasks that all of them were judged on, by the same metric; "
            f"{len(elsewhere)} other tasks are listed only."
        )
    asked = {label: own for label, own in material.asked.items() if label in contestants}
    if len({frozenset(own) for own in asked.values()}) > 1:
        told = [f"{label}: {' and '.join(sorted(filter(None, own)))}" for label, own in asked.items() if any(own)]
        material.notes.append(f"Contestants were evaluated in different ways: {'; '.join(told)}.")
    seeds = {label: {s.seed for s in scores.rows.values() if s.contestant == label} - {None} for label in contestants}
    if len({frozenset(own) for own in seeds.values() if own}) > 1:
        told = [f"{label} has {', '.join(sorted(map(str, own)))}" for label, own in seeds.items() if own]
        material.notes.append(
            f"Contestants have different seeds, and differences are over those in common: {'; '.join(told[:4])}."
        )
    uneven = [task for task in scores.uneven if task in meeting]
    if uneven:
        material.notes.append(
            f"On {len(uneven)} tasks contestants were scored on different numbers of examples, as on {uneven[0]}."
        )
