"""Where adapters were in the first release: the public names of `mhr.adapters`, for programs that import them from here."""

from __future__ import annotations

from mhr.lazy import lazy

MOVED = [
    "attach_checkpoint",
    "checkpoint_of",
    "is_adapter",
    "kind_of",
    "load_adapter",
    "load_checkpoint",
    "read_adapter",
    "routing_weights",
    "save_adapter",
    "write_adapter",
]

__getattr__ = lazy("mhr.checkpoint", dict.fromkeys(MOVED, "mhr.adapters"))
