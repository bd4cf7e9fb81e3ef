"""What is looked at in a run, see `mhr.report.inspecting.inspect_fully`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.setting import Settings, setting


@dataclass
class InspectConfig(Settings):
    """Looks at a run that need its base model and examples."""

    alignment: bool = setting(
        False,
        "Compare the gradients of tasks with one another, at every checkpoint that the run kept.",
        flag="--alignment",
    )
    examples: int | None = setting(
        None, "With --alignment: training examples of a task. Unset: 16.", at_least=1, flag="--examples"
    )
    transfer: bool = setting(False, "Evaluate every task while it is routed as every other task.", flag="--transfer")
    limit: int | None = setting(
        None, "With --transfer: most examples of each task that are scored. Unset: 20.", at_least=1, flag="--limit"
    )
