"""The claims of the paper as questions, written down before the runs, and what is said of each.

A claim is supported where all its questions are, not supported where one is not, and otherwise undecided. Its questions are
judged together with those of all claims, whose number p is adjusted for; what only stands beside a claim is judged alone and does
not decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mhr.analysis.compare import Paired, compare
from mhr.analysis.verdicts import GAIN, NOT_SUPPORTED, SAME, SUPPORTED, UNDECIDED, Finding, Question, judge

Values = Mapping[tuple[str, int], float]
"""(task, seed) -> value."""


@dataclass(frozen=True)
class Claim:
    """Something that the paper says. Each side of a question is "VARIANT ROW", as in "mhr z", "lora zero-shot" or "poly loss"."""

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
        return NOT_SUPPORTED if NOT_SUPPORTED in found else SUPPORTED if found == {SUPPORTED} else UNDECIDED

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.claim.number,
            "text": self.claim.text,
            "verdict": self.verdict,
            "questions": [finding.to_json() for finding in self.findings],
            "beside": [finding.to_json() for finding in self.beside],
        }


CLAIMS = (
    Claim(
        1,
        "Routing eases multi-task training: MHR reaches a lower loss on unseen examples of its training tasks than a shared LoRA",
        (
            Question("MHR below a shared LoRA, equal steps", "mhr loss", "lora loss", GAIN, None, True),
            Question(
                "MHR below a shared LoRA, equal FLOPs", "mhr loss at budget", "lora loss at budget", GAIN, None, True
            ),
        ),
        (
            Question("Poly below a shared LoRA, equal steps", "poly loss", "lora loss", GAIN, None, True),
            Question("MHR below Poly, equal steps", "mhr loss", "poly loss", GAIN, None, True),
            Question(
                "MHR below a shared LoRA of as many parameters, equal steps", "mhr loss", "wide loss", GAIN, None, True
            ),
            Question("MHR below a bank without routing, equal steps", "mhr loss", "uniform loss", GAIN, None, True),
        ),
    ),
    Claim(
        2,
        "After multi-task pretraining, few-shot adaptation to held-out tasks is best with MHR, then Poly, then a shared LoRA",
        (
            Question("MHR above a shared LoRA of the same rank", "mhr mhr", "lora lora"),
            Question("MHR above a shared LoRA of as many parameters", "mhr mhr", "wide lora"),
            Question("MHR above Poly", "mhr mhr", "poly mhr"),
        ),
        (
            Question("Poly above a shared LoRA of the same rank", "poly mhr", "lora lora"),
            Question("Poly above a shared LoRA of as many parameters", "poly mhr", "wide lora"),
        ),
    ),
    Claim(
        3,
        "Routing matters in pretraining and not in adaptation: MHR-mu adapts as well as MHR (within 2 points)",
        (Question("MHR-mu within 2 points of MHR", "mhr mu", "mhr mhr", SAME),),
        (
            Question("MHR above a bank pretrained without routing", "mhr mhr", "uniform mhr"),
            Question("MHR above a bank pretrained under fixed random routing", "mhr mhr", "random mhr"),
            Question("MHR-z, which trains the routing alone, within 5 points of MHR", "mhr z", "mhr mhr", SAME, 0.05),
        ),
    ),
    Claim(
        4,
        "Zero-shot, MHR whose average is trained for some more steps is above a shared LoRA that is trained for as many more",
        (Question("MHR-mu above a shared LoRA of the same rank", "mhr further zero-shot", "lora further zero-shot"),),
        (
            Question("MHR-mu above MHR routed uniformly, without such steps", "mhr further zero-shot", "mhr zero-shot"),
            Question("A shared LoRA above itself without such steps", "lora further zero-shot", "lora zero-shot"),
        ),
    ),
)


def answers(values: Callable[[str], Values], claims: tuple[Claim, ...] = CLAIMS) -> list[Answer]:
    """The verdicts on all claims. values: name -> what was found; questions of which a side was not run are left out."""
    asked = [question for claim in claims for question in claim.questions]
    found = {finding.question: finding for finding in judge(list(_paired(asked, values)))}
    return [
        Answer(
            claim,
            [found[question] for question in claim.questions if question in found],
            [finding for pair in _paired(claim.beside, values) for finding in judge([pair])],
        )
        for claim in claims
    ]


def _paired(questions: Iterable[Question], values: Callable[[str], Values]) -> Iterator[tuple[Question, Paired]]:
    """Each question with its comparison, of a loss turned so that above 0 is better."""
    for question in questions:
        sides = values(question.a), values(question.b)
        paired = compare(*(reversed(sides) if question.lower else sides))
        if paired is not None:
            yield question, paired
