"""What a run is: its settings, its folder and its tasks. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

_HOME = {
    "AdaptConfig": "mhr.runs.adapt_settings",
    "DataConfig": "mhr.runs.data_settings",
    "RunConfig": "mhr.runs.settings",
    "RunFolder": "mhr.runs.run",
    "TrainConfig": "mhr.runs.train_settings",
    "load_config": "mhr.runs.config",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.runs.adapt_settings import AdaptConfig
    from mhr.runs.config import load_config
    from mhr.runs.data_settings import DataConfig
    from mhr.runs.run import RunFolder
    from mhr.runs.settings import RunConfig
    from mhr.runs.train_settings import TrainConfig

__getattr__ = lazy(__name__, _HOME)
