"""The sections of a report, each from what was found: tables, figures and the sentences between them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from mhr.analysis.costs import cost_of
from mhr.analysis.curves import Curve, learning_curve
from mhr.analysis.inspection import Inspection, inspect_run
from mhr.analysis.scores import Scores, Standing
from mhr.files import read_json
from mhr.report import charts, plots
from mhr.report.drawing import to_inline_svg
from mhr.report.sources import Group, Material
from mhr.report.tables import Cell, Table, byte_size, decimal, listed, p_value, score, text, whole
from mhr.training.pretraining import flat


@dataclass(frozen=True, slots=True)
class Figure:
    """svg: an <svg> element; caption: what it shows, which is also said to those who cannot see it."""

    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Details:
    """Text that a reader opens."""

    title: str
    content: str


Block = str | Table | Figure | Details


@dataclass
class Section:
    """A heading with what stands under it, in order."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Looked:
    """The material with what had to be opened: label of a group -> its inspected adapter, and its curve."""

    material: Material
    inspections: dict[str, Inspection]
    curves: dict[str, Curve]

    @classmethod
    def at(cls, material: Material) -> Looked:
        """Open the runs of `material`. A run that is not done has no adapter yet and only its curve is shown."""
        inspections, curves = {}, {}
        for label, group in material.groups.items():
            if group.runs and group.runs[0].status == "done":
                inspections[label] = inspect_run(group.runs[0].path)
            curve = learning_curve(group.runs)
            if curve is not None:
                curves[label] = curve
        return cls(material, inspections, curves)


def sections(material: Material) -> list[Section]:
    """Every section that has something to say."""
    looked = Looked.at(material)
    parts = (summary, tasks, seen_and_unseen, learning, routing, alignment, transfer, costs, manifest)
    made = [
        Section(part.__name__, (part.__doc__ or "").strip().splitlines()[0].rstrip("."), list(part(looked)))
        for part in parts
    ]
    return [section for section in made if section.blocks]


# ---- scores ----------------------------------------------------------------------------------------------------------


def summary(looked: Looked) -> Iterator[Block]:
    """Summary."""
    material, scores = looked.material, looked.material.scores
    meeting = scores.meeting()
    standings = scores.standings(meeting)
    yield _what_was_compared(material, meeting)
    if standings:
        yield _who_leads(standings)
    yield from material.notes
    if not standings:
        return
    majority = scores.majority
    line = statistics.mean(majority[t] for t in meeting) if all(t in majority for t in meeting) else None
    caption = "Mean over tasks with its standard deviation over seeds"
    yield Figure(to_inline_svg(charts.plot_standings(standings, line), f"Bar chart. {caption}"), caption + ".")
    yield _standings_table(standings, len(meeting), material)


def _what_was_compared(material: Material, meeting: list[str]) -> str:
    contestants = material.scores.contestants
    runs = sum(len(group.runs) for group in material.groups.values())
    collections = listed(sorted({material.collections.get(c, "") for c in contestants} - {""}))
    if not contestants:
        return f"{_count(runs, 'run')}, none of them evaluated."
    metrics = sorted({str(material.scores.metric(task)) for task in meeting})
    by = f", by {' or '.join(m.replace('_', ' ') for m in metrics)}" if meeting and metrics != ["score"] else ""
    where = f" of {collections}" if collections else ""
    return (
        f"{_count(len(contestants), 'contestant')} on {_count(len(meeting), 'task')}{where}{by}; {_count(runs, 'run')}."
    )


def _who_leads(standings: list[Standing]) -> str:
    first = standings[0]
    seeds = f" ± {100 * first.spread:.1f} over {first.seeds} seeds" if first.spread is not None else ""
    told = f"{first.contestant}: {100 * first.mean:.1f}{seeds}"
    if len(standings) == 1:
        return told + "."
    second = standings[1]
    if second.behind is None or second.behind.difference == 0:
        return f"{told}, level with {second.contestant}."
    behind = second.behind
    sure = "" if behind.p < 0.05 else ", which may be chance"
    return (
        f"{first.contestant} leads with {100 * first.mean:.1f}{seeds}; {second.contestant} is "
        f"{-100 * behind.difference:.1f} points behind ({behind.worse} worse and {behind.better} better of {behind.n} pairs of "
        f"task and seed, {p_value(behind.p)}){sure}."
    )


