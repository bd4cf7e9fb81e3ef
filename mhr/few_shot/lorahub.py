"""LoraHub (arXiv 2307.13269): one LoRA for a new task as a weighted sum of others, its weights searched on the shots without gradients.

    A = sum_k w_k A_k, B = sum_k w_k B_k,    w = argmin loss(shots; A, B) + 0.05 mean_k |w_k|,    -1.5 <= w_k <= 1.5

The penalty is that of the released code; the paper sums |w_k|. The paper searches with nevergrad, which would be one more dependency; here it is a
(1 + 1) evolution strategy with the one-fifth success rule.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from mhr.adapters.experts import gather, names_of
from mhr.adapters.plain import PlainAdapter, bank_size
from mhr.data import Example, Task
from mhr.errors import ConfigError, TrainingError
from mhr.few_shot.selecting import Validation
from mhr.few_shot.starts import Start
from mhr.layers import AdapterBank
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig

PENALTY = 0.05
BOUND = 1.5
SPREAD = 0.2
"""Standard deviation of the first steps from the best weights so far."""


class Search:
    """A (1 + 1) evolution strategy over weights [K]: `w = clip(best + sigma N(0, 1), -1.5, 1.5)`, in float64.

    sigma grows by 1.5 with each better candidate and shrinks by 1.5 ** -0.25 with each other one, so that it stays where one in five
    is better (Rechenberg). The first candidate is 0, the base model, and the second 1/K, the average.
    """

    def __init__(self, size: int, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.first = [torch.zeros(size, dtype=torch.float64), torch.full((size,), 1 / size, dtype=torch.float64)]
        self.best, self.value, self.sigma = self.first[0], float("inf"), SPREAD
        self.asked, self.drawn = self.first[0], False

    def ask(self) -> Tensor:
        """The next candidate."""
        self.drawn = not self.first
        if self.first:
            self.asked = self.first.pop(0)
        else:
            step = torch.randn(len(self.best), generator=self.generator, dtype=torch.float64)
            self.asked = (self.best + self.sigma * step).clamp(-BOUND, BOUND)
        return self.asked

    def tell(self, value: float) -> bool:
        """What the candidate was worth, the lower the better; whether it is the best."""
        better = value < self.value
        if better:
            self.best, self.value = self.asked, value
        if self.drawn:
            self.sigma *= 1.5 if better else 1.5**-0.25
        return better


@dataclass(frozen=True)
class Hub:
    """LoRAs that are weighed: their names, and of each layer their factors A [K, I, R] and B [K, R, O], at one scaling."""

    names: list[str]
    layers: dict[str, dict[str, Tensor]]

    @classmethod
    def draw(cls, run: RunFolder, experts: str | None, n: int, seed: int) -> Hub:
        """The LoRAs of a run, `n` of them drawn by the seed where there are more. Raises ConfigError for fewer than 2."""
        sources = gather([run.path], experts)
        if len(sources) < 2:
            raise ConfigError(
                f"run {run.path} has one LoRA, which leaves nothing to weigh: use experts 'skills', or mode 'mu'"
            )
        if len(sources) > n:
            kept = sorted(random.Random(seed).sample(range(len(sources)), n))
            sources = [sources[i] for i in kept]
        return cls.of(sources)

    @classmethod
    def of(cls, sources: Sequence[PlainAdapter]) -> Hub:
        rank, alpha = bank_size([shape for source in sources for shape in source.shapes.values()])
        layers = {}
        for name in sources[0].shapes:
            parts = [source.layers[name].as_bank(name, rank, alpha) for source in sources]
            layers[name] = {key: torch.cat([part[key][0] for part in parts]) for key in parts[0]}
        return cls(names_of(sources), layers)

    @torch.no_grad()
    def put(self, bank: AdapterBank, weights: Tensor) -> None:
        """Make the one skill of a bank the sum of the LoRAs by weights [K]."""
        for name, layer in bank.layers.items():
            for key, parameter in layer.bank().items():
                factors = self.layers[name][key].to(parameter)
                parameter[0, 0] = torch.einsum("k,kpq->pq", weights.to(parameter), factors)


def search_weights(
    hub: Hub,
    start: Start,
    kind: str,
    task: Task,
    settings: RunConfig,
    examples: Sequence[Example],
    log: RunFolder,
    callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    """Search `adapt.steps` candidates on examples of a task, and leave the best on the model; returns its objective and weights by
    the LoRAs' names, which `log` also gets with each step.

    callbacks are told of each candidate as of a step, the model holding the best so far. Raises TrainingError for a loss that is not
    finite.
    """
    assert start.bank is not None
    few = settings.adapt
    judge = Validation(start, kind, task, examples, settings)
    search = Search(len(hub.names), few.seeds[0])
    found: dict[str, Any] = {}
    control = TrainerControl()
    arguments: Any = None  # which no callback of an adaptation reads
    for step in range(1, few.steps + 1):
        weights = search.ask()
        hub.put(start.bank, weights)
        loss = judge.loss()
        if loss != loss:
            raise TrainingError(
                f"the loss of candidate {step} is {loss}: the model or its LoRAs hold values that are not finite"
            )
        search.tell(loss + PENALTY * float(weights.abs().mean()))
        found = {"objective": search.value, "weights": dict(zip(hub.names, search.best.tolist(), strict=True))}
        log.log({"step": step, "loss": loss, **found})
        hub.put(start.bank, search.best)
        for callback in callbacks:
            callback.on_step_end(arguments, TrainerState(global_step=step), control)
        if control.should_training_stop:
            break
    return found
