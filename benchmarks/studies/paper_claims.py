"""The claims of the paper as comparisons, and the rule by which each is confirmed, not confirmed or unclear.

The rule was written down before the runs. A comparison is of A with B, paired over tasks and seeds (claim 5: over points of
training and seeds), d the differences A - B. It is

    confirmed      where d is above its margin: the mean is, p < 0.05 of a two-sided sign-flip permutation test of d minus the
                   margin, and the mean of at most one seed in four is not
    not confirmed  where in the same sense d is below the margin, or, of a gain that is claimed, below the least that would matter
    unclear        otherwise

The margin of a gain is 0, that of "as good as" a loss that one would accept. A claim is confirmed where all its comparisons are,
not confirmed where one is not, and otherwise unclear. p values are not corrected for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mhr.analysis.compare import Paired, compare, sign_flip

LEVEL = 0.05
Values = Mapping[tuple[str, int], float]
"""(task, seed) -> value; of gradient alignment (point of training, seed)."""


@dataclass(frozen=True)
class Comparison:
    """What `a` is to be beside `b`, each "VARIANT ROW" as in "mhr z", "lora zero-shot", "poly alignment".

    margin  the difference has to be above it; negative: a loss that one would accept
    least   a gain below this would not matter; None where no gain is claimed
    counts  whether the claim depends on it, or it only stands beside
    """

    text: str
    a: str
    b: str
    margin: float = 0.0
    least: float | None = 0.01
    counts: bool = True


@dataclass(frozen=True)
class Claim:
    """Something that the paper says."""

    number: int
    text: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Finding:
    """A comparison with what came out. p is of the difference minus its margin."""

    comparison: Comparison
    paired: Paired
    p: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.comparison.text,
            "a": self.comparison.a,
            "b": self.comparison.b,
            "margin": self.comparison.margin,
            "counts": self.comparison.counts,
            "difference": self.paired.difference,
            "by_seed": self.paired.by_seed,
            "better": self.paired.better,
            "worse": self.paired.worse,
            "n": self.paired.n,
            "p": self.p,
            "verdict": self.verdict,
        }


@dataclass
class Answer:
    """A claim in one setting."""

    claim: Claim
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """ "confirmed", "not confirmed", "unclear", or "" where nothing that counts was run."""
        found = {f.verdict for f in self.findings if f.comparison.counts}
        if not found:
            return ""
        return "not confirmed" if "not confirmed" in found else "confirmed" if found == {"confirmed"} else "unclear"


def _as_good(text: str, a: str, b: str, margin: float, counts: bool = True) -> Comparison:
    return Comparison(text, a, b, -margin, None, counts)


def _beside(text: str, a: str, b: str) -> Comparison:
    return Comparison(text, a, b, counts=False)


CLAIMS = (
    Claim(
        1,
        "After multi-task pretraining, few-shot adaptation to held-out tasks is best with MHR, then Poly, then a shared LoRA",
        (
            Comparison("MHR above Poly", "mhr mhr", "poly mhr"),
            Comparison("Poly above the parameter-matched shared LoRA", "poly mhr", "wide lora"),
            Comparison("MHR above the parameter-matched shared LoRA", "mhr mhr", "wide lora"),
            _beside("Poly above a shared LoRA of the same rank", "poly mhr", "lora lora"),
            _beside("MHR above a shared LoRA of the same rank", "mhr mhr", "lora lora"),
        ),
    ),
    Claim(
        2,
        "MHR-z, which trains orders of magnitude fewer parameters, is competitive (at most 5 points below MHR)",
        (
            _as_good("MHR-z at most 5 points below MHR", "mhr z", "mhr mhr", 0.05),
            _as_good("Poly-z at most 5 points below Poly", "poly z", "poly mhr", 0.05, counts=False),
            _beside("MHR-z above Poly-z", "mhr z", "poly z"),
            _beside("MHR-z above MHR unadapted", "mhr z", "mhr zero-shot"),
        ),
    ),
    Claim(
        3,
        "Routing matters in pretraining and not in adaptation: MHR-mu adapts as well as MHR (at most 2 points below)",
        (
            _as_good("MHR-mu at most 2 points below MHR", "mhr mu", "mhr mhr", 0.02),
            Comparison(
                "MHR-mu above the average of a bank pretrained under fixed random routing", "mhr mu", "random mu"
            ),
            Comparison("MHR above a bank pretrained under fixed random routing", "mhr mhr", "random mhr"),
            _as_good("Poly-mu at most 2 points below Poly", "poly mu", "poly mhr", 0.02, counts=False),
        ),
    ),
    Claim(
        4,
        "Zero-shot, MHR whose last steps train its average is above a shared LoRA trained for as many steps",
        (
            Comparison("MHR-mu above a shared LoRA of the same rank", "mhr-mu zero-shot", "lora zero-shot"),
            _beside("MHR-mu above the parameter-matched shared LoRA", "mhr-mu zero-shot", "wide zero-shot"),
            _beside("MHR-mu above MHR routed uniformly, without such steps", "mhr-mu zero-shot", "mhr zero-shot"),
        ),
    ),
    Claim(
        5,
        "The gradients of tasks are aligned best in MHR, then in Poly, then in a shared LoRA",
        (
            Comparison("MHR above Poly", "mhr alignment", "poly alignment"),
            Comparison("Poly above a shared LoRA of the same rank", "poly alignment", "lora alignment"),
            _beside("Poly above the parameter-matched shared LoRA", "poly alignment", "wide alignment"),
            _beside("MHR above a shared LoRA of the same rank", "mhr alignment", "lora alignment"),
        ),
    ),
    Claim(
        6,
        "More heads and more skills help",
        (
            Comparison("16 heads above one, 8 skills", "h16 mhr", "poly mhr"),
            Comparison("16 skills above two, 8 heads", "s16 mhr", "s2 mhr"),
            _beside("16 heads above one, routing alone", "h16 z", "poly z"),
            _beside("16 skills above two, routing alone", "s16 z", "s2 z"),
        ),
    ),
)


def answer(claim: Claim, values: Callable[[str], Values]) -> Answer:
    """The verdict on a claim. values: name -> what was found; comparisons without a pair in common are left out."""
    found = Answer(claim)
    for comparison in claim.comparisons:
        a, b = values(comparison.a), values(comparison.b)
        paired = compare(a, b)
        if paired is not None:
            found.findings.append(judge(comparison, paired, [a[key] - b[key] for key in a if key in b]))
    return found


def judge(comparison: Comparison, paired: Paired, differences: list[float]) -> Finding:
    """The rule, see the top of this file."""
    p, above = _beyond(paired, differences, comparison.margin)
    if above == 1:
        verdict = "confirmed"
    elif above == -1 or (comparison.least is not None and _beyond(paired, differences, comparison.least)[1] == -1):
        verdict = "not confirmed"
    else:
        verdict = "unclear"
    return Finding(comparison, paired, p, verdict)


def _beyond(paired: Paired, differences: list[float], limit: float) -> tuple[float, int]:
    """p of the differences minus `limit`, and 1 where they are significantly above it, -1 significantly below, otherwise 0."""
    p = sign_flip([d - limit for d in differences])
    side = 1 if paired.difference > limit else -1
    against = sum((mean - limit) * side <= 0 for mean in paired.by_seed)
    return p, side if p < LEVEL and against <= len(paired.by_seed) // 4 else 0
