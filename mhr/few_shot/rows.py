"""The first row of a new task's routing, from the rows of the tasks that its run was trained on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from mhr.config import AdapterConfig
from mhr.contexts import encoder_of
from mhr.contexts.tasks import texts_of
from mhr.data import Example, Task, TaskCollection
from mhr.data.collators import Collator
from mhr.data.drawing import shot_order
from mhr.errors import ConfigError, DataError
from mhr.evaluation.gradients import TaskLoss, cosines, gram_matrices
from mhr.few_shot.starts import Start
from mhr.method_settings.contexts import ContextSettings
from mhr.methods import GENERATED
from mhr.ops import route
from mhr.routing import Contexts, make_router
from mhr.routing.context_mhr import ContextRouter
from mhr.runs.adapt_settings import COMPARING, AdaptConfig
from mhr.runs.run import RunFolder
from mhr.runs.tasks import read_tasks

FIT_STEPS, FIT_DECAY = 500, 1e-2
"""Steps of AdamW, with all tasks in each, and its weight decay, by which the network of start "predicted" is fitted."""


@dataclass(frozen=True, slots=True)
class FirstRow:
    """row: names of `AdapterBank.rows_of_tasks` -> logits [H, S], or whatever else a task has a row of; told: how it was found, for run.json."""

    row: dict[str, Tensor]
    told: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Tasks that a run was trained on, as they are compared with new ones: made once for all adaptations of a Start, or for those with
    the same seed and as many shots where shots are compared.

    names       those that its collection still holds; index: their rows in the run's table
    embeddings  of each, [C]
    routers     fitted to their rows, on contexts of these embeddings; none where nothing is predicted. error: root mean square of
                what is left of the routing weights, beside that of uniform ones
    """

    names: list[str]
    index: list[int]
    embeddings: dict[str, Tensor]
    contexts: Contexts
    routers: list[ContextRouter]
    error: tuple[float, float] = (0.0, 0.0)


def training_tasks(run: RunFolder) -> TaskCollection:
    """The tasks that a run was trained on, as far as its collection still holds them. Raises DataError where it holds none."""
    return _training_tasks(str(run.path.resolve()))


@lru_cache(maxsize=1)
def _training_tasks(path: str) -> TaskCollection:
    run = RunFolder.open(path)
    config = run.config()
    collection = read_tasks(config.tasks, config.data, quiet=True)
    names = [name for name in run.info["tasks"] if name in collection]
    if not names:
        raise DataError(
            f"{config.tasks} holds none of the tasks that run {path} was trained on, and a first row of routing comes from theirs: put "
            "the collection back, or leave start out"
        )
    return collection.select(names)


def check_comparable(known: TaskCollection, task: Task, few: AdaptConfig, start: Start) -> None:
    """Raise DataError for a task, a new one or one of the `known`, without a definition where these are compared, ConfigError for gradients
    of a model with heads and of skills without an average, and for an encoder that cannot be loaded."""
    if few.start not in COMPARING:
        return
    if few.similarity == "gradients":
        assert start.bank is not None
        if not start.bank.config.routing.convex:
            raise ConfigError(
                f"similarity is 'gradients', which are those of skills at uniform weights, but method {start.bank.config.method!r} has no such "
                "average: use definition or shots"
            )
        if start.heads is not None:
            raise ConfigError(
                "similarity is 'gradients', but the run answers each task through a head of its own, so that their losses are of different "
                "outputs: use definition or shots"
            )
        return
    settings = _settings(few)
    for one in (task, *known.values()):
        texts_of(one, settings, one.train)
    encoder_of(settings, start.model, start.tokenizer)


def find_first_row(
    start: Start,
    few: AdaptConfig,
    known: Callable[[], TaskCollection],
    task: Task,
    shots: Sequence[Example],
    seed: int,
    collator: Collator,
) -> FirstRow:
    """The row that the routing of a task begins with, as `few.start` says.

    start   where the model stands at the beginning of the adaptation
    known   gives the tasks that the run was trained on
    shots   of the task; those of another task are as many, drawn by the same rule and `seed`

    Raises what `check_comparable` raises.
    """
    if few.start == "average":
        return FirstRow({name: rows.mean(0) for name, rows in start.rows.items()}, {"row": "average"})
    if few.start == "random":
        drawn = random.Random(f"{seed}/{task.name}/start").randrange(len(start.tasks))
        return _copied(start, drawn, {"row": "random"})
    check_comparable(known(), task, few, start)
    told: dict[str, Any] = {"row": few.start, "similarity": few.similarity}
    if few.similarity == "gradients":
        names = list(known())
        alike = _by_gradients(start, known(), task, shots, seed, collator)
        best = int(alike.argmax())
        return _copied(start, start.tasks.index(names[best]), told | {"cosine": float(alike[best])})
    settings = _settings(few)
    by = (seed, len(shots)) if few.similarity == "shots" else None
    if by not in start.neighbours:
        start.neighbours[by] = _neighbours(start, known(), settings, len(shots), seed, few.start == "predicted")
    around = start.neighbours[by]
    encoder = encoder_of(settings, start.model, start.tokenizer)
    context = _context(around, encoder.embed(texts_of(task, settings, shots)).mean(0))
    if few.start == "predicted":
        left, uniform = around.error
        row = _predicted(start, around, context)
        return FirstRow(row, told | {"tasks": len(around.names), "error": left, "error_of_uniform": uniform})
    alike = around.contexts.vectors.detach() @ context / around.contexts.size
    best = int(alike.argmax())
    return _copied(start, around.index[best], told | {"cosine": float(alike[best])})


