"""Parameters that are trained alike: which learning rate and which weight decay go with which of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate and one weight decay, named for logs."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float
    weight_decay: float = 0.0

    def of(self, parameters: Iterable[nn.Parameter]) -> ParameterGroup:
        """A group like this one with other parameters."""
        return replace(self, parameters=list(parameters))

    def to_optimizer(self) -> dict[str, Any]:
        """The group as torch's optimizers take it."""
        return {
            "name": self.name,
            "params": list(self.parameters),
            "lr": self.lr,
            "weight_decay": self.weight_decay,
        }
