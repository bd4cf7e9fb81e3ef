"""What is said of a comparison that was asked beforehand: supported, not supported, or undecided, and with what power.

d is the difference `a - b`, its sign turned where a lower value is the better one. Of the t tests over seed means (level .05, each
kind of p adjusted by Holm over the comparisons that are judged together)

    gain   supported      d is above 0
           not supported  d is below 0, or below the least difference that would matter
    same   supported      d lies within the margin (two one-sided tests)
           not supported  d lies outside

and undecided otherwise; a gain that is significantly above 0 and significantly too small to matter is supported, and the table shows
its size. The power beside it is the chance that this plan had, with the spread that was found, of finding a gain that just matters, or
sameness where there is no difference at all; at the level divided by the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mhr.analysis.compare import Paired
from mhr.analysis.power import power, power_of_equivalence
from mhr.analysis.seed_tests import LEVEL, equivalence, holm, t_test

GAIN, SAME = "gain", "same"
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
MATTERS = 0.02
"""Two points: the least gain that would matter, and how far apart things may be that are the same."""


@dataclass(frozen=True)
class Question:
    """What is asked of two rows of results.

    kind     GAIN: `a` is the better one; SAME: they are as good as each other
    matters  least gain that would matter, or the margin of SAME, in the unit of the values; None for a gain in a unit of which
             nobody can say
    lower    whether a lower value is the better one (a loss)
    """

    text: str
    a: str
    b: str
    kind: str = GAIN
    matters: float | None = MATTERS
    lower: bool = False


@dataclass(frozen=True)
class Finding:
    """A question with what came out; p is adjusted for the questions that were judged with it, None for a single seed."""

    question: Question
    paired: Paired
    p: float | None
    verdict: str
    power: float | None

    def to_json(self) -> dict[str, Any]:
        asked, found = self.question, self.paired
        return {
            "text": asked.text,
            "a": asked.a,
            "b": asked.b,
            "kind": asked.kind,
            "matters": asked.matters,
            "difference": found.difference,
            "interval": found.interval,
            "by_seed": list(found.by_seed),
            "tasks": found.tasks,
            "p": self.p,
            "p_flips": found.p_flips,
            "power": self.power,
            "verdict": self.verdict,
        }


def judge(asked: Sequence[tuple[Question, Paired]]) -> list[Finding]:
    """The verdicts on questions that belong together, see the top of this file. Each comparison's values are `a - b`, or of a
    loss `b - a`, so that above 0 is better."""
    for_it, against = _adjusted([_for(*one) for one in asked]), _adjusted([_against(*one) for one in asked])
    found = []
    for (question, paired), p, counter in zip(asked, for_it, against, strict=True):
        up = question.kind == SAME or paired.difference > 0
        if p is not None and p < LEVEL and up:
            verdict = SUPPORTED
        elif counter is not None and counter < LEVEL:
            verdict = NOT_SUPPORTED
        else:
            verdict = UNDECIDED
        found.append(Finding(question, paired, p, verdict, _power(question, paired, LEVEL / len(asked))))
    return found


def _for(question: Question, found: Paired) -> float | None:
    if question.kind == SAME:
        assert question.matters is not None, "sameness has a margin"
        return equivalence(found.by_seed, question.matters)
    return found.p


def _against(question: Question, found: Paired) -> float | None:
    """Two-sided p of the nearest finding that speaks against it."""
    if found.p is None:
        return None
    if question.kind == SAME:
        assert question.matters is not None, "sameness has a margin"
        sides = [t_test(found.by_seed, question.matters, "above"), t_test(found.by_seed, -question.matters, "below")]
    else:
        sides = [t_test(found.by_seed, question.matters or 0.0, "below")]
    return min(1.0, 2 * min(p for p in sides if p is not None))


def _adjusted(ps: Sequence[float | None]) -> list[float | None]:
    """Holm over those that there are."""
    known = iter(holm([p for p in ps if p is not None]))
    return [None if p is None else next(known) for p in ps]


def _power(question: Question, found: Paired, level: float) -> float | None:
    sd = found.expected_spread
    if sd is None or question.matters is None:
        return None
    if question.kind == SAME:
        return power_of_equivalence(question.matters, sd, found.seeds, level=level)
    return power(question.matters, sd, found.seeds, level)
