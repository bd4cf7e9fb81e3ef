"""Finished LoRAs as experts among which each token chooses. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

_HOME = {
    "route_tokens": "mhr.experts.routing",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.experts.routing import route_tokens

__getattr__ = lazy(__name__, _HOME)