def _standings_table(standings: list[Standing], n_tasks: int, material: Material) -> Table:
    rows = [
        [
            text(s.contestant),
            text(material.groups[s.contestant].protocol),
            score(s.mean, s.spread, best=i == 0),
            score(s.by_category),
            whole(s.best_on),
            whole(s.seeds),
            Cell("") if s.behind is None else Cell(f"{100 * s.behind.difference:+.1f}", s.behind.difference),
            Cell("") if s.behind is None else Cell(p_value(s.behind.p).removeprefix("p = "), s.behind.p),
        ]
        for i, s in enumerate(standings)
    ]
    return Table(
        "standings",
        f"Contestants over {_count(n_tasks, 'task')}",
        ["contestant", "protocol", "mean over tasks", "mean over categories", "best on", "seeds", "to the first", "p"],
        rows,
        names=2,
        note="Per cent ± standard deviation over seeds. p: two-sided sign-flip permutation test against the first, paired over "
        "tasks and seeds; seeds that share a pretrained model are not independent of one another, so it flatters.",
    )


def tasks(looked: Looked) -> Iterator[Block]:
    """Tasks and categories."""
    scores = looked.material.scores
    contestants = scores.contestants
    if not contestants:
        return
    categories = scores.by_category
    if len(categories) > 1:
        rows = [[text(name or "(none)"), whole(len(own)), *_row(scores, own)] for name, own in categories.items()]
        yield Table("categories", "By category", ["category", "tasks", *contestants], rows)
    rows = [
        [text(task), text(category), score(scores.majority.get(task)), *_row(scores, [task])]
        for category, own in categories.items()
        for task in own
    ]
    meeting = scores.meeting()
    foot = [text(f"mean over {len(meeting)} tasks"), text(""), Cell(""), *_row(scores, meeting)]
    yield Table(
        "tasks",
        "By task",
        ["task", "category", "majority", *contestants],
        rows,
        [foot] if len(meeting) > 1 else [],
        note="Per cent ± standard deviation over seeds; bold is the best of a row. Majority: always giving the most frequent "
        "training answer.",
        names=2,
    )


def _row(scores: Scores, own: list[str]) -> list[Cell]:
    """The mean of every contestant over these tasks, where it was judged on all of them."""
    found = [scores.mean(c, own)[:2] if own and all(scores.of(c, t) for t in own) else None for c in scores.contestants]
    top = max((mean for mean, _ in filter(None, found)), default=None)
    several = sum(cell is not None for cell in found) > 1
    return [score(None) if f is None else score(*f, best=several and f[0] == top) for f in found]


def seen_and_unseen(looked: Looked) -> Iterator[Block]:
    """Seen and unseen tasks."""
    scores = looked.material.scores
    rows = []
    for label, group in looked.material.groups.items():
        known = _pretrained_on(group)
        judged = [task for task in scores.tasks if scores.of(label, task)]
        seen = [task for task in judged if task in known]
        if known and seen and len(seen) < len(judged):
            unseen = [task for task in judged if task not in known]
            values = [scores.mean(label, part)[0] for part in (seen, unseen)]
            rows.append([text(label), whole(len(seen)), score(values[0]), whole(len(unseen)), score(values[1])])
    if rows:
        columns = ["contestant", "seen tasks", "mean on seen", "unseen tasks", "mean on unseen"]
        yield Table("seen_and_unseen", "Tasks of pretraining and others", columns, rows)


def _pretrained_on(group: Group) -> set[str]:
    """Tasks that the bank of a group was pretrained on, where that can still be read."""
    if group.pretrained:
        return set(group.info.get("tasks", []))
    source = Path(str(group.info.get("source", ""))) / "run.json"
    return set(read_json(source).get("tasks", [])) if source.is_file() else set()


# ---- training --------------------------------------------------------------------------------------------------------


