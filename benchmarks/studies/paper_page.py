"""What the study found, as JSON for `mhr report`, and as the page docs/study.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mhr.analysis import verdicts
from mhr.analysis.power import detectable
from mhr.analysis.seed_tests import LEVEL
from mhr.files import make_folder, write_json_atomically, write_text_atomically
from mhr.report.tables import Cell, Table, score_cell, text, whole
from mhr.runs.run import versions

from ..measure import machine
from . import claims, paper_plan
from .claims import Answer, Values, answers, findings_table
from .paper_claims import CLAIMS
from .paper_plan import LOSS, TEST, Setting, Unit, rates_of
from .seen_loss import at_budget
from .stages import states_of
from .tables import paragraphs

NAMES = {
    "lora lora": "shared LoRA",
    "wide lora": "shared LoRA, rank x 8",
    "poly mhr": "Poly",
    "mhr mhr": "MHR",
    "mhr z": "MHR-z",
    "mhr mu": "MHR-mu",
    "uniform mhr": "bank without routing",
    "random mhr": "random routing",
    "lora zero-shot": "zero-shot, shared LoRA",
    "wide zero-shot": "zero-shot, shared LoRA, rank x 8",
    "poly zero-shot": "zero-shot, Poly, uniform",
    "mhr zero-shot": "zero-shot, MHR, uniform",
    "uniform zero-shot": "zero-shot, bank without routing",
    "random zero-shot": "zero-shot, random routing, uniform",
    "lora further zero-shot": "zero-shot, shared LoRA, more steps",
    "mhr further zero-shot": "zero-shot, MHR-mu, more steps",
}


class Results:
    """The units that are done, and what they found. loss_kind: variant -> the kind of its units that losses are of."""

    def __init__(self, setting: Setting, units: Sequence[Unit], output: Path):
        self.setting = setting
        self.units = states_of(units, output)
        self.loss_kind = {unit.variant.name: unit.kind for unit in units if unit.kind == TEST}
        self.loss_kind |= {unit.variant.name: unit.kind for unit in units if unit.kind == LOSS}

    def of(self, variant: str, kind: str = TEST) -> dict[Unit, dict[str, Any]]:
        """What the units of a variant found."""
        return {u: state for u, state in self.units.items() if (u.variant.name, u.kind) == (variant, kind)}

    def losses_of(self, variant: str) -> dict[Unit, dict[str, Any]]:
        """The same, of the units with the rate that losses are compared at."""
        return self.of(variant, self.loss_kind.get(variant, TEST))

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(unit.seed for unit in self.units if unit.kind == TEST))

    @cached_property
    def budgets(self) -> dict[int, float]:
        """Fold -> FLOPs of pretraining that every variant spends: those of the cheapest."""
        spent: dict[int, list[float]] = {}
        for unit, state in self.units.items():
            spent.setdefault(unit.fold, []).append(self.spent(state))
        return {fold: min(own) for fold, own in spent.items()}

    @staticmethod
    def spent(state: Mapping[str, Any]) -> float:
        return float(state["flops"]["flops"]) * max(map(int, state["losses"]))

    def values(self, name: str) -> Values:
        """(task, seed) -> score; of "VARIANT loss" the loss at the end, of "VARIANT loss at budget" when `budget` is spent, with
        the fold behind the name of the task where there are several."""
        variant, _, row = name.partition(" ")
        found: dict[tuple[str, int], float] = {}
        of_loss = row in ("loss", "loss at budget")
        for unit, state in (self.losses_of(variant) if of_loss else self.of(variant)).items():
            if of_loss:
                own = state["losses"][max(state["losses"], key=int)]
                if row == "loss at budget":
                    own = at_budget(state["losses"], state["flops"]["flops"], self.budgets[unit.fold])
                fold = f" {unit.fold}" if len(self.setting.folds) > 1 else ""
                own = {task + fold: loss for task, loss in own.items()}
            else:
                own = {task: seeds[str(unit.seed)]["score"] for task, seeds in state["scores"].get(row, {}).items()}
            found |= {(task, unit.seed): value for task, value in own.items()}
        return found

    def mean(self, name: str) -> tuple[float, float | None]:
        """Mean over tasks, seed by seed, and its standard deviation over seeds."""
        means = self.by_seed(name)
        return statistics.mean(means), statistics.stdev(means) if len(means) > 1 else None

    def by_seed(self, name: str) -> list[float]:
        """The mean over tasks of each seed that has all of them that any has."""
        found: dict[int, list[float]] = {}
        for (_, seed), value in self.values(name).items():
            found.setdefault(seed, []).append(value)
        most = max(map(len, found.values()))
        return [statistics.mean(values) for values in found.values() if len(values) == most]

    def run(self, name: str) -> dict[str, Any]:
        """What is known of the run behind a row, of the first seed that has it."""
        variant, _, row = name.partition(" ")
        key = {"zero-shot": "pretrained", "further zero-shot": "further"}.get(row, f"adapted {row}")
        return next(state["runs"][key] for state in self.of(variant).values() if key in state["runs"])

    @property
    def rows(self) -> list[str]:
        return [name for name in NAMES if self.values(name)]

    def record(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Row -> task -> seed -> measures, as `mhr report` reads them."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for unit, state in self.units.items():
            for row, tasks in state["scores"].items():
                for task, seeds in tasks.items():
                    found.setdefault(f"{unit.variant.name} {row}", {}).setdefault(task, {}).update(seeds)
        return {name: found[name] for name in self.rows}


def publish(
    setting: Setting,
    units: Sequence[Unit],
    choices: Mapping[str, Any],
    output: Path,
    results: Path,
    docs: Path,
    command: str,
) -> str:
    """Write study_SETTING.json and the page of the units that are done; returns lines on what came out."""
    found, plan = Results(setting, units, output), setting.plan
    if not found.units:
        return "No test seed is done: there is nothing to publish."
    made = machine()  # before its files change what the commit is said to be
    told = answers(found.values, CLAIMS, finished=len(found.units) == len(units))
    record = {
        "command": command,
        "machine": made,
        "versions": versions(),
        "tasks": setting.title,
        "plan": {"seeds": list(plan.seeds), "steps": plan.steps, "adapt_steps": plan.adapt_steps, "shots": plan.shots},
        "done": len(found.units),
        "of": len(units),
        "choices": choices,
        "scores": found.record(),
        "losses": {unit.name: state["losses"] for unit, state in found.units.items()},
        "flops": {unit.name: state["flops"] for unit, state in found.units.items()},
        "runs": {row: {"parameters": found.run(row)["parameters"]} for row in found.rows},
        "claims": [answer.to_json() for answer in told],
    }
    make_folder(results)
    make_folder(docs)
    file = write_json_atomically(results / f"study_{setting.name}.json", record)
    page = docs / ("study.md" if setting.name == "suite" else f"study_{setting.name}.md")
    write_text_atomically(page, _page(found, units, told, choices, command, made))
    lines = [f"Claim {answer.claim.number}: {answer.verdict}" for answer in told if answer.verdict]
    return "\n".join([*lines, f"Written: {file}", f"Written: {page}"])


def _page(
    found: Results,
    units: Sequence[Unit],
    told: Sequence[Answer],
    choices: Mapping[str, Any],
    command: str,
    made: Mapping[str, Any],
) -> str:
    setting, plan = found.setting, found.setting.plan
    n_tasks = len({task for unit in units for task in unit.judged})
    partial = (
        ""
        if len(found.units) == len(units)
        else f" **Not finished: {len(found.units)} of {len(units)} runs are done.**"
    )
    said = [[text(f"{a.claim.number}. {a.claim.text}"), text(a.verdict or "not asked")] for a in told]
    n_asked = max(sum(len(answer.findings) for answer in told), 1)
    lines = [
        "# The claims of the MHR paper, asked again at small size",
        "",
        f"`{command}` (one thread a process; this page was made on {made['cpu']} at commit {made['commit']})",
        "",
        "MHR is arXiv 2211.03831. The model here is small and trains for minutes: what is found says something about this size, and whatever "
        f"came out stands here.{partial}",
        "",
        Table("claims", "Claims", ["claim", setting.title], said, names=2).to_markdown(),
        "## How it was decided",
        "",
        *paragraphs(claims.__doc__),
        "",
        *paragraphs(verdicts.__doc__),
        "",
        f"With {len(plan.seeds)} seeds and {n_asked} questions, 80% power is reached for a difference of "
        f"{detectable(1.0, len(plan.seeds), level=LEVEL / n_asked):.1f} times its standard deviation over seeds.",
        "",
        "## What was run",
        "",
        *paragraphs(paper_plan.__doc__),
        "",
        *(f"    {variant.name:<10}{paper_plan.ABOUT[variant.name]}" for variant in setting.variants),
        "",
        setting.about,
        "",
        f"{plan.steps} steps of {plan.batch} examples; {n_tasks} test tasks, adapted from {plan.shots} examples in up to {plan.adapt_steps} "
        f"steps and judged on {plan.test} examples; {len(found.seeds)} of {len(plan.seeds)} seeds. Score: accuracy where a task has "
        "choices, otherwise exact match."
        + (f" The zero-shot comparison is after {plan.more_steps} more steps." if plan.more_steps else ""),
        "",
        findings_table(told).to_markdown(),
        _scores_table(found).to_markdown(),
        _losses_table(found).to_markdown(),
        _budget_table(found).to_markdown(),
        _trials_table(setting, choices["methods"]).to_markdown(),
    ]
    return "\n".join(lines)


def _scores_table(found: Results) -> Table:
    rows = [
        [
            text(NAMES[row]),
            score_cell(*found.mean(row)),
            whole(len(found.by_seed(row))),
            whole(found.run(row)["parameters"]["trained"]),
        ]
        for row in found.rows
    ]
    note = "Per cent ± standard deviation over seeds. Trained: by one adaptation; zero-shot, by pretraining."
    return Table("scores", "Test tasks, mean", ["method", "score", "seeds", "trained"], rows, note=note)


def _losses_table(found: Results) -> Table:
    steps = sorted({int(step) for state in found.units.values() for step in state["losses"]})
    rows = []
    for variant in found.setting.variants:
        compared = found.loss_kind.get(variant.name, TEST)
        for kind in dict.fromkeys((compared, TEST)):
            own = found.of(variant.name, kind)
            if not own:
                continue
            losses = [state["losses"] for state in own.values()]
            cells = [statistics.mean(statistics.mean(one[str(step)].values()) for one in losses) for step in steps]
            if kind == compared:
                cells.append(found.mean(f"{variant.name} loss at budget")[0])
            title = _title(variant.name) + ("" if kind == compared else ", at the rate of its score")
            shown = [Cell(f"{loss:.3f}", loss) for loss in cells] + [text("")] * (len(steps) + 1 - len(cells))
            rows.append([text(title), text(f"{next(iter(own)).lr:g}"), *shown])
    each = "example" if found.setting.base.get("kind") == "encoder" else "target token"
    note = (
        f"Nats per {each}, mean over tasks and seeds. Rate: of pretraining, that of the lowest loss in the trials. Equal FLOPs: when as much arithmetic "
        "is done as the cheapest method does in all."
    )
    columns = ["method", "rate", *(f"step {step}" for step in steps), "equal FLOPs"]
    return Table("losses", "Loss on unseen examples of the training tasks", columns, rows, note=note)


def _budget_table(found: Results) -> Table:
    plan, rows = found.setting.plan, []
    for variant in found.setting.variants:
        states = list(found.of(variant.name).values())
        if not states:
            continue
        flops, tokens = (statistics.mean(s["flops"][key] for s in states) for key in ("flops", "tokens"))
        minutes = statistics.mean(sum(s["cpu_seconds"].values()) for s in states) / 60
        n_trials = len(plan.rates) * len(rates_of(plan, variant.modes[0])[1])
        rows.append(
            [
                text(_title(variant.name)),
                whole(states[0]["runs"]["pretrained"]["parameters"]["trained"]),
                whole(plan.steps),
                Cell(f"{plan.steps * tokens / 1e6:.2f}", tokens),
                Cell(f"{plan.steps * flops / 1e12:.2f}", flops),
                whole(n_trials),
                Cell(f"{minutes:.1f}", minutes),
            ]
        )
    columns = ["method", "pretraining trains", "steps", "million tokens", "TFLOP", "trials", "CPU minutes of a run"]
    note = (
        f"Beside these, {sum(unit.kind == LOSS for unit in found.units)} pretraining runs at the rate of the lowest loss. "
        "CPU minutes: of all that is made from one pretraining run, its adaptations and evaluations too, without what an interruption lost; parameters with those of heads. Trials: rates of pretraining x "
        "rates of adaptation in the first mode; the other modes of MHR have as many as they have rates."
    )
    return Table("budget", "What it cost", columns, rows, note=note)


def _trials_table(setting: Setting, methods: Mapping[str, Any]) -> Table:
    rows = []
    for name, chosen in methods.items():
        for mode, rate in chosen["modes"].items():
            for lr, modes in chosen["trials"].items():
                if mode not in modes:
                    continue
                tried = ", ".join(f"{value}: {100 * score:.1f}" for value, score in modes[mode].items())
                mark = float(lr) == chosen["lr"]
                loss = chosen["losses"][lr]
                at_end = "not finite" if loss is None else f"{loss:.3f}"
                cells = (_title(name), mode, lr, at_end, tried, f"{rate:g}" if mark else "")
                rows.append([text(cell) for cell in cells])
    columns = ["method", "mode", "rate of pretraining", "loss", "rate of adaptation: score", "chosen"]
    note = (
        f"Mean score over the {len(setting.trials.judged)} tasks of the trials, per cent, seed {setting.plan.trial_seed}; the highest is chosen. Loss: on unseen "
        "examples of the training tasks, by whose lowest the rate that losses are compared at is chosen. Mode z: rates of the routing. At an end of their range: "
        f"{', '.join(_at_ends(methods)) or 'none'}."
    )
    return Table("trials", "Trials", columns, rows, note=note, names=6)


def _at_ends(methods: Mapping[str, Any]) -> list[str]:
    """The chosen rates that have none beyond them among those that were tried."""
    found = []
    for name, chosen in methods.items():
        tried = [float(lr) for lr in chosen["trials"]]
        if chosen["lr"] in (min(tried), max(tried)):
            found.append(f"{_title(name)}, pretraining {chosen['lr']:g}")
        for mode, rate in chosen["modes"].items():
            rates = [float(value) for value in chosen["trials"][f"{chosen['lr']:g}"][mode]]
            if rate in (min(rates), max(rates)):
                found.append(f"{NAMES[f'{name} {mode}']}, adaptation {rate:g}")
    return found


def _title(variant: str) -> str:
    """What people call a variant: the name of its first mode."""
    return next(name for row, name in NAMES.items() if row.startswith(f"{variant} "))
