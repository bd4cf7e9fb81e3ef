"""What the study found, as JSON for `mhr report`, and as the page docs/study.md with its plots."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mhr.analysis import verdicts
from mhr.files import make_folder, read_json, write_json_atomically, write_text_atomically
from mhr.report.charts import WIDTH, plot_alignment
from mhr.report.figures import colour, marker, new_figure, per_cent, save, styled
from mhr.report.tables import Cell, Table, interval_cell, p_number, score_cell, text, whole
from mhr.runs.run import versions

from ..measure import machine
from .paper_claims import CLAIMS, Answer, Values, answers
from .paper_plan import SHOTS, SWEPT_HEADS, SWEPT_SKILLS, Setting, Unit, units_of
from .paper_plan import __doc__ as variants

NAMES = {
    "lora lora": "shared LoRA",
    "wide lora": "shared LoRA, rank x 8",
    "poly mhr": "Poly",
    "poly z": "Poly-z",
    "poly mu": "Poly-mu",
    "mhr mhr": "MHR",
    "mhr z": "MHR-z",
    "mhr mu": "MHR-mu",
    "random mhr": "random routing",
    "random mu": "random routing, mu",
    "lora zero-shot": "zero-shot, shared LoRA",
    "wide zero-shot": "zero-shot, shared LoRA, rank x 8",
    "poly zero-shot": "zero-shot, Poly, uniform",
    "mhr zero-shot": "zero-shot, MHR, uniform",
    "random zero-shot": "zero-shot, random routing, uniform",
    "mhr-mu zero-shot": "zero-shot MHR-mu",
}


class Results:
    """The units of a setting that are done, and what they found."""

    def __init__(self, setting: Setting, output: Path):
        self.setting = setting
        self.units: dict[Unit, dict[str, Any]] = {}
        for unit in units_of(setting):
            file = output / setting.name / unit.name / "state.json"
            state = read_json(file) if file.is_file() else {}
            if state.get("status") == "done":
                self.units[unit] = state

    @property
    def seconds(self) -> float:
        return sum(sum(state["seconds"].values()) for state in self.units.values())

    @property
    def rows(self) -> list[str]:
        """ "VARIANT ROW" of everything that was scored, what is adapted first."""
        found = dict.fromkeys(f"{u.variant.name} {row}" for u, state in self.units.items() for row in state["scores"])
        return sorted(found, key=lambda name: name.endswith("zero-shot"))

    def measures(self, name: str) -> dict[tuple[str, int], dict[str, Any]]:
        """(task, seed of pretraining) -> measures."""
        variant, _, row = name.partition(" ")
        return {
            (task, unit.seed): measures
            for unit, state in self.units.items()
            if unit.variant.name == variant
            for task, seeds in state["scores"].get(row, {}).items()
            for measures in seeds.values()
        }

    def values(self, name: str) -> Values:
        """(task, seed) -> score; of "VARIANT alignment" (step, seed) -> mean cosine."""
        if not name.endswith(" alignment"):
            return {key: measures["score"] for key, measures in self.measures(name).items()}
        return {
            (str(point["step"]), unit.seed): point["mean"]
            for unit, state in self.units.items()
            if f"{unit.variant.name} alignment" == name
            for point in state.get("alignment", [])
            if point["mean"] is not None
        }

    def trained(self, name: str) -> int | None:
        """Numbers that one adaptation (of zero-shot rows, pretraining) trains."""
        variant, _, row = name.partition(" ")
        run = "pretrained" if row == "zero-shot" else f"adapted {row}"
        found = (s["runs"][run]["parameters"]["trained"] for u, s in self.units.items() if u.variant.name == variant)
        return next(found, None)

    def mean(self, name: str) -> tuple[float, float | None]:
        """Mean over tasks, seed by seed, and its standard deviation over seeds."""
        by_seed: dict[int, list[float]] = {}
        for (_, seed), value in self.values(name).items():
            by_seed.setdefault(seed, []).append(value)
        means = [statistics.mean(values) for values in by_seed.values()]
        return statistics.mean(means), statistics.stdev(means) if len(means) > 1 else None


def publish(
    settings: Sequence[Setting], output: Path, results: Path, docs: Path, command: str, *, quick: bool
) -> list[str]:
    """Write the JSON files, the plots and the page of all settings with a unit that is done; returns lines on what came out."""
    make_folder(results)
    make_folder(docs)
    ending = "_quick" if quick else ""
    made = machine()  # before its files change what the commit is said to be
    parts, lines, told = [], [], {}
    for setting in settings:
        found = Results(setting, output)
        if not found.units:
            continue
        told[setting.title] = answers(found.values)
        file = write_json_atomically(
            results / f"study_{setting.name}{ending}.json", _record(found, told[setting.title], command, made)
        )
        plots = _plots(found, docs, ending)
        parts.append(_part(found, told[setting.title], plots))
        lines += [f"{setting.title}, claim {a.claim.number}: {a.verdict}" for a in told[setting.title] if a.verdict]
        lines.append(f"Written: {file}")
    if parts:
        page = write_text_atomically(docs / f"study{ending}.md", "\n".join([_head(told, command, made), *parts]))
        lines.append(f"Written: {page}")
    return lines


def _record(found: Results, answers: Sequence[Answer], command: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, in the form that `mhr report` reads: contestant -> task -> seed -> measures."""
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found.rows:
        for (task, seed), measures in found.measures(row).items():
            scores.setdefault(row, {}).setdefault(task, {})[str(seed)] = measures
    setting = found.setting
    return {
        "command": command,
        "machine": made,
        "versions": versions(),
        "tasks": setting.title,
        "plan": {
            "pretrain": {k: v for k, v in setting.pretrain.items() if k not in ("model", "tasks")},
            "adapt": setting.adapt,
            "seeds": list(setting.seeds),
            "held_out": list(setting.held_out),
        },
        "seconds": found.seconds,
        "scores": scores,
        "runs": {row: {"parameters": {"trained": found.trained(row)}} for row in found.rows},
        "alignment": {unit.name: state["alignment"] for unit, state in found.units.items() if "alignment" in state},
        "claims": [answer.to_json() for answer in answers],
    }


