"""What is asked of unseen tasks, see claims.py: sides are rows of unseen_plan.py."""

from __future__ import annotations

from mhr.analysis.verdicts import Question

from .claims import Claim
from .unseen_plan import few_shot, zero_shot

UNIFORM = "MHR, uniform weights"


def _above(row: str, other: str = UNIFORM) -> Question:
    return Question(f"{row} above {other}", zero_shot(row), zero_shot(other))


def _above_adapted(row: str, other: str = UNIFORM) -> Question:
    return Question(f"{row} above {other}, adapted", few_shot(row), few_shot(other))


CLAIMS = (
    Claim(
        1,
        "What is known of an unseen task routes it better than uniform weights do, without a gradient step",
        (_above("context-mhr, definition"), _above("context-mhr, shots"), _above("MHR, nearest task")),
        (
            _above("Arrow"),
            _above("LoraHub"),
            _above("HyperFormer++, definition"),
            _above("PHA"),
            _above("generative adapter"),
            _above(UNIFORM, "shared LoRA"),
        ),
    ),
    Claim(
        2,
        "It is a better beginning for the adaptation to its examples as well",
        (
            _above_adapted("context-mhr, definition"),
            _above_adapted("context-mhr, shots"),
            _above_adapted("MHR, nearest task"),
        ),
        (
            _above_adapted("HyperFormer++, definition"),
            _above_adapted("PHA"),
            _above_adapted("generative adapter"),
            _above_adapted(UNIFORM, "shared LoRA"),
            _above_adapted(UNIFORM, "private LoRAs, average"),
        ),
    ),
)
