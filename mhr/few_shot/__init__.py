"""Adapting a run to new tasks from a few examples. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

_HOME = {"adapt": "mhr.few_shot.adapting"}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.few_shot.adapting import adapt

__getattr__ = lazy(__name__, _HOME)
