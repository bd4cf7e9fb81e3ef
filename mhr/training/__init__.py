"""Pretraining a bank of adapters on many tasks, and adapting it to a new one. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "RunConfig": "mhr.training.config",
    "RunFolder": "mhr.training.run",
    "adapt": "mhr.training.adapting",
    "load_config": "mhr.training.config",
    "pretrain": "mhr.training.pretraining",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.training.adapting import adapt
    from mhr.training.config import RunConfig, load_config
    from mhr.training.pretraining import pretrain
    from mhr.training.run import RunFolder


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mhr.training' has no attribute {name!r}")