# ---- the page --------------------------------------------------------------------------------------------------------


def _head(answers: Mapping[str, Sequence[Answer]], command: str, made: Mapping[str, Any]) -> str:
    rows = [
        [text(f"{claim.number}. {claim.text}"), *(text(own[i].verdict or "not asked") for own in answers.values())]
        for i, claim in enumerate(CLAIMS)
    ]
    said = Table("claims", "Claims", ["claim", *answers], rows, names=1 + len(answers))
    return "\n".join(
        [
            "# The claims of the MHR paper, asked again at small size",
            "",
            f"`{command}` ({made['cpu']}, one thread a process, commit {made['commit']})",
            "",
            "MHR is arXiv 2211.03831. The models here have one and 22 million parameters and train for minutes: what is found says "
            "something about this size, and whatever came out stands here.",
            "",
            said.to_markdown(),
            "## How it was decided",
            "",
            *(verdicts.__doc__ or "").strip().split("\n\n", 1)[1].splitlines(),
            "",
            "## What was run",
            "",
            *(variants or "").strip().split("\n\n", 1)[1].splitlines(),
            "",
        ]
    )


def _part(found: Results, answers: Sequence[Answer], plots: Mapping[str, str]) -> str:
    setting = found.setting
    seeds = ", ".join(map(str, setting.seeds))
    fewer = " (the sweeps of heads and skills with fewer)" if any(v.seeds for v in setting.variants) else ""
    lines = [
        f"## {setting.title}",
        "",
        f"{len(found.units)} pretraining runs with seeds {seeds}{fewer}, "
        f"{setting.pretrain['steps']} steps each; {len(setting.held_out)} held-out tasks, adapted from {SHOTS} examples in "
        f"{setting.adapt['steps']} steps, shots and all else drawn by the seed of the run; {found.seconds / 60:.0f} minutes of "
        "one process. Score: accuracy by ranking where a task has choices, otherwise exact match.",
        "",
        f"Pretraining: {_said(setting.pretrain)}. Adapting: {_said(setting.adapt)}.",
        "",
        _scores_table(found).to_markdown(),
        _findings_table(answers).to_markdown(),
        *(f"![{caption}]({file})\n" for file, caption in plots.items()),
    ]
    return "\n".join(lines)


