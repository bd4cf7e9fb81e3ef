"""What a run costs: parameters that were trained, bytes that are kept, and what one more task adds."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.analysis.inspection import Inspection


@dataclass(frozen=True, slots=True)
class Cost:
    """trained: parameters of the run that were trained; bytes: of its adapter (or model); tasks: how many it serves; another, another_bytes:
    parameters and bytes that one more task adds to what is shared, of a pretraining run; of an adaptation, all that it trained."""

    trained: int
    bytes: int
    tasks: int
    another: int
    another_bytes: int

    @property
    def bytes_per_task(self) -> float:
        return self.bytes / self.tasks


def cost_of(inspection: Inspection) -> Cost:
    """The cost of an inspected run or adapter."""
    each = inspection.bytes / max(inspection.stored, 1)
    if inspection.run.get("kind") == "adapt":
        another = inspection.trained
    else:
        another = inspection.per_task + inspection.per_skill
    return Cost(inspection.trained, inspection.bytes, max(len(inspection.tasks), 1), another, round(another * each))
