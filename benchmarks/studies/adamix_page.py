"""The page of the AdaMix study: accuracy, cost and parameters of each method, how AdaMix is used, longer runs, and the trials."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mhr.files import make_folder, write_json_atomically, write_text_atomically
from mhr.report.tables import Table, text
from mhr.runs.run import versions

from ..measure import machine
from . import adamix_plan
from .adamix_claims import CLAIMS, ONE
from .adamix_plan import AVERAGE, LONG, METHODS, TEST, Method, Plan, Unit
from .claims import Values, answers, claims_section
from .stages import states_of
from .tables import paragraphs, short, spread


class Results:
    """The units that are done, and what they found."""

    def __init__(self, plan: Plan, units: Sequence[Unit], output: Path):
        self.plan, self.units = plan, states_of(units, output)

    def of(self, method: str, kind: str = TEST) -> dict[Unit, dict[str, Any]]:
        return {unit: state for unit, state in self.units.items() if unit.method.name == method and unit.kind == kind}

    def measures(self, method: str, way: str = AVERAGE, kind: str = TEST) -> dict[tuple[str, int], dict[str, Any]]:
        """(task, seed) -> measures, of the seeds that all tasks have."""
        found = {
            (unit.task, unit.seed): state["scores"][way][unit.task][str(unit.seed)]
            for unit, state in self.of(method, kind).items()
            if way in state["scores"]
        }
        tasks = self.plan.long_tasks if kind == LONG else self.plan.tasks
        return {(task, seed): own for (task, seed), own in found.items() if all((t, seed) in found for t in tasks)}

    def values(self, method: str) -> Values:
        return {key: own["score"] for key, own in self.measures(method).items()}

    def means(self, method: str, tasks: Sequence[str] = (), way: str = AVERAGE, kind: str = TEST) -> dict[int, float]:
        """Seed -> accuracy in per cent, the mean over the tasks (none: all that there are)."""
        by_seed: dict[int, list[float]] = {}
        for (task, seed), own in self.measures(method, way, kind).items():
            if not tasks or task in tasks:
                by_seed.setdefault(seed, []).append(100 * own["score"])
        return {seed: statistics.mean(own) for seed, own in by_seed.items()}

    def record(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Row -> task -> seed -> measures, as `mhr report` reads them."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for unit, state in self.units.items():
            for way, tasks in state["scores"].items():
                name = unit.method.name + ("" if way == AVERAGE else f": {way}")
                row = found.setdefault(name + (f", {unit.steps} steps" if unit.kind == LONG else ""), {})
                for task, seeds in tasks.items():
                    row.setdefault(task, {}).update(seeds)
        return found


def publish(
    plan: Plan, units: Sequence[Unit], choices: Mapping[str, Any], output: Path, results: Path, command: str
) -> str:
    """Write adamix.json and adamix.md of the units that are done; returns the page."""
    found = Results(plan, units, output)
    shown = [method for method in METHODS if found.measures(method.name)]
    if not shown:
        return "No method is done with a seed: there is nothing to publish."
    made = machine()  # before its files change what the commit is said to be
    told = answers(found.values, CLAIMS, finished=len(found.units) == len(units))
    record = {
        "command": command,
        "machine": made,
        "versions": versions(),
        "plan": dataclasses.asdict(plan),
        "done": len(found.units),
        "of": len(units),
        "choices": choices,
        "scores": found.record(),
        "cpu_seconds": {unit.folder: state["cpu_seconds"] for unit, state in found.units.items()},
        "claims": [answer.to_json() for answer in told],
    }
    n = sorted({own["n"] for own in found.measures(shown[0].name).values()})
    majority = statistics.mean(own["majority"] for own in found.measures(shown[0].name).values())
    minutes = sum(sum(state["cpu_seconds"].values()) for state in found.units.values()) / 60
    unfinished = (
        ""
        if len(found.units) == len(units)
        else f" **Not finished: {len(found.units)} of {len(units)} runs are done.**"
    )
    page = "\n".join(
        [
            "# AdaMix on real tasks, MiniLM",
            "",
            f"`{command}` ({made['cpu']}, one thread a process, commit {made['commit']})",
            "",
            f"{len(plan.tasks)} tasks of two labels, {n[0]} to {n[-1]} test examples each; {len(plan.seeds)} seeds; {minutes:.0f} CPU minutes.{unfinished} "
            f"Always giving the most frequent training answer: {100 * majority:.1f} per cent.",
            "",
            *paragraphs(adamix_plan.__doc__),
            "",
            *claims_section(told),
            _methods_table(found, shown, choices).to_markdown(),
            *_further(found),
            _tasks_table("tasks", "Task by task", found, shown, plan.tasks).to_markdown(),
            _trials_table(plan, choices).to_markdown(),
        ]
    )
    make_folder(results)
    write_json_atomically(results / "adamix.json", record)
    write_text_atomically(results / "adamix.md", page)
    return page


def _methods_table(found: Results, shown: Sequence[Method], choices: Mapping[str, Any]) -> Table:
    plan, rows = found.plan, []
    one = found.means(ONE)
    for method in shown:
        states = list(found.of(method.name).values())
        means = found.means(method.name)
        apart = [mean - one[seed] for seed, mean in means.items() if seed in one and method.name != ONE]
        difference = spread(apart) if apart else ""
        steps = plan.steps * method.longer
        served = found.of(ONE) if method.draws else found.of(method.name)
        cells = (
            method.name,
            str(len(means)),
            spread(list(means.values())),
            difference if not difference or difference.startswith("-") else f"+{difference}",
            f"{choices['methods'][method.name]['lr']:g}",
            f"{steps:,}",
            f"{steps * method.passes:,}",
            f"{_trained(states):,}",
            f"{_trained(list(served.values())):,}" if served else "",
            f"{statistics.mean(state['cpu_seconds']['pretrain'] for state in states):.0f}",
        )
        rows.append([text(cell) for cell in cells])
    columns = [
        "", "seeds", "accuracy", "difference", "learning rate", "steps", "passes", "trained parameters", "served parameters",
        "CPU seconds of a run",
    ]  # fmt: skip
    note = (
        "Accuracy in per cent, mean over tasks, then mean over seeds ± standard deviation; the difference to one bottleneck is taken "
        "seed by seed; rows of one seed have the first alone."
    )
    return Table("methods", "Methods", columns, rows, note=note)


def _trained(states: Sequence[Mapping[str, Any]]) -> int:
    return int(states[0]["runs"]["run"]["parameters"]["trained"])


def _further(found: Results) -> list[str]:
    """How AdaMix is used, and the longer runs, as far as they are done."""
    tables = []
    rows = [
        [text(method.name), text(way), text(spread(list(means.values())))]
        for method in METHODS
        if method.draws
        for way in _ways(found, method)
        if (means := found.means(method.name, way=way))
    ]
    if rows:
        tables.append(Table("inference", "AdaMix at inference", ["", "modules", "accuracy"], rows, names=2))
    long = [method for method in METHODS if found.measures(method.name, kind=LONG)]
    if long:
        title = f"After {found.plan.long_steps:,} steps"
        tables.append(_tasks_table("long", title, found, long, found.plan.long_tasks, LONG))
    return [table.to_markdown() for table in tables]


def _ways(found: Results, method: Method) -> list[str]:
    return list(dict.fromkeys(way for state in found.of(method.name).values() for way in state["scores"]))


def _tasks_table(
    key: str, title: str, found: Results, methods: Sequence[Method], tasks: Sequence[str], kind: str = TEST
) -> Table:
    rows = []
    for method in methods:
        parts = [found.means(method.name, own, kind=kind) for own in (*([task] for task in tasks), tasks)]
        rows.append([text(method.name), *(text(spread(list(part.values()))) for part in parts)])
    return Table(key, title, ["", *map(short, tasks), "mean"], rows)


def _trials_table(plan: Plan, choices: Mapping[str, Any]) -> Table:
    tried = {name: own["trials"] for name, own in choices["methods"].items()}
    rates = list(dict.fromkeys(rate for own in tried.values() for rate in own))
    rows = []
    for name, own in tried.items():
        cells = [f"{100 * own[rate]:.1f}" if rate in own else "" for rate in rates]
        rows.append([text(name), *map(text, cells), text(f"{choices['methods'][name]['lr']:g}")])
    note = f"Mean accuracy on the {len(plan.trial_tasks)} tasks that have no part above, after {plan.trial_steps} steps, seed {plan.trial_seed}."
    return Table("trials", "Learning rates", ["", *rates, "chosen"], rows, note=note)
