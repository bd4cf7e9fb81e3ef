"""Metrics of labels: accuracy, F1 and Matthews correlation, as fractions; F1 and Matthews correlation are scikit-learn's.

Where a question has several acceptable labels, the one that was picked counts as its label if it is among them, and otherwise
the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from mhr.data.example import Example
from mhr.evaluation.metrics.answers import mean
from mhr.evaluation.metrics.metric import CHOICE, Judged, Undefined, measures


def fixed_labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The choices that all examples share, in their order; empty where they differ or there are none."""
    sets = {example.choices for example in examples}
    return sets.pop() if len(sets) == 1 else ()


def no_label_set(examples: Sequence[Example]) -> str | None:
    if not all(example.choices for example in examples):
        return "needs a fixed set of labels, and the task is answered in free text"
    return None if fixed_labels(examples) else "needs a fixed set of labels, and the task's choices vary by example"


def not_two_labels(examples: Sequence[Example]) -> str | None:
    n = len(fixed_labels(examples))
    if (why := no_label_set(examples)) or n == 2:
        return why
    return f"is for two labels, and the task has {n}: use macro_f1 or micro_f1"


def no_part(name: str) -> str:
    return f"is for examples of the split validation_{name} (dev_{name}), and the task has none of them"


def _lacks(part: str, examples: Sequence[Example]) -> str | None:
    return None if any(example.part == part for example in examples) else no_part(part)


@measures("accuracy", CHOICE)
@measures("accuracy_matched", CHOICE, part="matched", misfit=lambda examples: _lacks("matched", examples))
@measures("accuracy_mismatched", CHOICE, part="mismatched", misfit=lambda examples: _lacks("mismatched", examples))
def share_of_right_choices(judged: Judged) -> float:
    """The share of picked choices that are acceptable. Of MNLI, those of its matched and its mismatched genres apart."""
    return mean([float(a in t) for a, t in zip(judged.answers, judged.targets, strict=True)])


@measures("f1", CHOICE, misfit=not_two_labels, package="scikit-learn")
def f1(judged: Judged) -> float:
    """F1 = 2 TP / (2 TP + FP + FN) of the second of two choices: "equivalent", "duplicate", "yes" behind "no"."""
    from sklearn.metrics import f1_score

    positive = judged.choices[1]
    truth = _truth(judged)
    if positive not in truth and positive not in judged.answers:
        raise Undefined(f"no target and no answer is {positive!r}")
    return float(f1_score(truth, judged.answers, average="binary", pos_label=positive, zero_division=0.0))


@measures("macro_f1", CHOICE, misfit=no_label_set, package="scikit-learn")
def macro_f1(judged: Judged) -> float:
    """The mean of the labels' own F1, over the labels that targets or answers hold."""
    from sklearn.metrics import f1_score

    return float(f1_score(_truth(judged), judged.answers, average="macro", zero_division=0.0))


@measures("micro_f1", CHOICE, misfit=no_label_set, package="scikit-learn")
def micro_f1(judged: Judged) -> float:
    """F1 of all labels' TP, FP and FN together: of one label a question, this is accuracy."""
    from sklearn.metrics import f1_score

    return float(f1_score(_truth(judged), judged.answers, average="micro", zero_division=0.0))


@measures("matthews", CHOICE, misfit=no_label_set, package="scikit-learn")
def matthews(judged: Judged) -> float:
    """Matthews correlation, -1 to 1: (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)) of two labels, Gorodkin's
    R_K of more."""
    from sklearn.metrics import matthews_corrcoef

    truth = _truth(judged)
    for values, what in ((truth, "targets"), (judged.answers, "answers")):
        if len(set(values)) == 1:
            raise Undefined(f"all {what} are {values[0]!r}")
    return float(matthews_corrcoef(truth, judged.answers))


def _truth(judged: Judged) -> list[str]:
    return [a if a in t else t[0] for a, t in zip(judged.answers, judged.targets, strict=True)]
