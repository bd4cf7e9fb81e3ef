"""Who won, on what, and by how much."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from mhr.analysis.compare import Paired
from mhr.analysis.power import MOST_SEEDS, detectable, power, seeds_for
from mhr.analysis.scores import Scores, Standing
from mhr.analysis.seed_tests import LEVEL
from mhr.analysis.verdicts import MATTERS
from mhr.evaluation.metrics import metrics
from mhr.files import read_json
from mhr.report import charts
from mhr.report.blocks import Block, Figure, Looked
from mhr.report.figures import to_inline_svg
from mhr.report.material import Group, Material
from mhr.report.tables import (
    Cell,
    Table,
    count,
    decimal,
    first_names,
    interval_cell,
    p_number,
    p_value,
    points_cell,
    score_cell,
    text,
    whole,
)


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
    collections = first_names(sorted({material.collections.get(c, "") for c in contestants} - {""}))
    if not contestants:
        return f"{count(runs, 'run')}, none of them evaluated."
    metrics = sorted({str(material.scores.metric(task)) for task in meeting})
    by = f", by {' or '.join(m.replace('_', ' ') for m in metrics)}" if meeting and metrics != ["score"] else ""
    where = f" of {collections}" if collections else ""
    return f"{count(len(contestants), 'contestant')} on {count(len(meeting), 'task')}{where}{by}; {count(runs, 'run')}."


def _who_leads(standings: list[Standing]) -> str:
    first = standings[0]
    seeds = f" ± {100 * first.spread:.1f} over {first.seeds} seeds" if first.spread is not None else ""
    leader = f"{first.contestant}: {100 * first.mean:.1f}{seeds}"
    if len(standings) == 1:
        return leader + "."
    level = [s.contestant for s in standings[1:] if s.mean == first.mean]
    if level:
        return f"{leader}, level with {first_names(level)}."
    second = standings[1]
    behind = second.behind
    assert behind is not None, "they meet"
    # The difference is over seeds that both have, on which the second may be ahead.
    alike = first.seeds == second.seeds == behind.seeds
    where = "" if alike or second.p is None else f"on the {count(behind.seeds, 'seed')} that both have "
    far = f"{100 * abs(behind.difference):.1f} points {'ahead' if behind.difference > 0 else 'behind'}"
    return (
        f"{first.contestant} leads with {100 * first.mean:.1f}{seeds}; {where}{second.contestant} is {far} "
        f"({_how_sure(first, second)})."
    )


def _how_sure(first: Standing, standing: Standing) -> str:
    """The interval of a difference to the first, and whether it is significant; of fewer than two common seeds nobody can say."""
    behind = standing.behind
    assert behind is not None, "they meet"
    if standing.p is None:
        seeds = "one seed" if max(first.seeds, standing.seeds) == 1 else "fewer than two seeds in common"
        return f"{seeds}, which cannot tell whether others would agree"
    spread = "the same everywhere"
    if behind.interval is not None:
        low, high = sorted((100 if behind.difference > 0 else -100) * end for end in behind.interval)
        spread = f"95% interval {low:.1f} to {high:.1f}"
    sure = "" if standing.p < LEVEL else ", no significant difference"
    return f"{spread}, {p_value(standing.p)} over {count(behind.seeds, 'seed')}{sure}"


def _standings_table(standings: list[Standing], n_tasks: int, material: Material) -> Table:
    protocols = [material.groups[s.contestant].protocol for s in standings]
    with_protocol = any(protocols)
    rows = [
        [
            text(s.contestant),
            *([text(protocol)] if with_protocol else []),
            score_cell(s.mean, s.spread, best=i == 0),
            score_cell(s.by_category),
            whole(s.best_on),
            whole(s.seeds),
            Cell("") if s.behind is None else Cell(f"{100 * s.behind.difference:+.1f}", s.behind.difference),
            interval_cell(s.behind.interval if s.behind else None),
            Cell("") if s.p is None else Cell(p_number(s.p), s.p),
        ]
        for i, (s, protocol) in enumerate(zip(standings, protocols, strict=True))
    ]
    return Table(
        "standings",
        f"Contestants over {count(n_tasks, 'task')}",
        [
            "contestant",
            *(["protocol"] if with_protocol else []),
            "mean over tasks",
            "mean over categories",
            "best on",
            "seeds",
            "difference to the first",
            "95% interval",
            "p",
        ],
        rows,
        names=1 + with_protocol,
        note="Per cent ± standard deviation over seeds. Interval of the difference: over the seeds that both have, by "
        "a crossed bootstrap over seeds and tasks. p: t test "
        "over the seeds' means, in which the tasks of a seed count once, adjusted (Holm) for all pairs of contestants, since which one is first is seen in the same scores. Seeds that share "
        "a pretrained model say nothing about other pretrained models.",
    )


def plans(looked: Looked) -> Iterator[Block]:
    """What more seeds would show."""
    scores = looked.material.scores
    standings = scores.standings(scores.meeting())
    rows = [_plan_row(s.contestant, s.behind) for s in standings if s.behind and s.behind.spread is not None]
    if rows:
        yield Table(
            "power",
            f"Difference to {standings[0].contestant}: what these seeds can find, and how many it takes",
            [
                "contestant",
                "seeds",
                "varies by seed",
                "residual",
                "chance to find 2 points",
                "found with 80%",
                "seeds for 2 points",
                "seeds for what was seen",
            ],
            rows,
            note="Of a two-sided t test over seed means on as many tasks, at level .05 without adjustment. Varies by seed, residual: standard "
            "deviations, in points, of what all tasks of a seed have in common, and of what is left of a difference.",
        )


def _plan_row(contestant: str, behind: Paired) -> list[Cell]:
    sd, parts = behind.expected_spread, behind.parts
    assert sd is not None, "there are two seeds"
    needed, seen = seeds_for(MATTERS, sd), seeds_for(behind.difference, sd) if behind.difference else None
    return [
        text(contestant),
        whole(behind.seeds),
        points_cell(parts.seeds if parts else sd),
        points_cell(parts.residual if parts else None),
        score_cell(power(MATTERS, sd, behind.seeds)),
        points_cell(detectable(sd, behind.seeds)),
        Cell(f"> {MOST_SEEDS:,}") if needed is None else whole(needed),
        Cell(f"> {MOST_SEEDS:,}") if seen is None else whole(seen),
    ]


def tasks(looked: Looked) -> Iterator[Block]:
    """Tasks and categories."""
    scores = looked.material.scores
    contestants = scores.contestants
    if not contestants:
        return
    categories = scores.by_category
    if len(categories) > 1:
        rows = [[text(name or "(none)"), whole(len(tasks)), *_row(scores, tasks)] for name, tasks in categories.items()]
        yield Table("categories", "By category", ["category", "tasks", *contestants], rows)
    rows = [
        [text(task), text(category), score_cell(scores.majority.get(task)), *_row(scores, [task])]
        for category, tasks in categories.items()
        for task in tasks
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
    yield from _every_metric(scores)


def _every_metric(scores: Scores) -> Iterator[Table]:
    """The table of tasks that were judged by more than one metric, if there are any."""
    pairs = {task: _measured(scores, task) for task in scores.tasks}
    rows = [
        [text(task), text(metric), *(_measure(scores.measured(c, task, metric), metric) for c in scores.contestants)]
        for task, names in pairs.items()
        if len(names) > 1
        for metric in names
    ]
    if rows:
        yield Table(
            "metrics",
            "By task and metric",
            ["task", "metric", *scores.contestants],
            rows,
            note="Means over seeds; the first metric of a task gives its score. Per cent, but for NIST and squared errors.",
            names=2,
        )


def _measured(scores: Scores, task: str) -> list[str]:
    """The metrics that a task was judged by, that of its score first."""
    names = [name for s in scores.rows.values() if s.task == task for name in (s.metric, *s.measures)]
    return [name for name in dict.fromkeys(names) if name != "score"]


def _measure(values: list[float], metric: str) -> Cell:
    if not values:
        return Cell("")
    mean = statistics.mean(values)
    plain = metric in metrics and not metrics[metric].scored
    return decimal(mean) if plain else score_cell(mean)


def _row(scores: Scores, tasks: list[str]) -> list[Cell]:
    """The mean of every contestant over these tasks, where it was judged on all of them."""
    means = [
        scores.mean(c, tasks)[:2] if tasks and all(scores.of(c, t) for t in tasks) else None for c in scores.contestants
    ]
    top = max((mean for mean, _ in filter(None, means)), default=None)
    several = len({cell[0] for cell in means if cell}) > 1
    return [score_cell(None) if f is None else score_cell(*f, best=several and f[0] == top) for f in means]


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
            rows.append(
                [text(label), whole(len(seen)), score_cell(values[0]), whole(len(unseen)), score_cell(values[1])]
            )
    if rows:
        columns = ["contestant", "seen tasks", "mean on seen", "unseen tasks", "mean on unseen"]
        yield Table("seen_and_unseen", "Tasks of pretraining and others", columns, rows)


def _pretrained_on(group: Group) -> set[str]:
    """Tasks that the bank of a group was pretrained on, where that can still be read."""
    if group.pretrained:
        return set(group.info.get("tasks", []))
    source = Path(str(group.info.get("source", ""))) / "run.json"
    return set(read_json(source).get("tasks", [])) if source.is_file() else set()
