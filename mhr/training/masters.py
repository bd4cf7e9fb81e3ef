"""Training all weights of a model, which have to be held in float32: a 16-bit weight loses the small updates that it is trained by."""

from __future__ import annotations

from torch import nn

from mhr.errors import ConfigError
from mhr.loading import HALF


def train_whole(model: nn.Module) -> None:
    """Have all weights of a model train. Raises ConfigError for a model that is quantised, and, naming one, for weights in 16 bits."""
    if getattr(model, "is_quantized", False):
        raise ConfigError(
            "all weights are to be trained, but the base model is quantised: train a bank or a LoRA on it, or leave quantize out"
        )
    for name, parameter in model.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype in HALF:
            raise ConfigError(
                f"parameter {name!r} would be trained in {dtype}, which loses small updates: load the base model with dtype "
                "float32, and compute in 16 bits with train.precision bf16"
            )
    model.requires_grad_(True)
