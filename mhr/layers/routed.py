"""What every routed layer has: the frozen layer it wraps, its router, and the state that says which tasks are at work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.errors import TargetError
from mhr.layers.targets import features
from mhr.routing import Router, RoutingBatch, RoutingState


class RoutedLayer(nn.Module, ABC):
    """A frozen Linear-like layer `base` with a bank of adapters beside it.

    Subclasses hold the bank's parameters, each with the head axis first and the skill axis second, and name them in
    `bank_names`. The router is shared between layers and owned by the `AdapterBank`, so it is no submodule here.
    """

    bank_names: tuple[str, ...] = ()

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__()
        self.base = base
        self.name = name
        self.config = config
        self.state = state
        self._router = [router]  # in a list, so that nn.Module does not register it
        self.in_features, self.out_features = features(base)

    @property
    def router(self) -> Router:
        return self._router[0]

    # Model code looks at these of the layer it thinks it holds (T5 reads `wo.weight.dtype`).
    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def bank(self) -> dict[str, nn.Parameter]:
        """The bank's parameters by name."""
        return {name: getattr(self, name) for name in self.bank_names}

    @abstractmethod
    def fresh(self, name: str, n_skills: int) -> Tensor:
        """Initial values of the bank parameter `name` for `n_skills` skills, on the device of the base layer."""

    def reset(self) -> None:
        """Draw the bank anew."""
        for name in self.bank_names:
            setattr(self, name, nn.Parameter(self.fresh(name, self.router.even.shape[1])))

    def select_skills(self, keep: Sequence[int | None]) -> None:
        """Make skill i what skill `keep[i]` was, or a fresh one where that is None."""
        for name in self.bank_names:
            old: nn.Parameter = getattr(self, name)
            new = self.fresh(name, len(keep)).to(old)
            for i, k in enumerate(keep):
                if k is not None:
                    new[:, i] = old.data[:, k]
            setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))

    def routing(self, x: Tensor) -> tuple[Tensor, RoutingBatch]:
        """Weights [U, H, S] and the batch, after a check that the examples of `x` [B * k, ..., I] fit the batch's B."""
        batch = self.state.current()
        n = batch.rows.shape[0]
        if x.shape[0] % n:
            raise TargetError(
                f"layer {self.name!r} got {x.shape[0]} rows for {n} task ids: expected one id per example (rows may be "
                "a multiple, as with beams or choices); a layer that does not see the batch first cannot be routed"
            )
        return self.router(batch), batch

    def check_heads(self, **sizes: int) -> None:
        """Raise TargetError, naming the layer, where a size does not divide by the number of heads."""
        for what, size in sizes.items():
            if size % self.config.n_heads:
                fitting = [h for h in range(1, 65) if size % h == 0]
                raise TargetError(
                    f"n_heads is {self.config.n_heads}, which does not divide the {size} {what} features of layer {self.name!r}: "
                    f"use one of {', '.join(map(str, fitting))}, or leave the layer out of targets"
                )

    def extra_repr(self) -> str:
        heads, skills = self.router.even.shape
        return f"{self.config.method}, n_heads={heads}, n_skills={skills}"

    def _device(self) -> torch.device:
        return next(iter(self.base.parameters())).device