def learning(looked: Looked) -> Iterator[Block]:
    """Learning curves."""
    kinds: dict[str, Callable[[Group], bool]] = {
        "Pretraining": lambda group: group.pretrained,
        "Adapting, mean and range over tasks and seeds": lambda group: not group.pretrained,
    }
    for title, of_kind in kinds.items():
        own = {label: curve for label, curve in looked.curves.items() if of_kind(looked.material.groups[label])}
        own = {label: curve for label, curve in own.items() if len(curve.steps) > 1}
        if own:
            yield Figure(
                to_inline_svg(charts.plot_curves(own), f"Line chart. {title}: training loss by step"), title + "."
            )
    rows = [
        [text(label), whole(curve.runs), whole(curve.steps[-1]), decimal(curve.mean[0]), decimal(curve.mean[-1])]
        for label, curve in looked.curves.items()
    ]
    if rows:
        yield Table(
            "learning", "Training loss", ["contestant", "runs", "last step", "first logged", "last logged"], rows
        )


# ---- what was learnt -------------------------------------------------------------------------------------------------


def routing(looked: Looked) -> Iterator[Block]:
    """Routing."""
    routed = {
        label: found
        for label, found in looked.inspections.items()
        if found.routed and looked.material.groups[label].pretrained
    }
    if not routed:
        return
    rows = []
    for label, found in routed.items():
        own, agreed = found.routing, found.agreement
        rows.append(
            [
                text(label),
                whole(len(own.tasks)),
                whole(own.n_heads),
                whole(own.n_skills),
                decimal(statistics.mean(own.entropy.values())),
                decimal(statistics.mean(own.effective_skills.values()), 2),
                decimal(statistics.mean(own.discreteness.values())),
                Cell("")
                if agreed is None
                else Cell(f"{agreed.correlation:.2f} ({p_value(agreed.p)})", agreed.correlation),
            ]
        )
    columns = [
        "run",
        "tasks",
        "heads",
        "skills",
        "entropy",
        "effective skills",
        "discreteness",
        "agreement with true skills",
    ]
    yield Table(
        "routing",
        "How sharply tasks choose",
        columns,
        rows,
        note="Means over tasks, layers and heads. Entropy: 1 is uniform, 0 one skill. Effective skills: exp of the entropy. "
        "Discreteness: 0 is uniform, 1 one skill. Agreement: rank correlation between how alike two tasks are routed and how "
        "many skills of the built-in suite they share, with a one-sided permutation test over task names.",
    )
    entropy = "Entropy of the routing by layer"
    yield Figure(to_inline_svg(plots.plot_entropy({k: f.routing for k, f in routed.items()}), entropy), entropy + ".")
    for label, found in routed.items():
        caption = f"{label}: weights of the skills by task, mean over layers and heads"
        yield Figure(to_inline_svg(plots.plot_skills(found.routing), f"Heat map. {caption}"), caption + ".")
        if len(found.tasks) > 1:
            caption = f"{label}: cosine of the tasks' routing, measured from uniform, in the order of its tree"
            yield Figure(to_inline_svg(plots.plot_similarity(found.routing), f"Heat map. {caption}"), caption + ".")


def alignment(looked: Looked) -> Iterator[Block]:
    """Gradient alignment."""
    points: dict[str, list[tuple[int, float]]] = {}
    last: dict[str, dict[str, Any]] = {}
    for label, group in looked.material.groups.items():
        for found in group.inspections:
            for one in found.get("alignment", []):
                if one["mean"] is not None:
                    points.setdefault(label, []).append((one["step"], one["mean"]))
                last[label] = one
    if not points:
        return
    caption = "Mean cosine between the gradients of pairs of tasks, by step of training"
    yield Figure(to_inline_svg(charts.plot_alignment(points), f"Line chart. {caption}"), caption + ".")
    rows = [[text(label), whole(step), decimal(mean)] for label, own in points.items() for step, mean in own]
    yield Table(
        "alignment",
        "Mean cosine between tasks",
        ["run", "step", "mean cosine"],
        rows,
        note="One gradient per task, of its mean loss over fixed training examples, with respect to the skills of the bank, "
        "routed as in evaluation, without dropout.",
    )
    rows = [
        [text(label), text(layer), decimal(value)]
        for label, one in last.items()
        for layer, value in one["layers"].items()
    ]
    yield Table("alignment_layers", "By layer, at the last point", ["run", "layer", "mean cosine"], rows, names=2)
    for label, one in last.items():
        caption = f"{label}: cosine of the tasks' gradients after {one['step']} steps"
        drawn = charts.plot_cosines(one["tasks"], torch.tensor(one["cosines"]))
        yield Figure(to_inline_svg(drawn, f"Heat map. {caption}"), caption + ".")


