"""Whether the output layer that an adapter brings is one for its heads."""

from __future__ import annotations

from collections.abc import Mapping

from mhr.errors import CheckpointError
from mhr.task_heads import TaskHeads


def check_outputs(heads: TaskHeads | None, shapes: Mapping[str, tuple[int, ...]], name: str, prefix: str) -> None:
    """Raise CheckpointError where a checkpoint's output layer has other outputs than its heads; shapes: of its tensors,
    whose names begin with `prefix`."""
    if heads is None:
        return
    key = f"{prefix}{heads.layer}.weight"
    if key not in shapes:
        raise CheckpointError(f"{name} describes heads, but lacks their tensor {key!r}: copy or train it again")
    if shapes[key][0] != heads.size:
        raise CheckpointError(
            f"{name} has {shapes[key][0]} outputs in {key!r}, but its heads have {heads.size} ({'; '.join(map(str, heads.heads[:5]))}): "
            "the two do not belong together, copy or train it again"
        )
