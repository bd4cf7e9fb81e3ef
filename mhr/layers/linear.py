"""Which modules are Linear layers, and their sizes."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether a layer can be adapted: nn.Linear, its quantised relatives, or GPT-2's Conv1D."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    return all(isinstance(getattr(module, a, None), int) for a in ("in_features", "out_features"))


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) features of a Linear-like layer."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