def _said(settings: Mapping[str, Any]) -> str:
    """Settings in a line, without the places of this machine."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name not in ("model", "tasks"))


def _scores_table(found: Results) -> Table:
    names = [row for row in found.rows if row in NAMES]
    names += [row for row in found.rows if row not in NAMES and not row.endswith("zero-shot")]
    majority = statistics.mean(m["majority"] or 0.0 for m in found.measures(names[0]).values())
    rows = [[text("majority"), score_cell(majority), Cell("")]]
    rows += [[text(_name(row)), score_cell(*found.mean(row)), whole(found.trained(row))] for row in names]
    note = "Per cent ± standard deviation over seeds. Trained: by one adaptation; zero-shot, by pretraining."
    return Table("scores", "Held-out tasks, mean", ["method", "score", "trained"], rows, note=note)


def _name(row: str) -> str:
    """What people call a row; "h2 z" is MHR-z with 2 heads."""
    if row in NAMES:
        return NAMES[row]
    variant, _, mode = row.partition(" ")
    return f"{NAMES[f'mhr {mode}']}, {variant[1:]} {'heads' if variant[0] == 'h' else 'skills'}"


def _findings_table(answers: Sequence[Answer]) -> Table:
    rows = []
    for answer in answers:
        for found in (*answer.findings, *answer.beside):
            paired = found.paired
            verdict = found.verdict if found in answer.findings else f"({found.verdict})"
            rows.append(
                [
                    text(str(answer.claim.number)),
                    text(found.question.text),
                    text(f"{100 * paired.difference:+.1f}"),
                    interval_cell(paired.interval),
                    text(" ".join(f"{100 * mean:+.1f}" for mean in paired.by_seed)),
                    text("" if found.p is None else p_number(found.p)),
                    text("" if found.power is None else f"{100 * found.power:.0f}"),
                    text(verdict),
                ]
            )
    columns = ["claim", "question", "difference", "95% interval", "by seed", "p", "power", "verdict"]
    note = (
        "Differences in points; power in per cent. Verdicts in brackets accompany their claim, are judged alone and do not "
        "decide it."
    )
    return Table("findings", "Questions", columns, rows, note=note, names=8)


# ---- plots -----------------------------------------------------------------------------------------------------------


def _plots(found: Results, docs: Path, ending: str) -> dict[str, str]:
    """Files that were drawn, each with its caption."""
    drawn: dict[str, tuple[Figure, str]] = {
        "costs": (
            _plot_costs(found),
            "Score against the parameters that one adaptation trains (parameter-matched ones side by side)",
        ),
    }
    points = {
        NAMES[row]: _by_step(found, variant)
        for variant, row in (("lora", "lora lora"), ("wide", "wide lora"), ("poly", "poly mhr"), ("mhr", "mhr mhr"))
        if _by_step(found, variant)
    }
    if points:
        drawn["alignment"] = (plot_alignment(points), "Mean cosine between the gradients of tasks, mean over seeds")
    for what, sizes in (("heads", _sizes(found, "h", SWEPT_HEADS)), ("skills", _sizes(found, "s", SWEPT_SKILLS))):
        if len(sizes) > 2:
            drawn[what] = (_plot_sizes(found, sizes, what), f"Score against the number of {what}")
    return {
        save(figure, docs / f"study_{found.setting.name}_{name}{ending}.svg").name: caption
        for name, (figure, caption) in drawn.items()
    }


def _by_step(found: Results, variant: str) -> list[tuple[int, float]]:
    """(step, mean cosine over seeds)."""
    by_step: dict[int, list[float]] = {}
    for (step, _), value in found.values(f"{variant} alignment").items():
        by_step.setdefault(int(step), []).append(value)
    return sorted((step, statistics.mean(values)) for step, values in by_step.items())


def _sizes(found: Results, letter: str, swept: Sequence[int]) -> dict[int, str]:
    """Number of heads or skills -> the variant that has it."""
    own = {size: f"{letter}{size}" for size in swept} | {8: "mhr"} | ({1: "poly"} if letter == "h" else {})
    return {size: name for size, name in sorted(own.items()) if f"{name} mhr" in found.rows}


@styled
def _plot_costs(found: Results) -> Figure:
    figure = new_figure(WIDTH, 5.0)
    axes = figure.add_subplot()
    beside: Counter[float] = Counter()
    for i, row in enumerate(row for row in found.rows if row in NAMES and not row.endswith("zero-shot")):
        mean, deviation = found.mean(row)
        trained = found.trained(row) or 1
        size = round(math.log10(trained), 1)
        place = trained * 1.12 ** beside[size]  # parameter-matched ones, side by side
        beside[size] += 1
        axes.errorbar(place, mean, yerr=deviation, fmt=marker(i), color=colour(i), capsize=3, label=NAMES[row])
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.15)
    axes.figure.legend(loc="outside lower left", ncols=2)
    axes.yaxis.set_major_formatter(per_cent())
    axes.set_xlabel("parameters that one adaptation trains")
    axes.set_ylabel("mean over tasks, per cent")
    axes.grid()
    return figure


@styled
def _plot_sizes(found: Results, sizes: Mapping[int, str], what: str) -> Figure:
    figure = new_figure(WIDTH, 3.6)
    axes = figure.add_subplot()
    for i, (mode, label) in enumerate((("mhr", "bank and routing"), ("z", "routing alone"))):
        means = [found.mean(f"{name} {mode}") for name in sizes.values()]
        spread = [deviation or 0.0 for _, deviation in means]
        axes.errorbar(
            list(sizes), [mean for mean, _ in means], yerr=spread, fmt="o-", color=colour(i), capsize=3, label=label
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes), [str(size) for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(per_cent())
    axes.set_xlabel(f"number of {what}")
    axes.set_ylabel("mean over tasks, per cent")
    axes.grid(axis="y")
    axes.figure.legend(loc="outside lower left", ncols=2)
    return figure
