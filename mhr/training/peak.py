"""Peak memory of a run, as the operating system and the accelerator count it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_memory() -> dict[str, int]:
    """Peaks of this process since it began, loading included, in bytes, each the largest over the processes that train together.

    resident    memory that the process held at once (ru_maxrss); left out where the system does not tell
    allocated   memory that torch had allocated at once on its CUDA devices together; left out without one
    """
    found = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        found["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        found["allocated"] = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    everyone = gather_object([found])
    return {name: max(one[name] for one in everyone) for name in found}


def memory_line(memory: Mapping[str, Any] | None) -> str:
    """What `peak_memory` found, for people; "" where there is nothing."""
    said = {"resident": "resident", "allocated": "allocated on the GPU"}
    parts = [f"{memory[name] / 1e9:.2f} GB {words}" for name, words in said.items() if name in memory] if memory else []
    return f"Peak memory: {', '.join(parts)}" if parts else ""
