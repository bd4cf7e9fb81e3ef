"""Claims as questions, written down before the runs, and what is said of each.

A claim is supported where all its questions are, not supported where one is not, and otherwise undecided, or not asked in full where what
was run leaves out a side of one; before all that was planned is run there is no verdict, since one that is looked at often enough comes sooner or later. Its questions are
judged together with those of all claims, whose number p is adjusted for; what only stands beside a claim is judged alone and does
not decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mhr.analysis import verdicts
from mhr.analysis.compare import Paired, compare
from mhr.analysis.verdicts import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Finding, Question, judge
from mhr.report.tables import Table, p_number, text

from .tables import paragraphs

Values = Mapping[tuple[str, int], float]
"""(task, seed) -> value."""

OPEN = "not finished"
"""In the place of a verdict, before all is run."""
PART = "not asked in full"
"""In the place of a verdict, where not all questions could be asked."""


@dataclass(frozen=True)
class Claim:
    """Something that is said. Each side of a question is "VARIANT ROW", as in "mhr z", "lora zero-shot" or "poly loss"."""

    number: int
    text: str
    questions: tuple[Question, ...]
    beside: tuple[Question, ...] = ()


@dataclass
class Answer:
    """A claim in one setting: findings on its questions, and on those beside it."""

    claim: Claim
    findings: list[Finding]
    beside: list[Finding]

    @property
    def verdict(self) -> str:
        """What is said of the claim; "" where nothing that it depends on was run."""
        found = {finding.verdict for finding in self.findings}
        if not found:
            return ""
        if OPEN in found:
            return OPEN
        if len(self.findings) < len(self.claim.questions) and NOT_SUPPORTED not in found:
            return PART
        return NOT_SUPPORTED if NOT_SUPPORTED in found else SUPPORTED if found == {SUPPORTED} else UNDECIDED

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.claim.number,
            "text": self.claim.text,
            "verdict": self.verdict,
            "questions": [finding.to_json() for finding in self.findings],
            "beside": [finding.to_json() for finding in self.beside],
        }


def answers(values: Callable[[str], Values], claims: Sequence[Claim], *, finished: bool) -> list[Answer]:
    """The verdicts on all claims. values: name -> what was found; questions of which a side was not run are left out. Unless all is
    `finished`, `OPEN` stands in the place of every verdict."""

    def judged(pairs: Iterable[tuple[Question, Paired]]) -> list[Finding]:
        found = judge(list(pairs))
        return found if finished else [replace(finding, verdict=OPEN) for finding in found]

    asked = [question for claim in claims for question in claim.questions]
    found = {finding.question: finding for finding in judged(_paired(asked, values))}
    return [
        Answer(
            claim,
            [found[question] for question in claim.questions if question in found],
            [finding for pair in _paired(claim.beside, values) for finding in judged([pair])],
        )
        for claim in claims
    ]


def claims_section(told: Sequence[Answer]) -> list[str]:
    """Lines of a page: what is said of each claim, how that was decided, and the findings."""
    said = [[text(f"{a.claim.number}. {a.claim.text}"), text(a.verdict or "not asked")] for a in told]
    return [
        Table("claims", "Claims", ["claim", "verdict"], said, names=2).to_markdown(),
        *paragraphs(__doc__),
        "",
        *paragraphs(verdicts.__doc__),
        "",
        findings_table(told).to_markdown(),
    ]


def findings_table(told: Sequence[Answer]) -> Table:
    rows = []
    for answer in told:
        for found in (*answer.findings, *answer.beside):
            scale, digits = (1, 3) if found.question.lower else (100, 1)
            paired = found.paired
            ends = (
                "" if paired.interval is None else " to ".join(f"{scale * end:+.{digits}f}" for end in paired.interval)
            )
            rows.append(
                [
                    text(str(answer.claim.number)),
                    text(found.question.text),
                    text(f"{scale * paired.difference:+.{digits}f}"),
                    text(ends),
                    text(f"{paired.better} / {paired.worse} of {paired.seeds}"),
                    text("" if found.p is None else p_number(found.p)),
                    text("" if found.power is None else f"{100 * found.power:.0f}"),
                    text(found.verdict if found in answer.findings else f"({found.verdict})"),
                ]
            )
    columns = ["claim", "question", "difference", "95% interval", "seeds for / against", "p", "power", "verdict"]
    note = (
        "Differences in points, of losses in nats, turned so that above 0 is what is asked for; power in per cent. The interval is of a bootstrap over "
        "seeds and tasks, so it covers other tasks too and is wider than what the test, which takes the tasks as they are, decides by. "
        "Verdicts in brackets accompany their claim, are judged alone and do not decide it."
    )
    return Table("findings", "Questions", columns, rows, note=note, names=8)


def _paired(questions: Iterable[Question], values: Callable[[str], Values]) -> Iterator[tuple[Question, Paired]]:
    """Each question with its comparison, of a loss turned so that above 0 is better."""
    for question in questions:
        sides = values(question.a), values(question.b)
        paired = compare(*(reversed(sides) if question.lower else sides))
        if paired is not None:
            yield question, paired
