"""Adapting a bank to new tasks from a few examples, once or in a sweep. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

_HOME = {
    "adapt": "mhr.few_shot.adapting",
    "sweep": "mhr.few_shot.sweeping",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.few_shot.adapting import adapt
    from mhr.few_shot.sweeping import sweep

__getattr__ = lazy(__name__, _HOME)
