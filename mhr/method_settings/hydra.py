"""Settings of the routing of HydraLoRA and of MTL-LoRA. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.errors import ConfigError
from mhr.setting import Settings, setting


@dataclass
class HydraSettings(Settings):
    """How logits become weights."""

    weights: str = setting(
        "softmax",
        """Weights from logits: softmax or sigmoid. sigmoid: each by itself, then divided by their sum, as of mhr and poly.""",
        choices=("softmax", "sigmoid"),
    )
    tau: float = setting(1.0, "Temperature that logits are divided by before the softmax.", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights != "softmax" and self.tau != type(self).tau:
            raise ConfigError(
                f"tau is {self.tau}, which is of the softmax, but weights is {self.weights!r}: leave it out"
            )


@dataclass
class MtlLoraSettings(HydraSettings):
    """Those, and how the tasks' matrices are trained."""

    transform_lr: float = setting(1e-3, "Learning rate of the tasks' matrices Lambda, without weight decay.", above=0)
