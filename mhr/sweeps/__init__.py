"""Sweeps: runs x modes x tasks x seeds, adapted and evaluated, in one table. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

_HOME = {"SweepResult": "mhr.sweeps.table", "sweep": "mhr.sweeps.sweeping"}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.sweeps.sweeping import sweep
    from mhr.sweeps.table import SweepResult

__getattr__ = lazy(__name__, _HOME)
