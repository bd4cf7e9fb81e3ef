"""Gradient alignment: do tasks pull the shared adapters the same way?

For a checkpoint, one gradient per task: of its mean loss over fixed examples, with respect to the skills of the bank, routed as
in evaluation, without dropout and noise. The alignment is the mean cosine over pairs of tasks, per adapted layer and overall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mhr.adapters import AdapterCheckpoint, attach_checkpoint, is_adapter, kind_of, read_adapter
from mhr.backbones import heads_of, load_backbone
from mhr.checks import check_whole
from mhr.data import Example, TaskCollection
from mhr.data.collators import Batch, Collator
from mhr.errors import CheckpointError, TaskError
from mhr.few_shot.shots import draw_shots
from mhr.layers import AdapterBank, detach
from mhr.loading import Loading
from mhr.objectives import make_objective
from mhr.objectives.lengths import fit_data
from mhr.runs.checkpoints import all_checkpoints, fault_of, step_of
from mhr.runs.run import RunFolder

BUDGET = 2**30
"""Bytes of gradients that are kept at a time, by default."""

BLOCK = 2**16
"""Columns that are widened to float64 at a time."""

Gradient = Callable[[Sequence[nn.Parameter]], Sequence[Tensor | None]]


@dataclass(frozen=True)
class Alignment:
    """Alignment of T tasks' gradients at one checkpoint.

    step     optimizer steps after which the checkpoint was made
    gram     float64 [T, T], `g_i . g_j` over all skills of the bank
    layers   adapted layer -> mean cosine over pairs of tasks, of the layer's own gradients; None where no pair has two that
             are not 0
    losses   task -> loss of its examples, per target token (per example for encoders)
    """

    step: int
    tasks: list[str]
    gram: Tensor
    layers: dict[str, float | None]
    losses: dict[str, float]

    @property
    def mean(self) -> float | None:
        """Mean cosine over pairs of tasks."""
        return mean_cosine(self.gram)

    @property
    def cosines(self) -> Tensor:
        """[T, T]; 0 beside a gradient that is 0."""
        return cosines(self.gram).nan_to_num(0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "mean": self.mean,
            "layers": self.layers,
            "tasks": self.tasks,
            "cosines": self.cosines.tolist(),
            "losses": self.losses,
        }


def align_run(
    run: str | Path,
    collection: TaskCollection,
    *,
    examples: int = 16,
    seed: int = 0,
    budget: int = BUDGET,
    base: str | None = None,
    loading: Loading | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Alignment]:
    """The alignment of `collection`'s tasks at every checkpoint that the pretraining run kept, the first one first.

    examples   training examples of each task, drawn by `mhr.few_shot.shots.draw_shots` with `seed`, the same for every run.
               A task that the bank does not know is routed uniformly
    budget     see `gram_matrices`
    base, loading   see `mhr.evaluation.load_model`
    say        gets one line as each part begins

    Raises CheckpointError for a run without an adapter, TaskError for fewer than two tasks, DataError for a task with fewer
    examples.
    """
    check_whole("examples", examples, at_least=1)
    folder = RunFolder.open(run)
    checkpoints = points(folder)
    if len(collection) < 2:
        raise TaskError(f"gradient alignment compares tasks, and {len(collection)} is given: name at least two")
    first = read_adapter(checkpoints[0][1])
    model, tokenizer = load_backbone(
        base or first.base.name_or_path, first.base.kind, (loading or Loading()).over(folder.config())
    )
    objective = make_objective(kind_of(model), heads=first.heads)
    data, _ = fit_data(model, tokenizer, objective.kind, folder.config().data)
    collator = objective.collator(tokenizer, data.max_input_length, data.max_target_length, data.chat)
    drawn = {task.name: draw_shots(task, examples, seed) for task in collection.values()}
    aligned = []
    for step, path in checkpoints:
        say(f"Gradients of {len(drawn)} tasks after {step} steps")
        aligned.append(align(read_adapter(path), model, drawn, collator, step=step, budget=budget))
    return aligned


def points(run: RunFolder) -> list[tuple[int, Path]]:
    """(step, folder) of every adapter that a run has: its sound checkpoints and its result, in the order of the steps."""
    checkpoints = {step_of(p): p for p in all_checkpoints(run.checkpoints) if fault_of(p) is None and is_adapter(p)}
    if run.status == "done" and is_adapter(run.adapter):
        checkpoints[int(run.info["steps"] or 0)] = run.adapter  # of an imported run they may be unknown
    if not checkpoints:
        raise CheckpointError(f"run {run.path} has no adapter (method {run.info.get('method')!r}): nothing to align")
    return sorted(checkpoints.items())


def align(
    checkpoint: AdapterCheckpoint,
    model: nn.Module,
    examples: dict[str, list[Example]],
    collator: Collator,
    *,
    step: int = 0,
    budget: int = BUDGET,
) -> Alignment:
    """The alignment of one checkpoint on its base model `model`, which is left as it was. examples: task -> fixed examples."""
    bank = attach_checkpoint(checkpoint, model)
    model.eval()
    try:
        tasks = [_TaskLoss(model, bank, task, drawn, collator) for task, drawn in examples.items()]
        groups = {name: list(layer.bank().values()) for name, layer in bank.layers.items()}
        gram, layers = gram_matrices([task.gradient for task in tasks], groups, budget)
        losses = {task.name: task.loss for task in tasks}
    finally:
        detach(model)
    return Alignment(step, list(examples), gram, layers, losses)


def gram_matrices(
    gradients: Sequence[Gradient], groups: dict[str, list[nn.Parameter]], budget: int = BUDGET
) -> tuple[Tensor, dict[str, float | None]]:
    """Inner products of T gradients, float64 [T, T], and the mean cosine of each group of parameters.

    gradients  T functions: parameters -> the gradient of each, None for one that has no part in it
    groups     name -> parameters, P elements in all
    budget     bytes of gradients that are held at a time

    The P columns of the T x P matrix of gradients are split into windows of budget / T bytes; for each window every gradient is
    computed once, and only for the parameters that the window touches. So memory is T^2 + budget + one gradient, whatever P,
    and the time is ceil(T * P * 4 / budget) passes over the tasks.
    """
    flat = [(name, p) for name, parameters in groups.items() for p in parameters]
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    of_layer = torch.zeros_like(total)
    means: dict[str, float | None] = {}
    for window in _windows([p.numel() for _, p in flat], max(1, budget // (4 * len(gradients)))):
        rows = _rows(gradients, {flat[i][1]: span for i, span in window.items()})
        for i, (_, stop) in window.items():
            name, p = flat[i]
            for block in rows[p].split(BLOCK, dim=1):
                wide = block.double()
                of_layer += wide @ wide.T
            if stop == p.numel() and (i + 1 == len(flat) or flat[i + 1][0] != name):
                total += of_layer
                means[name] = mean_cosine(of_layer)
                of_layer.zero_()
    return total, means


def cosines(gram: Tensor) -> Tensor:
    """`G_ij / sqrt(G_ii G_jj)` [T, T]; not a number beside a gradient that is 0."""
    norms = gram.diagonal().sqrt()
    return gram / (norms[:, None] * norms)


def mean_cosine(gram: Tensor) -> float | None:
    """Mean of `cosines` over the pairs i < j whose gradients are both not 0; None without such a pair."""
    rows, columns = torch.triu_indices(len(gram), len(gram), 1)
    pairs = cosines(gram)[rows, columns]
    pairs = pairs[pairs.isfinite()]
    return float(pairs.mean()) if len(pairs) else None


class _TaskLoss:
    """The mean loss of one task's examples, and its gradient, a batch at a time."""

    def __init__(self, model: nn.Module, bank: AdapterBank, name: str, examples: list[Example], collator: Collator):
        self.model = model
        self.name = name
        self.objective = make_objective(kind_of(model), heads=heads_of(model))
        row = bank.tasks.index(name) if name in bank.tasks else -1  # -1 is routed uniformly
        device = next(model.parameters()).device
        self.batches = [_on(device, collator(examples[i : i + 16]), row) for i in range(0, len(examples), 16)]
        self.count = sum(int(self.objective.count(batch)) for batch in self.batches)
        self.loss = math.nan

    def gradient(self, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        sums: list[Tensor | None] = [None] * len(parameters)
        self.loss = 0.0
        for batch in self.batches:
            loss = self.objective(self.model, batch).sums.sum() / self.count
            self.loss += float(loss.detach())
            parts = torch.autograd.grad(loss, parameters, allow_unused=True)
            sums = [_sum(a, b) for a, b in zip(sums, parts, strict=True)]
        return sums


def _on(device: torch.device, batch: Batch, row: int) -> Batch:
    """A batch on the device of the model, all of it routed by one row of the table."""
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return moved | {"task_ids": [row] * len(batch["task_ids"])}


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _windows(sizes: Sequence[int], width: int) -> Iterator[dict[int, tuple[int, int]]]:
    """Splits the concatenated parameters into windows of `width` elements: index -> [start, stop) inside that parameter."""
    window: dict[int, tuple[int, int]] = {}
    room = width
    for i, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + room)
            window[i] = (start, stop)
            room -= stop - start
            start = stop
            if room == 0:
                yield window
                window, room = {}, width
    if window:
        yield window


def _rows(gradients: Sequence[Gradient], spans: dict[nn.Parameter, tuple[int, int]]) -> dict[nn.Parameter, Tensor]:
    """For each parameter, the wanted columns of all gradients: [T, stop - start] in its dtype."""
    rows = {p: p.new_zeros(len(gradients), stop - start, device="cpu") for p, (start, stop) in spans.items()}
    for t, gradient in enumerate(gradients):
        for (p, (start, stop)), part in zip(spans.items(), gradient(list(spans)), strict=True):
            if part is not None:
                rows[p][t] = part.flatten()[start:stop]
    return rows
