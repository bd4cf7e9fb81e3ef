"""Gradient alignment: do tasks pull the shared adapters the same way?

For a checkpoint, one gradient per task: of its mean loss over fixed examples, with respect to the skills of the bank, routed as
in evaluation, without dropout and noise. The alignment is the mean cosine over pairs of tasks, per adapted layer and overall,
once in the coordinates of the bank, where tasks that are routed differently are apart for that reason alone, and once of the
mixed factors that the tasks use (`mhr.evaluation.gradients.mixed`), in which methods can be compared: at equal loss, see
`mhr.analysis.equal_loss`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mhr.adapters import AdapterCheckpoint, attach_checkpoint, is_adapter, kind_of, read_adapter
from mhr.backbones import load_backbone
from mhr.checks import check_whole
from mhr.data import Example, TaskCollection
from mhr.data.collators import Collator
from mhr.errors import CheckpointError, TaskError
from mhr.evaluation.gradients import BUDGET, TaskLoss, cosines, gram_matrices, mean_cosine, mixed
from mhr.few_shot.shots import draw_shots
from mhr.layers import detach
from mhr.loading import Loading
from mhr.objectives import make_objective
from mhr.objectives.lengths import fit_data
from mhr.runs.checkpoints import all_checkpoints, fault_of, step_of
from mhr.runs.run import RunFolder


@dataclass(frozen=True)
class Alignment:
    """Alignment of T tasks' gradients at one checkpoint.

    step     optimizer steps after which the checkpoint was made
    gram     float64 [T, T], `g_i . g_j` over all skills of the bank
    layers   adapted layer -> mean cosine over pairs of tasks, of the layer's own gradients; None where no pair has two that
             are not 0
    mixed_gram, mixed_layers   the same of the mixed factors' gradients; None and empty where weights do not sum to 1
    losses   task -> loss of its examples, per target token (per example for encoders)
    """

    step: int
    tasks: list[str]
    gram: Tensor
    layers: dict[str, float | None]
    mixed_gram: Tensor | None
    mixed_layers: dict[str, float | None]
    losses: dict[str, float]

    @property
    def mean(self) -> float | None:
        """Mean cosine over pairs of tasks."""
        return mean_cosine(self.gram)

    @property
    def mixed(self) -> float | None:
        """Mean cosine over pairs of tasks, of the mixed factors' gradients."""
        return None if self.mixed_gram is None else mean_cosine(self.mixed_gram)

    @property
    def loss(self) -> float:
        """Mean loss over tasks."""
        return statistics.mean(self.losses.values())

    @property
    def cosines(self) -> Tensor:
        """[T, T]; 0 beside a gradient that is 0."""
        return cosines(self.gram).nan_to_num(0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "mean": self.mean,
            "mixed": self.mixed,
            "loss": self.loss,
            "layers": self.layers,
            "mixed_layers": self.mixed_layers,
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
        base or first.base.name_or_path, first.base.kind, (loading or Loading()).over(folder.config(), base)
    )
    objective = make_objective(kind_of(model), heads=first.heads)
    data, _ = fit_data(model, tokenizer, objective.kind, folder.config().data)
    collator = objective.collator(tokenizer, data.max_input_length, data.max_target_length, data.chat)
    drawn = {task.name: draw_shots(task, examples, seed, called="examples") for task in collection.values()}
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
        tasks = [TaskLoss(model, bank, task, drawn, collator) for task, drawn in examples.items()]
        groups = {name: list(parameters.values()) for name, parameters in bank.banks().items()}
        gradients = [task.gradient for task in tasks]
        gram, layers = gram_matrices(gradients, groups, budget)
        mixed_gram: Tensor | None = None
        mixed_layers: dict[str, float | None] = {}
        if (
            checkpoint.config.routing.convex
        ):  # where weights do not sum to 1, the sum over skills is no gradient of a mixture
            mixed_gram, mixed_layers = gram_matrices(*mixed(gradients, groups), budget)
        losses = {task.name: task.loss for task in tasks}
    finally:
        detach(model)
    return Alignment(step, list(examples), gram, layers, mixed_gram, mixed_layers, losses)
