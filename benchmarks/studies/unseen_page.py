"""The page of the study of unseen tasks, and its results as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mhr.files import make_folder, write_json_atomically, write_text_atomically
from mhr.report.tables import Table, text
from mhr.runs.run import versions

from ..measure import machine
from . import unseen_plan
from .claims import Values, answers, claims_section
from .stages import states_of
from .tables import paragraphs, spread
from .unseen_claims import CLAIMS
from .unseen_plan import Row, Setting, Unit, few_shot, zero_shot


def publish(
    setting: Setting,
    units: Sequence[Unit],
    choices: Mapping[str, Any],
    output: Path,
    results: Path,
    command: str,
) -> str:
    """Write unseen_SETTING.json and unseen_SETTING.md of the units that are done; returns the page."""
    done = states_of(units, output)
    if not done:
        return "No test seed is done: there is nothing to publish."
    made = machine()  # before its files change what the commit is said to be
    told = answers(lambda name: values(done, name), CLAIMS, finished=len(done) == len(units))
    record = {
        "command": command,
        "machine": made,
        "versions": versions(),
        "tasks": setting.title,
        "plan": unseen_plan_of(setting),
        "done": len(done),
        "of": len(units),
        "choices": choices,
        "scores": scores_of(done),
        "cpu_seconds": {unit.name: state["cpu_seconds"] for unit, state in done.items()},
        "claims": [answer.to_json() for answer in told],
    }
    unfinished = "" if len(done) == len(units) else f" **Not finished: {len(done)} of {len(units)} runs are done.**"
    plan = setting.plan
    minutes = sum(sum(state["cpu_seconds"].values()) for state in done.values()) / 60
    page = "\n".join(
        [
            f"# Unseen tasks: {setting.title}",
            "",
            f"`{command}` ({made['cpu']}, one thread a process, commit {made['commit']})",
            "",
            f"{setting.about} {plan.steps} steps of {plan.batch} examples, then {plan.shots} shots of each of {len(setting.tests.judged)} unseen tasks: "
            f"without a gradient step, and after {plan.adapt_steps} steps. Judged on {plan.test} examples of each; {len(plan.seeds)} seeds; "
            f"{minutes:.0f} CPU minutes.{unfinished}",
            "",
            *paragraphs(unseen_plan.__doc__),
            "",
            *claims_section(told),
            _scores_table(setting, done).to_markdown(),
            _tasks_table(setting, done).to_markdown(),
            _trials_table(choices["trained"]).to_markdown(),
        ]
    )
    make_folder(results)
    write_json_atomically(results / f"unseen_{setting.name}.json", record)
    write_text_atomically(results / f"unseen_{setting.name}.md", page)
    return page


def unseen_plan_of(setting: Setting) -> dict[str, Any]:
    plan = setting.plan
    return {"seeds": list(plan.seeds), "steps": plan.steps, "adapt_steps": plan.adapt_steps, "shots": plan.shots}


def values(done: Mapping[Unit, Mapping[str, Any]], name: str) -> Values:
    """(task, seed) -> score of a row's results."""
    return {
        (task, unit.seed): seeds[str(unit.seed)]["score"]
        for unit, state in done.items()
        for task, seeds in state["scores"].get(name, {}).items()
    }


def scores_of(done: Mapping[Unit, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Row -> task -> seed -> measures, as `mhr report` reads them."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for state in done.values():
        for row, tasks in state["scores"].items():
            for task, seeds in tasks.items():
                found.setdefault(row, {}).setdefault(task, {}).update(seeds)
    return found


def _rows(setting: Setting) -> list[Row]:
    return [row for one in setting.trained for row in setting.rows(one)]


def _mean(found: Values, tasks: Sequence[str]) -> str:
    """Per cent: the mean over tasks, seed by seed, of the seeds that have all of them."""
    seeds = sorted({seed for _, seed in found})
    whole = [seed for seed in seeds if all((task, seed) in found for task in tasks)]
    return spread([100 * statistics.mean(found[task, seed] for task in tasks) for seed in whole]) if whole else ""


def _scores_table(setting: Setting, done: Mapping[Unit, Mapping[str, Any]]) -> Table:
    tasks, rows = setting.tests.judged, []
    for row in _rows(setting):
        runs = next((s["runs"] for u, s in done.items() if u.trained.name == row.trained), None)
        if runs is None:
            continue
        cells = [_mean(values(done, name), tasks) for name in (zero_shot(row.name), few_shot(row.name))]
        counts = [
            runs[key]["parameters"]["trained"] if key in runs else None
            for key in ("pretrained", f"adapted {few_shot(row.name)}")
        ]
        rows.append([text(cell) for cell in (row.name, *cells, *("" if n is None else f"{n:,}" for n in counts))])
    columns = ["", "without a gradient step", "adapted", "pretraining trains", "adaptation trains"]
    note = "Per cent, mean over tasks ± standard deviation over seeds; accuracy where a task has choices, otherwise exact match."
    return Table("scores", "Unseen tasks, mean", columns, rows, note=note)


def _tasks_table(setting: Setting, done: Mapping[Unit, Mapping[str, Any]]) -> Table:
    tasks = setting.tests.judged
    rows = []
    for row in _rows(setting):
        found = values(done, zero_shot(row.name))
        if found:
            rows.append([text(row.name), *(text(_mean(found, [task])) for task in tasks)])
    return Table("tasks", "Task by task, without a gradient step", ["", *tasks], rows)


def _trials_table(trained: Mapping[str, Any]) -> Table:
    rows = []
    for name, own in trained.items():
        rows.append([text(name), text("pretraining"), text(_tried(own["trials"])), text(f"{own['lr']:g}")])
        rows += [
            [text(name), text(f"adaptation: {row}"), text(_tried(tried)), text(f"{own['rows'][row]:g}")]
            for row, tried in own["row_trials"].items()
        ]
    columns = ["trained", "rate of", "rate: score", "chosen"]
    return Table("trials", "Trials", columns, rows, note="Mean score over the tasks of the trials, per cent.", names=4)


def _tried(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{rate}: {100 * score:.1f}" for rate, score in scores.items())
