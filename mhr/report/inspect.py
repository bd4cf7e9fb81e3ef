"""What a trained adapter holds: parameters, tasks, routing weights, their entropy, and which tasks are routed alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mhr.checkpoint import AdapterCheckpoint, is_adapter, read_adapter, routing_weights
from mhr.checkpoint.plain import plain_checkpoint
from mhr.errors import CheckpointError
from mhr.files import read_json
from mhr.interop.peft import load_peft
from mhr.merging import find_adapter

KINDS = {"layers": "skills", "routers": "routing", "modules": "modules"}
"""First part of a tensor's name -> what it is."""

LEARNED_ROUTING = ("mhr", "poly")


@dataclass(frozen=True)
class Inspection:
    """An adapter, looked at. Symbols: T tasks, G groups of layers that share a routing table, H heads, S skills.

    method      routing method of the bank; "full" where all weights of the model were trained and there is no bank
    adapter     "lora", "ia3", or "" without a bank
    parameters  "skills", "routing", "modules" (or "model") -> {"stored": n, "trained": n}
    weights     group -> routing weights [T, H, S], without noise; over S they sum to 1
    run         what run.json says, {} outside a run folder
    """

    path: str
    base: str
    method: str
    adapter: str
    rank: int
    alpha: float
    tasks: list[str]
    n_layers: int
    parameters: dict[str, dict[str, int]]
    weights: dict[str, Tensor]
    run: dict[str, Any]

    @property
    def n_heads(self) -> int:
        return self._stacked.shape[2]

    @property
    def n_skills(self) -> int:
        return self._stacked.shape[3]

    @property
    def trained(self) -> int:
        """Parameters that training changes, of all tasks together."""
        return sum(count["trained"] for count in self.parameters.values())

    @property
    def stored(self) -> int:
        """Numbers in the adapter's file."""
        return sum(count["stored"] for count in self.parameters.values())

    @property
    def per_task(self) -> int:
        """Routing parameters of one task: G * H * S where routing is learned, otherwise 0."""
        return len(self.weights) * self.n_heads * self.n_skills if self.method in LEARNED_ROUTING else 0

    @property
    def routed(self) -> bool:
        """Whether tasks can differ in how they are routed, so that the rest of this class says something."""
        return self.method not in ("shared", "uniform", "full") and self.n_skills > 1

    @property
    def columns(self) -> list[tuple[str, int, int]]:
        """(group, head, skill) of each column of `matrix`."""
        return [(g, h, s) for g in self.weights for h in range(self.n_heads) for s in range(self.n_skills)]

    @property
    def matrix(self) -> Tensor:
        """Routing weights [T, G * H * S], columns as in `columns`."""
        return self._stacked.flatten(1)

    @property
    def by_layer(self) -> Tensor:
        """Routing weights [T, G, S], averaged over heads."""
        return self._stacked.mean(2)

    @property
    def by_skill(self) -> Tensor:
        """Routing weights [T, S], averaged over layers and heads. Skills of different layers are not the same skill."""
        return self._stacked.mean((1, 2))

    @property
    def entropy(self) -> dict[str, float]:
        """Group -> `-sum_s w log w / log S`, averaged over tasks and heads: 1 is uniform, 0 one skill (or only one there)."""
        if self.n_skills == 1:
            return dict.fromkeys(self.weights, 0.0)
        w = self._stacked.double()
        bits = -torch.special.xlogy(w, w).sum(-1).mean((0, 2)) / torch.tensor(self.n_skills).double().log()
        return dict(zip(self.weights, bits.tolist(), strict=True))

    @cached_property
    def similarity(self) -> Tensor:
        """Cosine [T, T] of `w - 1/S` over all layers, heads and skills.

        Uniform routing is the origin: 1 is two tasks that leave it in the same direction, 0 in unrelated ones, and a task
        that is routed uniformly is like no other. (The weights themselves, all positive, have cosines near 1.)
        """
        away = (self._stacked - 1 / self.n_skills).flatten(1)
        norms = away.norm(dim=1, keepdim=True)
        # What is left of a uniform row is rounding, which has a direction but no meaning.
        unit = torch.where(norms > 1e-6 * self._stacked.flatten(1).norm(dim=1, keepdim=True), away / norms, 0.0)
        return (unit @ unit.T).clamp(-1, 1).fill_diagonal_(1.0)

    def most_alike(self, n: int = 1) -> dict[str, list[tuple[str, float]]]:
        """Task -> its `n` most similar other tasks with their cosines; empty where tasks are routed alike by design."""
        if not self.routed or len(self.tasks) < 2:
            return {}
        others = self.similarity.clone().fill_diagonal_(-torch.inf)
        values, indices = others.topk(min(n, len(self.tasks) - 1))
        return {
            task: [(self.tasks[i], v) for i, v in zip(indices[row].tolist(), values[row].tolist(), strict=True)]
            for row, task in enumerate(self.tasks)
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the full matrix, for programs."""
        return {
            "path": self.path,
            "base": self.base,
            "method": self.method,
            "adapter": self.adapter,
            "rank": self.rank,
            "alpha": self.alpha,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_skills": self.n_skills,
            "tasks": self.tasks,
            "parameters": self.parameters | {"all": {"stored": self.stored, "trained": self.trained}},
            "routing_parameters_per_task": self.per_task,
            "by_skill": dict(zip(self.tasks, self.by_skill.tolist(), strict=True)),
            "entropy": self.entropy,
            "most_alike": {task: [list(pair) for pair in pairs] for task, pairs in self.most_alike().items()},
        }

    @cached_property
    def _stacked(self) -> Tensor:
        """[T, G, H, S]."""
        if not self.weights:
            return torch.ones(len(self.tasks), 1, 1, 1)
        return torch.stack(list(self.weights.values()), dim=1)


def inspect_run(path: str | Path) -> Inspection:
    """Look at a run folder, an adapter checkpoint or a PEFT folder.

    Raises CheckpointError for what is missing, unfinished or damaged.
    """
    path = Path(path)
    run = read_json(path / "run.json", CheckpointError) if (path / "run.json").is_file() else {}
    if run and not (path / "adapter").is_dir():
        if (path / "model" / "config.json").is_file():
            return _inspect_model(path, run)
        raise CheckpointError(f"run {path} has no adapter yet (status {run.get('status')!r}): finish it with --resume")
    folder = find_adapter(path)
    checkpoint = read_adapter(folder) if is_adapter(folder) else plain_checkpoint(load_peft(folder))
    config = checkpoint.config
    return Inspection(
        path=str(path),
        base=checkpoint.base.name_or_path,
        method=config.method,
        adapter=config.adapter,
        rank=config.rank,
        alpha=float(config.alpha),
        tasks=checkpoint.tasks,
        n_layers=len(checkpoint.layers),
        parameters=_parameters(checkpoint, run.get("mode")),
        weights=routing_weights(checkpoint),
        run=run,
    )


def _parameters(checkpoint: AdapterCheckpoint, mode: str | None) -> dict[str, dict[str, int]]:
    """Counts by kind. An adaptation of mode z trains the routing only; a routing table that is fixed is only stored."""
    counts = {kind: {"stored": 0, "trained": 0} for kind in KINDS.values()}
    for name, tensor in checkpoint.tensors.items():
        kind = KINDS[name.partition(".")[0]]
        counts[kind]["stored"] += tensor.numel()
        if checkpoint.config.method in LEARNED_ROUTING if kind == "routing" else mode != "z":
            counts[kind]["trained"] += tensor.numel()
    return {kind: count for kind, count in counts.items() if count["stored"]}


def _inspect_model(path: Path, run: dict[str, Any]) -> Inspection:
    n = 0
    for file in (path / "model").glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            n += sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118
    return Inspection(
        path=str(path),
        base=str(run.get("base", "")),
        method="full",
        adapter="",
        rank=0,
        alpha=0.0,
        tasks=list(run.get("tasks", [])),
        n_layers=0,
        parameters={"model": {"stored": n, "trained": n}},
        weights={},
        run=run,
    )
