"""LoraHub (arXiv 2307.13269): one LoRA for a new task as a weighted sum of others, its weights searched on the shots without gradients.

    A = sum_k w_k A_k, B = sum_k w_k B_k,    w = argmin loss(shots; A, B) + 0.05 mean_k |w_k|,    -1.5 <= w_k <= 1.5

The penalty is that of the released code; the paper sums |w_k|. The paper searches with nevergrad, which would be one more dependency; here it is
`mhr.weight_search`, beginning with w = 0, the base model, and w = 1/K, the average.
"""

from __future__ import annotations

import random
import statistics
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
from mhr.weight_search import WeightSearch

PENALTY = 0.05
BOUND = 1.5


@dataclass(frozen=True)
class Hub:
    """LoRAs that are weighed: their names, and of each layer their factors A [K, I, R] and B [K, R, O], at one scaling."""

    names: list[str]
    layers: dict[str, dict[str, Tensor]]

    @classmethod
    def draw(cls, run: RunFolder, experts: str | None, n: int, seed: int) -> Hub:
        """The LoRAs of a run, `n` of them drawn by the seed where there are more. Raises ConfigError as `loras_of`."""
        sources = loras_of(run, experts)
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
    def put(self, bank: AdapterBank, weights: Sequence[float]) -> None:
        """Make the one skill of a bank the sum of the LoRAs by weights [K]."""
        for name, layer in bank.layers.items():
            for key, parameter in layer.bank().items():
                factors = self.layers[name][key].to(parameter)
                parameter[0, 0] = torch.einsum("k,kpq->pq", parameter.new_tensor(weights), factors)


def loras_of(run: RunFolder, experts: str | None) -> list[PlainAdapter]:
    """The LoRAs of a run that can be weighed. Raises ConfigError for fewer than 2."""
    sources = gather([run.path], experts)
    if len(sources) < 2:
        raise ConfigError(
            f"run {run.path} has one LoRA, which leaves nothing to weigh: use experts 'skills', or mode 'mu'"
        )
    return sources


def search_weights(
    hub: Hub,
    start: Start,
    kind: str,
    task: Task,
    settings: RunConfig,
    examples: Sequence[Example],
    log: RunFolder,
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Search `adapt.steps` candidates on examples of a task, and leave the best on the model; with each step `log` gets the objective of
    the best so far and its weights by the LoRAs' names, see `found_at`.

    callbacks are told of each candidate as of a step, the model holding the best so far. Raises TrainingError for a loss that is not
    finite.
    """
    assert start.bank is not None
    few = settings.adapt
    judge = Validation(start, kind, task, examples, settings, settings.train)
    size = len(hub.names)
    search = WeightSearch(size, [[0.0] * size, [1 / size] * size], seed=few.seeds[0], bounds=(-BOUND, BOUND))
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
        search.tell(-loss - PENALTY * statistics.fmean(map(abs, weights)))
        found = {"objective": -search.score, "weights": dict(zip(hub.names, search.weights, strict=True))}
        log.log({"step": step, "loss": loss, **found})
        hub.put(start.bank, search.weights)
        for callback in callbacks:
            callback.on_step_end(arguments, TrainerState(global_step=step), control)
        if control.should_training_stop:
            break


def found_at(step: int, log: RunFolder) -> dict[str, Any]:
    """What a search had found by a step: the objective and the weights, as `log` has them."""
    (record,) = [record for record in log.metrics() if record["step"] == step]
    return {name: record[name] for name in ("objective", "weights")}
