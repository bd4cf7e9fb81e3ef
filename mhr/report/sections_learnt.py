"""How training went, and what was learnt: curves, routing, gradient alignment, transfer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from mhr.analysis.curves import validation_curve
from mhr.analysis.equal_loss import at_equal_loss
from mhr.analysis.inspection import Inspection
from mhr.report import charts, plots
from mhr.report.blocks import Block, Figure, Looked
from mhr.report.figures import to_inline_svg
from mhr.report.material import Group
from mhr.report.tables import Cell, Table, decimal, p_value, score_cell, text, whole


def learning(looked: Looked) -> Iterator[Block]:
    """Learning curves."""
    kinds: dict[str, Callable[[Group], bool]] = {
        "Pretraining": lambda group: group.pretrained,
        "Adapting, mean and range over tasks and seeds": lambda group: not group.pretrained,
    }
    for title, of_kind in kinds.items():
        curves = {label: curve for label, curve in looked.curves.items() if of_kind(looked.material.groups[label])}
        curves = {label: curve for label, curve in curves.items() if len(curve.steps) > 1}
        if curves:
            # One curve has no legend.
            caption = f"{title}: {next(iter(curves))}" if len(curves) == 1 else title
            drawn = charts.plot_curves(curves)
            yield Figure(to_inline_svg(drawn, f"Line chart. {caption}: training loss by step"), caption + ".")
    rows = [
        [text(label), whole(curve.runs), whole(curve.steps[-1]), decimal(curve.mean[0]), decimal(curve.mean[-1])]
        for label, curve in looked.curves.items()
    ]
    if rows:
        yield Table(
            "learning", "Training loss", ["contestant", "runs", "last step", "first logged", "last logged"], rows
        )
    yield from _validation(looked)


def _validation(looked: Looked) -> Iterator[Block]:
    """What pretraining runs found on the validation examples of their training tasks."""
    found = {
        label: {measure: validation_curve(group.runs, measure) for measure in ("loss", "score")}
        for label, group in looked.material.groups.items()
        if group.pretrained
    }
    for measure, title in (("loss", "validation loss"), ("score", "validation score")):
        curves = {label: curve for label, of in found.items() if (curve := of[measure]) and len(curve.steps) > 1}
        if curves:
            caption = f"Pretraining: {title}, mean over tasks"
            yield Figure(
                to_inline_svg(charts.plot_curves(curves, title), f"Line chart. {caption}, by step"), caption + "."
            )
    rows = []
    for label, of in found.items():
        losses, scores = of["loss"], of["score"]
        if losses is None:
            continue
        run = looked.material.groups[label].runs[0]
        best = run.info.get("best") or {}
        score = score_cell(scores.mean[-1] if scores else None)
        best_score = score_cell(best.get("score"))
        kept = text("best" if best.get("kept") else "last" if best else "")
        rows.append(
            [text(label), whole(len(losses.steps)), decimal(losses.mean[-1]), score, whole(best.get("step"))]
            + [decimal(best.get("loss")), best_score, kept]
        )
    if rows:
        yield Table(
            "validation",
            "Validation while pretraining",
            ["run", "validations", "last loss", "last score", "best step", "best loss", "best score", "result"],
            rows,
            note="On examples of the training tasks that were not trained on; means over tasks. Loss: per target token, or per "
            "example where choices are ranked. Accuracy: per cent, by ranking, over tasks with choices. Result: which step's "
            "weights the run kept.",
        )


def routing(looked: Looked) -> Iterator[Block]:
    """Routing."""
    routed = {
        label: inspection
        for label, inspection in looked.inspections.items()
        if inspection.routed and looked.material.groups[label].pretrained
    }
    if not routed:
        return
    suite = any(inspection.agreement for inspection in routed.values())
    rows = []
    for label, inspection in routed.items():
        routing = inspection.routing
        shape = [whole(len(routing.tasks)), whole(routing.n_heads), whole(routing.n_skills)]
        measures = [
            decimal(statistics.mean(routing.entropy.values())),
            decimal(statistics.mean(routing.effective_skills.values()), 2),
            decimal(statistics.mean(routing.discreteness.values())),
        ]
        rows.append([text(label), *shape, *measures, *([_agreement(inspection)] if suite else [])])
    columns = ["run", "tasks", "heads", "skills", "entropy", "effective skills", "discreteness"]
    yield Table(
        "routing",
        "How sharply tasks choose",
        [*columns, *(["agreement with true skills"] if suite else [])],
        rows,
        note="Means over tasks, layers and heads. Entropy: 1 is uniform, 0 one skill. Effective skills: exp of the entropy. "
        "Discreteness: 0 is uniform, 1 one skill."
        + suite
        * " Agreement: rank correlation between how alike two tasks are routed and how many skills of the built-in suite "
        "they share, with a one-sided permutation test over task names.",
    )
    entropy = "Entropy of the routing by layer"
    yield Figure(
        to_inline_svg(plots.plot_entropy({k: f.routing for k, f in routed.items()}), entropy), entropy + ".", wide=True
    )
    for label, inspection in routed.items():
        caption = f"{label}: weights of the skills by task, mean over layers and heads"
        yield Figure(
            to_inline_svg(plots.plot_skills(inspection.routing), f"Heat map. {caption}"), caption + ".", wide=True
        )
        if len(inspection.tasks) > 1:
            caption = f"{label}: cosine of the tasks' routing, measured from uniform, in the order of its tree"
            yield Figure(
                to_inline_svg(plots.plot_similarity(inspection.routing), f"Heat map. {caption}"),
                caption + ".",
                wide=True,
            )


def _agreement(inspection: Inspection) -> Cell:
    agreed = inspection.agreement
    if agreed is None:
        return Cell("")
    return Cell(f"{agreed.correlation:.2f} ({p_value(agreed.p)})", agreed.correlation)


def alignment(looked: Looked) -> Iterator[Block]:
    """Gradient alignment."""
    found = {
        label: [one for inspection in group.inspections for one in inspection.get("alignment", [])]
        for label, group in looked.material.groups.items()
    }
    found = {label: sorted(own, key=lambda one: one["step"]) for label, own in found.items() if own}
    # Inspections of earlier versions know the cosine in the bank's coordinates only.
    known = all("mixed" in one for own in found.values() for one in own)
    of, key = ("mixed factors", "mixed") if known else ("bank", "mean")
    steps = {
        label: [(one["step"], one[key]) for one in own if one[key] is not None]
        for label, own in found.items()
        if any(one[key] is not None for one in own)
    }
    if not steps:
        return
    caption = f"Mean cosine between the gradients of pairs of tasks ({of}), by step of training"
    yield Figure(to_inline_svg(charts.plot_alignment(steps), f"Line chart. {caption}"), caption + ".")
    rows = [
        [text(label), whole(one["step"]), decimal(one.get("loss")), decimal(one["mean"]), decimal(one.get("mixed"))]
        for label, own in found.items()
        for one in own
    ]
    yield Table(
        "alignment",
        "Mean cosine between tasks",
        ["run", "step", "loss", "mean cosine, bank", "mean cosine, mixed factors"],
        rows,
        note="One gradient per task, of its mean loss over fixed training examples, routed as in evaluation, without dropout. Bank: "
        "with respect to its skills, where tasks that are routed differently are apart for that alone. Mixed factors: with respect to what a "
        "task uses, the sum over skills. Loss: mean over tasks.",
    )
    yield from _at_equal_loss(found)
    last = {label: own[-1] for label, own in found.items()}
    layers = list(dict.fromkeys(layer for one in last.values() for layer in one["layers"]))
    rows = [[text(layer), *(decimal(one["layers"].get(layer)) for one in last.values())] for layer in layers]
    yield Table("alignment_layers", "By layer, at the last point, bank", ["layer", *last], rows)
    for label, one in last.items():
        caption = f"{label}: cosine of the tasks' gradients after {one['step']} steps"
        drawn = charts.plot_cosines(one["tasks"], torch.tensor(one["cosines"]))
        yield Figure(to_inline_svg(drawn, f"Heat map. {caption}"), caption + ".", wide=True)


def _at_equal_loss(found: Mapping[str, list[dict[str, Any]]]) -> Iterator[Block]:
    """Runs are comparable at losses that all of them pass while they still learn."""
    runs = {
        label: [(one["loss"], one["mixed"]) for one in points if one.get("mixed") is not None]
        for label, points in found.items()
    }
    without = [label for label, points in runs.items() if not points]
    runs = {label: points for label, points in runs.items() if points}
    if without and runs:
        yield f"Without mixed factors, for their weights do not sum to 1, or an earlier version inspected them: {', '.join(without)}."
    if len(runs) < 2:
        return
    compared = at_equal_loss(list(runs.values()))
    if not compared:
        yield (
            "The runs pass no loss in common while they still learn, so that their alignment cannot be compared: keep more checkpoints "
            "(train.save_every, train.keep_checkpoints)."
        )
        return
    rows = [[decimal(loss), *map(decimal, cosines)] for loss, cosines in compared]
    yield Table(
        "alignment_at_equal_loss",
        "Mean cosine of the mixed factors at equal loss",
        ["loss", *runs],
        rows,
        names=0,
        note="Between checkpoints by a straight line. What a run does in the last tenth of its fall is left out: near a stationary point the "
        "gradients of T tasks sum to about 0, and the mean of their cosines is about -1 / (T - 1), for every method.",
    )


def transfer(looked: Looked) -> Iterator[Block]:
    """Transfer between tasks."""
    matrices: dict[str, dict[str, dict[str, float]]] = {}
    for label, group in looked.material.groups.items():
        for inspection in group.inspections:
            if inspection.get("transfer"):
                matrices[label] = inspection["transfer"]
    gathered: dict[tuple[str, str, str], list[float]] = {}
    for one in looked.material.scores.transfer:
        gathered.setdefault((one.contestant, str(one.trained_on), one.task), []).append(one.value)
    for (label, row, column), values in gathered.items():
        matrices.setdefault(label, {}).setdefault(row, {})[column] = statistics.mean(values)
    for i, (label, matrix) in enumerate(matrices.items()):
        columns = list(dict.fromkeys(task for row in matrix.values() for task in row))
        whole_rows = all(len(row) == len(columns) for row in matrix.values())
        missing = "" if whole_rows else ", grey where it was not judged"
        caption = f"{label}: score on each task of what was trained on another{missing}"
        yield Figure(to_inline_svg(charts.plot_transfer(matrix), f"Heat map. {caption}"), caption + ".", wide=True)
        rows = [[text(row), *(score_cell(scores.get(column)) for column in columns)] for row, scores in matrix.items()]
        yield Table(f"transfer_{i}", f"Transfer, {label}", ["trained on", *columns], rows, note="Per cent.")