def transfer(looked: Looked) -> Iterator[Block]:
    """Transfer between tasks."""
    matrices: dict[str, dict[str, dict[str, float]]] = {}
    for label, group in looked.material.groups.items():
        for found in group.inspections:
            if found.get("transfer"):
                matrices[label] = found["transfer"]
    gathered: dict[tuple[str, str, str], list[float]] = {}
    for one in looked.material.scores.transfer:
        gathered.setdefault((one.contestant, str(one.trained_on), one.task), []).append(one.value)
    for (label, row, column), values in gathered.items():
        matrices.setdefault(label, {}).setdefault(row, {})[column] = statistics.mean(values)
    for i, (label, matrix) in enumerate(matrices.items()):
        caption = f"{label}: score on each task of what was trained on another"
        yield Figure(to_inline_svg(charts.plot_transfer(matrix), f"Heat map. {caption}"), caption + ".")
        columns = list(dict.fromkeys(task for row in matrix.values() for task in row))
        rows = [[text(row), *(score(own.get(column)) for column in columns)] for row, own in matrix.items()]
        yield Table(f"transfer_{i}", f"Transfer, {label}", ["trained on", *columns], rows, note="Per cent.")


# ---- costs and manifest ----------------------------------------------------------------------------------------------


def costs(looked: Looked) -> Iterator[Block]:
    """Parameters and bytes."""
    scores = looked.material.scores
    meeting = scores.meeting()
    rows, found = [], {}
    for label, group in looked.material.groups.items():
        inspected = looked.inspections.get(label)
        trained = group.trained if group.trained is not None else inspected.trained if inspected else None
        if trained is None:
            continue
        cost = cost_of(inspected) if inspected else None
        rows.append(
            [
                text(label),
                whole(trained),
                byte_size(cost.bytes if cost else None),
                whole(cost.tasks if cost else None),
                byte_size(cost.bytes_per_task if cost else None),
                whole(cost.another if cost else None),
                byte_size(cost.another_bytes if cost else None),
            ]
        )
        if trained and label in scores.contestants and meeting and not group.pretrained:
            found[label] = (trained, *scores.mean(label, meeting)[:2])
    if not rows:
        return
    yield Table(
        "costs",
        "Parameters and bytes",
        [
            "run",
            "trained",
            "adapter",
            "tasks",
            "bytes per task",
            "numbers for one more task",
            "bytes for one more task",
        ],
        rows,
        note="Adapter: the numbers it stores. One more task: what is not shared with the pretrained run; a routing row after "
        "pretraining, all that was trained after adapting.",
    )
    if len(found) > 1:
        caption = "Mean over tasks against the parameters that one adaptation trains"
        yield Figure(to_inline_svg(charts.plot_costs(found), f"Scatter chart. {caption}"), caption + ".")


def manifest(looked: Looked) -> Iterator[Block]:
    """Runs."""
    groups = {label: group for label, group in looked.material.groups.items() if group.runs}
    if not groups:
        return
    rows = []
    for label, group in groups.items():
        info = group.info
        rows.append(
            [
                text(label),
                text(str(group.path)),
                text(str(info.get("base", ""))),
                text(", ".join(sorted({run.status for run in group.runs}))),
                whole(len(group.runs)),
                whole(len({task for run in group.runs for task in run.info.get("tasks", [])})),
                text(", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())),
            ]
        )
    yield Table(
        "runs", "What was run", ["run", "folder", "base model", "status", "runs", "tasks", "versions"], rows, names=4
    )
    settings = {label: flat(_config(group)) for label, group in groups.items()}
    keys = list(dict.fromkeys(key for own in settings.values() for key in own))
    differing = [key for key in keys if len({str(own.get(key)) for own in settings.values()}) > 1]
    if differing:
        rows = [[text(key), *(text(_shown(own, key)) for own in settings.values())] for key in differing]
        yield Table("settings", "Settings that differ", ["setting", *settings], rows, names=len(settings) + 1)
    for label, group in groups.items():
        yield Details(f"All settings of {label}", yaml.safe_dump(_config(group), sort_keys=False, allow_unicode=True))


def _config(group: Group) -> dict[str, Any]:
    return group.info.get("config") or {}


def _shown(settings: dict[str, Any], key: str) -> str:
    return "–" if key not in settings else "" if settings[key] is None else str(settings[key])


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
