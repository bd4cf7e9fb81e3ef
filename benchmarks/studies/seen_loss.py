"""Loss on examples of the training tasks that were not trained on, at every checkpoint that a run kept."""

from __future__ import annotations

import torch

from mhr.adapters import attach_checkpoint, kind_of, read_adapter
from mhr.analysis.alignment import points
from mhr.backbones import load_backbone
from mhr.data import TaskCollection
from mhr.layers import detach
from mhr.loading import Loading
from mhr.objectives import make_objective
from mhr.runs import RunFolder

BATCH = 64


def seen_losses(run: RunFolder, tasks: TaskCollection, *, at_end: bool = False) -> dict[int, dict[str, float]]:
    """Step -> task -> mean loss per target token (of a classifier: per example) over the task's test examples, routed by the task's own row, without noise.
    at_end: of the last step alone."""
    config = run.config()
    found: dict[int, dict[str, float]] = {}
    kept = points(run)[-1 if at_end else 0 :]
    first = read_adapter(kept[0][1])
    model, tokenizer = load_backbone(first.base.name_or_path, first.base.kind, Loading.of(config))
    objective = make_objective(kind_of(model), heads=first.heads)
    collate = objective.collator(
        tokenizer, config.data.max_input_length, config.data.max_target_length, config.data.chat
    )
    examples = [example for task in tasks.values() for example in task.test]
    for step, path in kept:
        attach_checkpoint(read_adapter(path), model)
        model.eval()
        sums: dict[str, list[float]] = {}
        with torch.no_grad():
            for start in range(0, len(examples), BATCH):
                losses = objective(model, collate(examples[start : start + BATCH]))
                for task, total, n in zip(losses.tasks, losses.sums.tolist(), losses.counts.tolist(), strict=True):
                    own = sums.setdefault(task, [0.0, 0.0])
                    own[0], own[1] = own[0] + total, own[1] + n
        detach(model)
        found[step] = {task: total / n for task, (total, n) in sums.items()}
    return found


def at_budget(losses: dict[str, dict[str, float]], flops: float, budget: float) -> dict[str, float]:
    """Task -> loss when `budget` is spent at `flops` a step, between two checkpoints by a straight line; of a run that is shorter,
    at its end. losses: step -> task -> loss, with the steps as JSON has them."""
    steps = sorted(int(step) for step in losses)
    wanted = budget / flops
    after = next((step for step in steps if step >= wanted), steps[-1])
    before = max((step for step in steps if step <= wanted), default=after)
    share = 0.0 if after == before else (wanted - before) / (after - before)
    first, last = losses[str(before)], losses[str(after)]
    return {task: first[task] + share * (last[task] - first[task]) for task in first}