def _settings(few: AdaptConfig) -> ContextSettings:
    """What texts are embedded, and by which encoder."""
    return ContextSettings(context=few.similarity, encoder=few.encoder)


def _copied(start: Start, row: int, told: dict[str, Any]) -> FirstRow:
    """The row of a training task."""
    return FirstRow({name: rows[row] for name, rows in start.rows.items()}, told | {"task": start.tasks[row]})


def _neighbours(
    start: Start, known: TaskCollection, settings: ContextSettings, n_shots: int, seed: int, fit: bool
) -> Neighbours:
    encoder = encoder_of(settings, start.model, start.tokenizer)
    embeddings = {
        task.name: encoder.embed(texts_of(task, settings, shot_order(task.train, task.name, seed)[:n_shots])).mean(0)
        for task in known.values()
    }
    names = list(embeddings)
    sizes: dict[str, Any] = {"router": {"size": len(next(iter(embeddings.values())))}}
    if fit:
        heads, skills = next(iter(start.rows.values())).shape[1:]
        sizes |= {"n_heads": heads, "n_skills": skills}
    config = AdapterConfig(method=GENERATED, **sizes)
    index = [start.tasks.index(name) for name in names]
    with torch.random.fork_rng(devices=[]):  # an adaptation's own draws do not depend on it
        torch.manual_seed(0)
        contexts = Contexts(config, names)
        contexts.put(embeddings, center=True)
        if not fit:
            return Neighbours(names, index, embeddings, contexts, [])
        routers = [make_router(config, names, i, contexts) for i in range(len(start.rows))]
    own = [router for router in routers if isinstance(router, ContextRouter)]
    table = torch.stack([_weights(rows[index].cpu().float()) for rows in start.rows.values()])
    error = _fit(contexts, own, table)
    return Neighbours(names, index, embeddings, contexts, own, error)


def _weights(logits: Tensor) -> Tensor:
    """Routing weights [T, H, S] of rows of logits."""
    return route(logits, torch.arange(len(logits)))


def _fit(contexts: Contexts, routers: list[ContextRouter], table: Tensor) -> tuple[float, float]:
    """Fit the network to routing weights [G, T, H, S]: least squares over all groups, tasks, heads and skills. Returns the root mean
    square of what is left, and that of uniform weights."""
    parameters = [*contexts.first.parameters(), *(p for router in routers for p in router.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=contexts.settings.network_lr, weight_decay=FIT_DECAY)
    tasks = torch.arange(table.shape[1])
    with torch.enable_grad():
        for _ in range(FIT_STEPS):
            optimizer.zero_grad()
            found = ContextRouter.logits(routers, tasks)
            loss = mse_loss(_weights(found.flatten(0, 1)).view_as(table), table)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        left = mse_loss(_weights(ContextRouter.logits(routers, tasks).flatten(0, 1)).view_as(table), table)
        uniform = mse_loss(torch.full_like(table, 1 / table.shape[-1]), table)
    return float(left.sqrt()), float(uniform.sqrt())


def _context(around: Neighbours, embedding: Tensor) -> Tensor:
    """The context [C] of a new task beside those of the others."""
    config = AdapterConfig(method=GENERATED, router={"size": around.contexts.size})
    with torch.random.fork_rng(devices=[]):
        new = Contexts(config, ["the new task"])
    new.center.copy_(around.contexts.center)
    new.put({"the new task": embedding})
    return new.vectors.detach()[0]


@torch.no_grad()
def _predicted(start: Start, around: Neighbours, context: Tensor) -> dict[str, Tensor]:
    """The logits of a context by the fitted network, for every group."""
    first = around.contexts.first
    hidden = torch.relu(first(context))
    logits = (router.output @ hidden + router.bias for router in around.routers)
    return dict(zip(start.rows, logits, strict=True))


def _by_gradients(
    start: Start, known: TaskCollection, task: Task, shots: Sequence[Example], seed: int, collator: Collator
) -> Tensor:
    """Cosines [T] of the gradient of a task's loss with those of the known tasks, with respect to the skills, routed uniformly."""
    model, bank = start.model, start.bank
    assert bank is not None
    drawn = [(task.name, list(shots))]
    drawn += [(one.name, shot_order(one.train, one.name, seed)[: len(shots)]) for one in known.values()]
    skills = [(p, p.requires_grad) for p in bank.adapter_parameters()]
    training = model.training
    model.eval()
    try:
        for parameter, _ in skills:
            parameter.requires_grad_(True)
        losses = [TaskLoss(model, bank, name, examples, collator, row=-1) for name, examples in drawn]
        groups = {name: list(parameters.values()) for name, parameters in bank.banks().items()}
        gram, _ = gram_matrices([one.gradient for one in losses], groups)
    finally:
        model.train(training)
        for parameter, asked in skills:
            parameter.requires_grad_(asked)
    return cosines(gram)[0, 1:].nan_to_num(-1.0)
