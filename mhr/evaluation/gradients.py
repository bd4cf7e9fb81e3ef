"""Gradients of tasks with respect to the skills of a bank, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mhr.adapters import kind_of
from mhr.backbones import heads_of
from mhr.data import Example
from mhr.data.collators import Batch, Collator
from mhr.layers import AdapterBank
from mhr.objectives import make_objective

BUDGET = 2**30
"""Bytes of gradients that are kept at a time, by default."""

BLOCK = 2**16
"""Columns that are widened to float64 at a time."""

Gradient = Callable[[Sequence[nn.Parameter]], Sequence[Tensor | None]]


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


def mixed(
    gradients: Sequence[Gradient], groups: dict[str, list[nn.Parameter]]
) -> tuple[list[Gradient], dict[str, list[nn.Parameter]]]:
    """The same gradients with respect to the MIXED factors, and stand-ins for the parameters, for `gram_matrices`.

    A mixed factor is `A_t = sum_s w_ts A_s` [H, ...] with weights that sum to 1, and the bank's gradient `dL/dA_s = w_ts dL/dA_t`,
    so that `dL/dA_t = sum_s dL/dA_s`: the sum over the axis of skills, the second one of every parameter of a bank. How
    alike two tasks are routed does not enter it. The stand-ins hold no numbers.
    """
    of: dict[nn.Parameter, nn.Parameter] = {}
    stand_ins: dict[str, list[nn.Parameter]] = {}
    for name, parameters in groups.items():
        for p in parameters:
            stand_in = nn.Parameter(torch.empty(p.shape[:1] + p.shape[2:], dtype=p.dtype, device="meta"))
            of[stand_in] = p
            stand_ins.setdefault(name, []).append(stand_in)

    def summed(gradient: Gradient) -> Gradient:
        return lambda asked: [g if g is None else g.sum(dim=1) for g in gradient([of[p] for p in asked])]

    return [summed(gradient) for gradient in gradients], stand_ins


class TaskLoss:
    """The mean loss of one task's examples, and its gradient, a batch at a time.

    row  of the routing table that they are routed by, -1 uniformly; None takes the task's own, or -1 where it has none
    """

    def __init__(
        self,
        model: nn.Module,
        bank: AdapterBank,
        name: str,
        examples: list[Example],
        collator: Collator,
        row: int | None = None,
    ):
        self.model = model
        self.name = name
        self.objective = make_objective(kind_of(model), heads=heads_of(model))
        if row is None:
            row = bank.tasks.index(name) if name in bank.tasks else -1
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
