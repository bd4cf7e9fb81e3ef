"""What a trained adapter holds: its parameters, its tasks and their routing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mhr.adapters import (
    AdapterCheckpoint,
    context_state,
    empty_contexts,
    find_adapter,
    read_bank,
    routing_states,
    routing_transforms,
    routing_weights,
)
from mhr.analysis.agreement import Agreement, agreement, shared_skills
from mhr.analysis.routing import Routing
from mhr.errors import CheckpointError
from mhr.files import read_json
from mhr.methods import MODES, WHOLE
from mhr.routing import Router, TaskContexts, make_router

ROUTING = "routing"
TENSOR_KINDS = {"layers": "skills", "routers": ROUTING, "contexts": ROUTING, "modules": "modules"}
"""First part of a tensor's name -> what it is."""


@dataclass(frozen=True)
class Inspection:
    """An inspected adapter.

    method      routing method of the bank; `mhr.methods.WHOLE` where all weights of the model were trained and there is no bank
    adapter     "lora", "ia3", or "" without a bank
    parameters  "skills", "routing", "modules" (or "model") -> {"stored": n, "trained": n, "bytes": stored bytes}
    per_task    routing parameters of one task, which one more task would add; per_skill those of its own skill, 0 where it has none
    routing     the routing of its tasks
    run         what run.json says, {} outside a run folder
    """

    path: str
    base: str
    method: str
    adapter: str
    rank: int
    alpha: float
    n_layers: int
    parameters: dict[str, dict[str, int]]
    per_task: int
    per_skill: int
    routing: Routing
    run: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        return self.routing.tasks

    @property
    def trained(self) -> int:
        """Parameters that training changes, of all tasks together."""
        return sum(count["trained"] for count in self.parameters.values())

    @property
    def stored(self) -> int:
        """Parameters in the adapter's file."""
        return sum(count["stored"] for count in self.parameters.values())

    @property
    def bytes(self) -> int:
        """Bytes of the parameters in the adapter's file."""
        return sum(count["bytes"] for count in self.parameters.values())

    @property
    def routed(self) -> bool:
        """Whether tasks can differ in how they are routed."""
        return self.routing.varied

    @cached_property
    def agreement(self) -> Agreement | None:
        """Whether tasks of the built-in suite that share skills are routed alike; None for other tasks."""
        truth = shared_skills(self.tasks)
        return None if truth is None or not self.routed else agreement(self.routing.similarity, truth)

    def to_json(self) -> dict[str, Any]:
        """Everything but the full matrix, for programs."""
        routing = self.routing
        return {
            "path": self.path,
            "base": self.base,
            "method": self.method,
            "adapter": self.adapter,
            "rank": self.rank,
            "alpha": self.alpha,
            "n_layers": self.n_layers,
            "n_heads": routing.n_heads,
            "n_skills": routing.n_skills,
            "tasks": self.tasks,
            "parameters": self.parameters
            | {"all": {"stored": self.stored, "trained": self.trained, "bytes": self.bytes}},
            "routing_parameters_per_task": self.per_task,
            "skill_parameters_per_task": self.per_skill,
            "by_skill": dict(zip(self.tasks, routing.by_skill.tolist(), strict=True)),
            "entropy": routing.entropy,
            "effective_skills": routing.effective_skills,
            "discreteness": routing.discreteness,
            "by_task": routing.by_task if self.routed else {},
            "most_alike": {task: [list(pair) for pair in pairs] for task, pairs in routing.most_alike().items()},
            "agreement_with_shared_skills": None if self.agreement is None else dataclasses.asdict(self.agreement),
        }


