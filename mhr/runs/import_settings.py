"""What is asked of an import, see `mhr.adapters.importing.import_run`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.setting import Settings, setting


@dataclass
class ImportConfig(Settings):
    """What the files to be imported may not tell."""

    task_names: str | None = setting(
        None,
        """File with the names of the bank's tasks, one in each line, in the order of its routing table. Unset: as the bank has them,
        otherwise task-0, task-1 and so on.""",
        flag="--task-names",
        metavar="FILE",
    )
    tasks: str | None = setting(
        None,
        """Task collection that the bank was trained on, which the run then knows. Unset: it knows none, and commands that need one
        take --tasks.""",
        flag="--tasks",
        metavar="PATH",
    )
