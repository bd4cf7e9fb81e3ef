"""Which metrics judge a task, and what they say of the answers to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

from mhr.data.example import Example, Task
from mhr.errors import DataError
from mhr.evaluation.metrics import Judged, Metric, Undefined, majority_answer, majority_baseline, metrics
from mhr.evaluation.metrics.metric import CHOICE, NUMBER, TEXT
from mhr.evaluation.result import Prediction
from mhr.task_heads import CLASSIFY, REGRESS, TaskHead

NO_CHOICES = "has no choices to rank"
NO_GENERATION = "and an encoder cannot generate"


@dataclass(slots=True)
class Plan:
    """How one task is judged.

    names    its metrics, the one that gives its score first: of those that fit, the first that is a share or a correlation
    picked   those of them that judge what is picked: a ranked choice, the class or the number of a head; the others judge generated text
    misfits  metric that was named -> why it does not fit the data
    skipped  why the task is not judged at all, "" where it is
    """

    names: list[str] = field(default_factory=list)
    picked: set[str] = field(default_factory=set)
    misfits: dict[str, str] = field(default_factory=dict)
    skipped: str = ""

    @property
    def rank(self) -> bool:
        return bool(self.picked)

    @property
    def generate(self) -> bool:
        return any(name not in self.picked for name in self.names)


def plan_task(
    task: Task,
    examples: Sequence[Example],
    asked: Sequence[str] | None,
    generates: bool,
    head: TaskHead | None = None,
) -> Plan:
    """How `examples` of a task are judged: by the metrics that are `asked` for, otherwise by those that its data name, otherwise by
    accuracy where all have choices, correlations and squared error where a head gives numbers, and exact match and Rouge-L for the others. Metrics that do
    not fit are left out; a task without one that may be a score is skipped.

    generates  whether the model can answer in words
    head       what answers the task, where the model has heads
    """
    plan = Plan()
    if not examples:
        return plan
    number = head is not None and head.kind == REGRESS
    if head is not None and head.kind == CLASSIFY:
        examples = [example if example.choices else replace(example, choices=head.labels) for example in examples]
    choices = not number and all(example.choices for example in examples)
    usual = ["pearson", "spearman", "mse"] if number else ["accuracy"] if choices else ["exact_match", "rouge_l"]
    reasons: list[str] = []
    for name in dict.fromkeys(asked or task.metrics or usual):
        metric = metrics[name]
        picks = metric.judges == CHOICE or (metric.judges == NUMBER and (choices or number))
        if metric.judges == CHOICE and number:
            plan.misfits[name] = "is of choices, and the task's head gives numbers"
        elif metric.misfit is not None and (why := metric.misfit(examples)):
            plan.misfits[name] = why
        elif picks and not choices and not number:
            reasons.append(NO_CHOICES if generates else f"{NO_CHOICES}, {NO_GENERATION}")
        elif asked and metric.judges == TEXT and not generates and (choices or number):
            plan.misfits[name] = f"is of texts that are generated, {NO_GENERATION}"
        elif not picks and not generates:
            what = "has choices to rank, which no metric asks for" if choices else NO_CHOICES
            what = "has a head that gives numbers" if number else what
            reasons.append(f"{what}, {NO_GENERATION}")
        else:
            plan.names.append(name)
            plan.picked |= {name} if picks else set()
    main = next((name for name in plan.names if metrics[name].scored), None)
    if main is None:
        left = [*(f"{name} {why}" for name, why in plan.misfits.items()), *reasons][:1]
        if plan.names:
            left.append(f"no score can be made of {' and '.join(plan.names)}: name a share or a correlation too")
        plan.skipped = ", and ".join(left)
        plan.names, plan.picked = [], set()
    plan.names.sort(key=lambda name: name != main)
    return plan


def fitting(named: Sequence[str], examples: Sequence[Example]) -> tuple[str, ...]:
    """The metrics of `named` that fit examples, of which there is at least one."""
    return tuple(name for name in named if (misfit := metrics[name].misfit) is None or not misfit(examples))


def missing_parts(task: Task) -> str:
    """What a task without examples to judge lacks, where it is judged on parts of a split apart; otherwise ""."""
    parts = [metrics[name].part for name in task.metrics if metrics[name].part]
    splits = " nor ".join(f"validation_{part} (dev_{part})" for part in parts)
    return f": it has neither the split {splits}" if parts else ""


def refuse_misfits(plans: Mapping[str, Plan], asked: Sequence[str] | None) -> None:
    """Raise DataError for a metric that was asked for and fits the data of none of the tasks."""
    for name in asked or ():
        judged = [plan for plan in plans.values() if name in plan.names]
        why = {task: plan.misfits[name] for task, plan in plans.items() if name in plan.misfits}
        if why and not judged:
            task, reason = next(iter(why.items()))
            more = f" (nor does it fit {len(why) - 1} other tasks)" if len(why) > 1 else ""
            raise DataError(f"metric {name!r} does not fit task {task!r}{more}: it {reason}")


def measure(task: Task, plan: Plan, picked: Sequence[Prediction], written: Sequence[Prediction]) -> dict[str, Any]:
    """The measures of a task, see `EvaluationResult.tasks`.

    picked, written  answers that were ranked (or come from a head), and that were generated; of the same examples where there are both
    """
    judged = picked or written
    found: dict[str, float] = {}
    remarks = [f"{name} {why}" for name, why in plan.misfits.items()]
    for name in plan.names:
        metric = metrics[name]
        predictions = picked if name in plan.picked else written
        found[name] = _value(metric, _judged(predictions, [p.answer for p in predictions], metric.part), remarks)
    main = metrics[plan.names[0]]
    measures = {
        "category": task.category,
        "n": len(judged),
        "metric": main.name,
        "score": found[main.name],
        **found,
        "majority": _majority(main, task, judged),
    }
    return {**measures, "remarks": remarks} if remarks else measures


def versions_of(plans: Iterable[Plan]) -> dict[str, str]:
    """The versions of the packages that compute the metrics of some tasks."""
    packages = {metrics[name].package for plan in plans for name in plan.names} - {""}
    return {package: metadata.version(package) for package in sorted(packages)}


def score_answers(
    named: Sequence[str], examples: Sequence[Example], answers: Sequence[str], head: TaskHead | None
) -> float:
    """The first metric of `named` that fits the examples of one task, otherwise accuracy, or Pearson correlation of numbers, of what was picked for
    them; 0 where it is undefined."""
    plan = plan_task(Task("", metrics=tuple(named)), examples, None, False, head)
    if not plan.picked:
        plan = plan_task(Task(""), examples, None, False, head)
    metric = metrics[plan.names[0]]
    labels = examples[0].choices or (() if head is None else head.labels)
    predictions = [
        Prediction(e.task, e.id, e.input, e.targets, answer, "", labels, part=e.part)
        for e, answer in zip(examples, answers, strict=True)
    ]
    return _value(metric, _judged(predictions, answers, metric.part), [])


def _judged(predictions: Sequence[Prediction], answers: Sequence[str], part: str) -> Judged:
    own = [i for i, p in enumerate(predictions) if part in ("", p.part)]
    labels = {p.choices for p in predictions}
    return Judged(
        [answers[i] for i in own],
        [predictions[i].targets for i in own],
        labels.pop() if len(labels) == 1 else (),
    )


def _value(metric: Metric, judged: Judged, remarks: list[str]) -> float:
    try:
        value = metric.compute(judged)
    except Undefined as error:
        judged.remarks.append(f"undefined, shown as 0: {error}")
        value = 0.0
    remarks += [f"{metric.name}: {remark}" for remark in judged.remarks]
    return value


def _majority(main: Metric, task: Task, judged: Sequence[Prediction]) -> float | None:
    """What always giving the most frequent training answer would score: by the metric itself, of generated text by exact match."""
    answer = majority_answer(task.train)
    if answer is None or main.judges == TEXT:
        return majority_baseline(task.train, [p.targets for p in judged])
    return _value(main, _judged(judged, [answer] * len(judged), main.part), [])