def inspect_run(path: str | Path) -> Inspection:
    """Inspect a run folder, an adapter checkpoint or a PEFT folder.

    Raises CheckpointError for what is missing, unfinished or damaged.
    """
    path = Path(path)
    run = read_json(path / "run.json", CheckpointError) if (path / "run.json").is_file() else {}
    if run and not (path / "adapter").is_dir():
        if (path / "model" / "config.json").is_file():
            return _inspect_model(path, run)
        raise CheckpointError(f"run {path} has no adapter yet (status {run.get('status')!r}): finish it with --resume")
    folder = find_adapter(path)
    checkpoint = read_bank(folder)
    config = checkpoint.config
    return Inspection(
        path=str(path),
        base=checkpoint.base.name_or_path,
        method=config.method,
        adapter=config.adapter,
        rank=config.rank,
        alpha=float(config.alpha),
        n_layers=len(checkpoint.layers),
        parameters=_parameters(checkpoint, run.get("mode")),
        per_task=_per_task(checkpoint),
        per_skill=sum(tensor.numel() for name, tensor in checkpoint.tensors.items() if _of_a_task(checkpoint, name))
        // len(checkpoint.tasks),
        routing=Routing(checkpoint.tasks, _shown(checkpoint), config.routing.convex),
        run=run,
    )


def _shown(checkpoint: AdapterCheckpoint) -> dict[str, Tensor]:
    """What `Routing` compares tasks by: weights, or, of one skill with matrices between its factors, those."""
    routing = checkpoint.config.routing
    if routing.by_token:
        return {}
    return (routing_transforms if routing.one_skill and routing.transforms else routing_weights)(checkpoint)


def _parameters(checkpoint: AdapterCheckpoint, mode: str | None) -> dict[str, dict[str, int]]:
    """Counts by kind. An adaptation that trains no skills trains rows of routing only, or its task's head; a table that is fixed is only
    stored, and so are LoRAs that were finished before tokens chose among them."""
    all_of_it = not checkpoint.config.routing.by_token and (mode not in MODES or MODES[mode].trains_skills)
    counts = {kind: {"stored": 0, "trained": 0, "bytes": 0} for kind in TENSOR_KINDS.values()}
    for name, tensor in checkpoint.tensors.items():
        kind = TENSOR_KINDS[name.partition(".")[0]]
        counts[kind]["stored"] += tensor.numel()
        counts[kind]["bytes"] += tensor.nbytes
        if kind != ROUTING and (all_of_it or _of_a_task(checkpoint, name)):
            counts[kind]["trained"] += tensor.numel()
    rows, shared = _routing_parameters(checkpoint, mode is not None)
    counts[ROUTING]["trained"] = rows + (shared if all_of_it else 0)
    return {kind: count for kind, count in counts.items() if count["stored"]}


def _of_a_task(checkpoint: AdapterCheckpoint, name: str) -> bool:
    """Whether a tensor holds a trained skill for each task, and nothing that tasks share."""
    routing = checkpoint.config.routing
    owned = routing.skill_per_task and not routing.by_token
    return owned and name.startswith("layers.") and not checkpoint.config.in_common(name.rpartition(".")[2])


def _per_task(checkpoint: AdapterCheckpoint) -> int:
    return _routing_parameters(checkpoint, True)[0] // len(checkpoint.tasks)


def _routing_parameters(checkpoint: AdapterCheckpoint, adapted: bool) -> tuple[int, int]:
    """How many parameters routers have for their tasks' rows, and how many that all tasks share."""
    with torch.random.fork_rng(devices=[]):  # a router draws itself at random
        contexts = empty_contexts(checkpoint)
        router = make_router(checkpoint.config, checkpoint.tasks, contexts=contexts)
    parts: list[tuple[Router | TaskContexts, dict[str, Tensor]]] = [
        (router, state) for state in routing_states(checkpoint).values()
    ]
    if contexts is not None:
        contexts.train_in(adapted)
        parts.append((contexts, context_state(checkpoint)))
    rows = shared = 0
    for part, state in parts:
        for name in {name for name, p in part.named_parameters() if p.requires_grad} & state.keys():
            if name in part.per_task:
                rows += state[name].numel()
            else:
                shared += state[name].numel()
    return rows, shared


def _inspect_model(path: Path, run: dict[str, Any]) -> Inspection:
    n = size = 0
    for file in (path / "model").glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            n += sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118
        size += file.stat().st_size
    return Inspection(
        path=str(path),
        base=str(run.get("base", "")),
        method=WHOLE,
        adapter="",
        rank=0,
        alpha=0.0,
        n_layers=0,
        parameters={"model": {"stored": n, "trained": n, "bytes": size}},
        per_task=0,
        per_skill=0,
        routing=Routing(list(run.get("tasks", [])), {}),
        run=run,
    )
