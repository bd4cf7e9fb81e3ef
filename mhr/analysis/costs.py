"""What a run costs: numbers that were trained, bytes that are kept, and what one more task adds."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.analysis.inspection import Inspection
from mhr.methods import ROUTING_METHODS


@dataclass(frozen=True, slots=True)
class Cost:
    """trained: numbers that the run trained; bytes: of its adapter (or model); tasks: how many it serves; another, another_bytes:
    numbers and bytes that one more task adds to what is shared, of a pretraining run; of an adaptation, all that it trained."""

    trained: int
    bytes: int
    tasks: int
    another: int
    another_bytes: int

    @property
    def bytes_per_task(self) -> float:
        return self.bytes / self.tasks


def cost_of(found: Inspection) -> Cost:
    """The cost of an inspected run or adapter."""
    each = found.bytes / max(found.stored, 1)
    if found.run.get("kind") == "adapt":
        another = found.trained
    elif found.method in ROUTING_METHODS and ROUTING_METHODS[found.method].skill_per_task:
        another = found.parameters["skills"]["trained"] // len(found.tasks)
    else:
        another = found.per_task
    return Cost(found.trained, found.bytes, max(len(found.tasks), 1), another, round(another * each))
