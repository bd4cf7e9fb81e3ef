"""mhr: one bank of adapters for many tasks, adapted to a new one from a few examples, shipped as one plain LoRA.

    bank = mhr.attach(model, mhr.AdapterConfig(method="mhr"), tasks=["boolq", "rte"])
    model(**batch, task_ids=["boolq", "rte", "rte", "boolq"])

Names are imported on first use, so that `import mhr` and the command line's help stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

__version__ = "0.1.0"

_HOME = {
    "AdapterBank": "mhr.layers",
    "AdapterConfig": "mhr.config",
    "Example": "mhr.data",
    "MhrError": "mhr.errors",
    "Task": "mhr.data",
    "TaskCollection": "mhr.data",
    "attach": "mhr.layers",
    "detach": "mhr.layers",
    "disabled": "mhr.layers",
    "load": "mhr.prediction",
    "load_tasks": "mhr.data",
}

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from mhr.config import AdapterConfig
    from mhr.data import Example, Task, TaskCollection, load_tasks
    from mhr.errors import MhrError
    from mhr.layers import AdapterBank, attach, detach, disabled
    from mhr.prediction import load


__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
