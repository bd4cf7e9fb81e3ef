"""What distributed training puts around a model."""

from __future__ import annotations

from typing import Any

from torch import nn


def bare(model: nn.Module) -> Any:
    """The model inside the wrapper that distributed training puts around it."""
    return getattr(model, "module", model)
