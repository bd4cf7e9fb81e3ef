"""Settings of scoring a model on examples, wherever that is done."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.setting import Settings, setting


@dataclass
class ScoringConfig(Settings):
    """How a model is scored; the same for evaluate, sweep and merge."""

    limit: int | None = setting(
        None, "Maximum number of examples scored per task. Unset: all.", at_least=1, flag="--limit"
    )
    batch_size: int | None = setting(
        None, "Examples per batch when scoring. Unset: as many as fit in memory.", at_least=1, flag="--batch-size"
    )
