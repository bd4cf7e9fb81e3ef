"""The processes that train together: one, or those that torchrun has started."""

from __future__ import annotations

import torch
from accelerate import PartialState

from mhr.errors import ConfigError


def on_gpu() -> bool:
    """Whether there is an accelerator to train on."""
    return torch.accelerator.is_available()


def processes() -> PartialState:
    """This process among its fellows. Without an accelerator they talk by gloo, which Accelerate has to be told."""
    return PartialState(cpu=not on_gpu())


def check_precision(precision: str) -> None:
    """Raise ConfigError for a precision that there is no device for, before anything is written."""
    if precision == "fp16" and not on_gpu():
        raise ConfigError("precision is 'fp16', which needs a GPU, and there is none: use 'bf16' or 'no'")
