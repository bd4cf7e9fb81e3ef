"""Pretraining a bank of adapters on many tasks at once. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

_HOME = {
    "pretrain": "mhr.training.pretraining",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.training.pretraining import pretrain

__getattr__ = lazy(__name__, _HOME)
