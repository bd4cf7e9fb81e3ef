"""A router as someone may add one: a network that all tasks share over a vector of each task, with settings of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.methods import METHODS, ROUTING_METHODS, Method, RoutingMethod
from mhr.routing import ParameterGroup, Router, RoutingBatch, routers
from mhr.setting import Settings, setting

NAME = "network"


@dataclass
class NetworkSettings(Settings):
    width: int = setting(3, "Length of a task's vector.", at_least=1)
    network_lr: float = setting(1e-3, "Learning rate of the network.", above=0)


class NetworkRouter(Router):
    """`w[t] = softmax over skills of W tanh(v_t) + b`."""

    per_task = ("vectors",)
    settings: NetworkSettings

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], index: int = 0):
        super().__init__(config, tasks, index)
        self.vectors = nn.Parameter(torch.randn(len(tasks), self.settings.width))
        self.network = nn.Sequential(nn.Tanh(), nn.Linear(self.settings.width, self.n_heads * self.n_skills))

    def forward(self, batch: RoutingBatch) -> Tensor:
        logits = self.network(self.vectors[batch.tasks.clamp(min=0)])
        return self.or_even(logits.view(-1, *self.even.shape).softmax(-1), batch.tasks)

    def reset(self) -> None:
        self.network[1].reset_parameters()

    def set_tasks(self, tasks: Sequence[str], keep: Sequence[int | None]) -> None:
        super().set_tasks(tasks, keep)
        old = self.vectors
        new = torch.randn(len(tasks), self.settings.width).to(old)
        for i, k in enumerate(keep):
            if k is not None:
                new[i] = old.data[k]
        self.vectors = nn.Parameter(new, requires_grad=old.requires_grad)

    def parameter_groups(self, routing: ParameterGroup) -> list[ParameterGroup]:
        network = ParameterGroup("network", list(self.network.parameters()), self.settings.network_lr, weight_decay=0.1)
        return [routing.of([self.vectors]), network]


@pytest.fixture
def network_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router in the tables, for the length of a test: all that the library is told of it."""
    monkeypatch.setitem(
        ROUTING_METHODS,
        NAME,
        RoutingMethod(
            NAME, "a network over task vectors", n_heads=2, n_skills=4, learned=True, settings=NetworkSettings
        ),
    )
    monkeypatch.setitem(METHODS, NAME, Method(NAME, "Network", "a network over task vectors", NAME))
    monkeypatch.setitem(routers._items, NAME, NetworkRouter)
