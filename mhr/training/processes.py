"""The processes that train together: one, or those that torchrun has started."""

from __future__ import annotations

import torch
from accelerate import PartialState


def on_gpu() -> bool:
    """Whether there is an accelerator to train on."""
    return torch.accelerator.is_available()


def processes() -> PartialState:
    """This process among its fellows. Without an accelerator they talk by gloo, which Accelerate has to be told."""
    return PartialState(cpu=not on_gpu())
