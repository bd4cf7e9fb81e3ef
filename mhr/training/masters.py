"""What is trained is held in float32 at least: a 16-bit weight loses the small updates that it is trained by."""

from __future__ import annotations

from torch import nn

from mhr.errors import ConfigError
from mhr.loading import HALF


def train_whole(model: nn.Module) -> None:
    """Have all weights of a model train. Raises ConfigError for a model that is quantised, and as `check_masters`."""
    if getattr(model, "is_quantized", False):
        raise ConfigError(
            "all weights are to be trained, but the base model is quantised: train a bank or a LoRA on it, or leave quantize out"
        )
    model.requires_grad_(True)
    check_masters(model)


def check_masters(model: nn.Module) -> None:
    """Raise ConfigError, naming it, for a parameter that would be trained in 16 bits: of a model that is trained whole, or of
    a head that the bank brings. Adapters and routing are float32 beside any base."""
    for name, parameter in model.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.requires_grad and dtype in HALF:
            raise ConfigError(
                f"parameter {name!r} would be trained in {dtype}, which loses small updates: load the base model with dtype "
                "float32, and compute in 16 bits with train.precision bf16"
            )
