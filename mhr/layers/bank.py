"""The bank of a model: its routed layers, its routers, the names of its tasks, and the batch at work."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mhr.config import AdapterConfig
from mhr.errors import ConfigError, TaskError, nearest
from mhr.layers.routed import RoutedLayer
from mhr.layers.tied import bank_name
from mhr.routing import Router, RoutingBatch, RoutingState, TaskContexts, routers
from mhr.routing.adamix import BANK_INFERENCE, draw, seeded


class AdapterBank(nn.Module):
    """What `mhr.attach` adds to a model, as `model.mhr`.

    config   the AdapterConfig
    tasks    names of the tasks of the routing table, in its order
    layers   name -> RoutedLayer, in the model's order
    groups   name -> Router, one per group of layers that share a table (`AdapterConfig.granularity`)
    contexts the contexts of its tasks, where routing is computed from such; None otherwise
    notes    what of the model the targets leave out although they might mean it, one line each
    saved    name -> module outside the bank that is trained and stored whole

    It owns the routers' parameters, and contexts; the layers own the banks'.
    """

    def __init__(self, config: AdapterConfig, tasks: Sequence[str], state: RoutingState, saved: dict[str, nn.Module]):
        super().__init__()
        self.config = config
        self.tasks = check_names(tasks)
        self.state = state
        # In dictionaries, so that nn.Module does not register them twice: they have their places in the model.
        self.layers: dict[str, RoutedLayer] = {}
        self.saved = saved
        # What the modules that are trained whole held before, for `mhr.disabled`.
        self.originals = {name: tensor.detach().clone() for name, tensor in self.saved_tensors().items()}
        self.groups: dict[str, Router] = {}
        self.routers = nn.ModuleList()
        self.contexts: TaskContexts | None = None
        self.notes: list[str] = []
        self._inference = "average"
        self.slots: dict[int, int] | None = None
        """Row of the routing table -> where the parameters have it, while they hold the rows of some tasks alone: see `row_parameters`."""
        # Share u in [0, 1] of the uniform weights in the routing: (1 - u) w + u / S.
        self.toward_average = 0.0
        self._next_draw = 0, 0, 0  # seed, step, pass
        self.base_fingerprint: str | None = None
        """What the base is known by, where its weights are sharded over processes and so cannot be read any more."""
        self.apart: set[str] = set()
        """Layers whose names say that they read the same x as others, and that do not; see `mhr.layers.siblings`."""
        self.around: list[tuple[nn.Module, str, nn.Module]] = []
        """What holds the layers in the model: see `mhr.layers.together`."""
        # What attach did to the model, for detach to undo.
        self.frozen: list[nn.Parameter] = []
        self.hooks: list[RemovableHandle] = []
        self.wrapped: dict[str, Any] = {}

    def add_router(self, group: str, router: Router) -> None:
        self.groups[group] = router
        self.routers.append(router)

    # ---- routing -------------------------------------------------------------------------------------------------

    def for_batch(self, task_ids: Sequence[str | int] | Tensor | None, unseen: str = "error") -> RoutingBatch:
        """The routing of a batch, made on the host once; one host-to-device copy, no synchronisation.

        task_ids: one name (or row number) per example; None is allowed where only one routing is possible and no example
        draws for itself. A name that the table does not hold is an error that names the nearest, or is routed uniformly with
        unseen="uniform".
        Equal tasks share a row, except with noise per example while training. Noise is drawn here, and so are skills where the
        method draws them: while training one for the whole batch, otherwise as `inference` says. Raises TaskError.
        """
        as_list = getattr(task_ids, "tolist", None)  # of tensors and of arrays of NumPy
        given = task_ids if as_list is None else as_list()
        if isinstance(given, str | int):
            raise TaskError(f"task_ids is {given!r}: expected a list with one task name per example")
        if given is None:
            if self.ambiguous:
                raise TaskError(f"task_ids is missing: expected one of the {len(self.tasks)} task names per example")
            ids = [0]
        else:
            ids = [self.row(task, unseen) for task in given]
        if self.slots is not None:
            if self.config.routing.skill_per_task and (self.toward_average or -1 in ids):
                raise TaskError(
                    f"{len(self.slots)} of {len(self._tasks)} skills are loaded for this step, and the batch is routed by their average "
                    "(toward_average, or a task without a row): train with the whole bank, or without it"
                )
            ids = [self._slot(row, self.slots) for row in ids]
        if not ids:
            raise TaskError("task_ids is empty: expected one task name per example")
        noisy = self.training and self.config.noise != "off"
        if noisy and self.config.noise == "per_example":
            if task_ids is None:
                raise TaskError(
                    "task_ids is missing: noise 'per_example' is drawn for each example in training, so name their tasks"
                )
            distinct, rows = ids, list(range(len(ids)))
        else:
            distinct = list(dict.fromkeys(ids)) if self.needs_tasks else [0]
            position = {t: i for i, t in enumerate(distinct)}
            # One mix that serves the whole batch makes it one segment, whatever its size.
            rows = [position[t] for t in ids] if len(distinct) > 1 else [0]
        even = next(iter(self.groups.values())).even
        noise = self._noise(len(distinct), even) if noisy else None
        device = even.device
        drawn, source = self._drawn(None if task_ids is None else len(ids))
        packed = torch.tensor(rows + distinct, dtype=torch.long)
        if drawn is not None:
            packed = torch.cat([packed, drawn.flatten()])
        if device.type == "cuda":
            packed = packed.pin_memory()
        packed = packed.to(device, non_blocking=True)
        n, end = len(rows), len(rows) + len(distinct)
        draws = None if drawn is None else packed[end:].view(drawn.shape)
        average = None if self.toward_average == 0 else even.new_full((), self.toward_average)
        return RoutingBatch(
            rows=packed[:n],
            tasks=packed[n:end],
            noise=noise,
            draws=draws,
            source=source,
            moments=self._moments(distinct),
            average=average,
            examples=None if task_ids is None else len(ids),
        )

    def weigh(self, batch: RoutingBatch) -> list[Tensor]:
        """The routing weights [U, H, S] of the batch by every router, in their order, with their gradient."""
        every = list(self.groups.values())
        weights = routers[self.config.method].together(every, batch)
        return [batch.blend(w, router.even) for w, router in zip(weights, every, strict=True)]

    @contextmanager
    def routing(
        self, task_ids: Sequence[str | int] | Tensor | RoutingBatch | None, unseen: str = "error"
    ) -> Iterator[None]:
        """Route every call of the model inside the block by these tasks."""
        batch = task_ids if isinstance(task_ids, RoutingBatch) else self.for_batch(task_ids, unseen)
        with self.state.use(batch):
            yield

    @property
    def ambiguous(self) -> bool:
        """Whether a call without task ids would leave the routing open."""
        return self.needs_tasks and len(self._tasks) != 1

    @property
    def needs_tasks(self) -> bool:
        """Whether tasks are routed differently, so that the model needs task ids."""
        return self.config.routing.needs_tasks

    def row(self, task: str | int, unseen: str = "error") -> int:
        """The row of the routing table that a task is routed by; -1 for one without, with unseen="uniform". Raises TaskError."""
        if not isinstance(task, str):
            task = _number(task)
            if not -1 <= task < len(self._tasks):
                raise TaskError(
                    f"task id {task} is out of range: the bank has {len(self._tasks)} tasks, 0 to {len(self._tasks) - 1}"
                )
            row = task
        elif task in self._position:
            row = self._position[task]
        elif unseen == "uniform":
            return -1
        else:
            raise TaskError(f"unknown task {task!r}: {nearest(task, self.tasks)}")
        if self.contexts is None or row < 0 or self.contexts.knows(row):
            return row
        if unseen == "uniform":
            return -1
        raise TaskError(
            f"task {self._tasks[row]!r} has no context, from which method {self.config.method!r} routes: give it one with "
            "model.mhr.set_contexts({task: embedding}), or compute it with mhr.contexts.give_contexts"
        )

    def _slot(self, row: int, slots: Mapping[int, int]) -> int:
        if row >= 0 and row not in slots:
            raise TaskError(
                f"task {self._tasks[row]!r} is none of the {len(slots)} whose rows are loaded for this step: load those of all its batches"
            )
        return slots[row] if row >= 0 else row

    def _noise(self, n: int, even: Tensor) -> Tensor:
        """Logistic noise [n_routers, U, H, S] like `even` [H, S]: log(v) - log(1 - v), v uniform in (0, 1)."""
        info = torch.finfo(even.dtype)
        v = even.new_empty(len(self.groups), n, *even.shape).uniform_()
        return v.clamp_(min=info.tiny, max=1 - info.eps).logit_()

    # ---- drawn skills --------------------------------------------------------------------------------------------

    @property
    def inference(self) -> str:
        """How skills that are drawn in training (AdaMix) are used otherwise: their "average", or drawn for each example
        ("sentence") or each "token". Setting it raises ConfigError for another mode, and where skills are not drawn."""
        return self._inference

    @inference.setter
    def inference(self, mode: str) -> None:
        if mode not in BANK_INFERENCE:
            raise ConfigError(
                f"inference is {mode!r}, expected one of {', '.join(BANK_INFERENCE)}: {nearest(mode, BANK_INFERENCE)}"
            )
        if mode != "average" and not self.draws:
            raise ConfigError(
                f"inference is {mode!r}, but method {self.config.method!r} draws no skills: use 'average'"
            )
        self._inference = mode

    @property
    def draws(self) -> bool:
        """Whether skills are drawn at random in training."""
        return self.config.routing.drawn

    def seed_draws(self, seed: int, step: int, pass_: int = 0) -> None:
        """Have the next batch draw its skills, or the shots of its contexts, as pass `pass_` of a step, and the batches after it as the
        passes after that.

        The same arguments draw the same in every process. A bank begins at 0, 0, 0. Where nothing is drawn it changes nothing.
        """
        self._next_draw = seed, step, pass_

    @contextmanager
    def uncounted_draws(self) -> Iterator[None]:
        """Batches inside the block draw as ever, but the next one after it draws as if there had been none."""
        before = self._next_draw
        try:
            yield
        finally:
            self._next_draw = before

    def _drawn(self, n: int | None) -> tuple[Tensor | None, torch.Generator | None]:
        """Skills for a batch of `n` examples (None: unknown), or what each layer is to draw its own with."""
        if not self.draws or (not self.training and self.inference == "average"):
            return None, None
        generator = self._generator()
        if self.training:
            n = 1
        elif self.inference == "token":
            return None, generator
        elif n is None:
            raise TaskError(
                "task_ids is missing: inference 'sentence' draws skills for each example, so name their tasks"
            )
        sides = next(iter(self.layers.values())).sides
        return draw(generator, len(self.groups), sides, n), None

    def _moments(self, rows: Sequence[int]) -> Tensor | None:
        """What the contexts of a batch are made of, where each batch makes its own; see `TaskContexts.draw`."""
        if self.contexts is None or not self.contexts.takes_examples:
            return None
        return self.contexts.draw(rows, self._generator() if self.training else None)

    def _generator(self) -> torch.Generator:
        """Of what the next batch draws."""
        seed, step, pass_ = self._next_draw
        self._next_draw = seed, step, pass_ + 1
        return seeded(seed, step, pass_)

    def own_loss(self, seed: int, step: int) -> Tensor | None:
        """What a step of training adds to the loss of its batch (`TaskContexts.own_loss`), the same in every process; None where it adds nothing."""
        return None if self.contexts is None else self.contexts.own_loss(seeded(seed, step, 0))

    # ---- tasks ---------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        return list(self._tasks)

    @tasks.setter
    def tasks(self, names: Sequence[str]) -> None:
        self._tasks = tuple(names)
        self._position = {name: i for i, name in enumerate(names)}

    def add_tasks(self, names: Sequence[str]) -> None:
        """Append tasks, each with a fresh routing row (and, where routing is private, a fresh skill)."""
        for name in _no_string(names):
            if name in self._position:
                raise TaskError(f"task {name!r} is there already: names of tasks must be distinct")
        self.set_tasks([*self.tasks, *names])

    def remove_tasks(self, names: Sequence[str]) -> None:
        """Remove tasks and their routing rows. At least one must stay."""
        gone = {self.tasks[self.row(name, "error")] for name in _no_string(names)}
        self.set_tasks([name for name in self.tasks if name not in gone])

    def set_tasks(self, names: Sequence[str], fresh: bool = False) -> None:
        """Make the table hold exactly these tasks in this order; known ones keep their row, unless `fresh`.

        This re-orders, adds and removes. New parameters replace the old ones, so an optimizer made before is stale.
        """
        check_names(names)
        keep = [None if fresh else self._position.get(name) for name in names]
        for router in self.groups.values():
            router.set_tasks(names, keep)
        if self.contexts is not None:
            self.contexts.set_tasks(names, keep)
        if self.config.routing.skill_per_task:
            for layer in self.layers.values():
                layer.select_skills(keep)
        self.tasks = list(names)

    def set_contexts(self, embeddings: Mapping[str, Tensor], center: bool = False) -> None:
        """Give tasks of the table their contexts, of embeddings: see `TaskContexts.put`. Raises ConfigError for a method that routes by
        no contexts, TaskError for embeddings that do not fit."""
        if self.contexts is None:
            raise ConfigError(f"contexts are given, but method {self.config.method!r} routes by none: leave them out")
        self.contexts.put(embeddings, center)

    # ---- parameters ----------------------------------------------------------------------------------------------

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters of the skills, layer by layer."""
        return [p for bank in self.banks().values() for p in bank.values()]

    def banks(self) -> dict[str, dict[str, nn.Parameter]]:
        """The banks of the layers by their names (`mhr.layers.tied.bank_name`), each once, and their parameters by theirs."""
        return {
            bank_name(self.config, name, (layer.in_features, layer.out_features)): layer.bank()
            for name, layer in self.layers.items()
            if not layer.tied
        }

    def task_skills(self) -> dict[str, nn.Parameter]:
        """The parameters of skills, by their names in `tensors`, of which each task has its own: none unless every task has a skill."""
        if not self.config.routing.skill_per_task:
            return {}
        return {
            f"layers.{name}.{key}": p
            for name, bank in self.banks().items()
            for key, p in bank.items()
            if not self.config.in_common(key)
        }

    def router_parameters(self) -> list[nn.Parameter]:
        """Parameters of the routers; none for methods that learn no routing."""
        return [*self.routers.parameters(), *(() if self.contexts is None else self.contexts.parameters())]

    def shared_router_parameters(self) -> list[nn.Parameter]:
        """Those of `router_parameters` that belong to no task."""
        contexts = () if self.contexts is None else self.contexts.trained()
        return [*(p for router in self.groups.values() for p in router.shared_parameters()), *contexts]

    def row_parameters(self) -> list[tuple[nn.Parameter, int]]:
        """Trained parameters of which each task has a row of its own, with the axis of the task: those of routing, and skills where each
        task has one. With `slots` they may hold some of the rows."""
        parts = (*self.groups.values(), *(() if self.contexts is None else [self.contexts]))
        found = [(p, 0) for part in parts for name, p in part.named_parameters() if name in part.per_task]
        found += [(p, 1) for p in self.task_skills().values()]
        return [(parameter, axis) for parameter, axis in found if parameter.requires_grad]

    def shared_routing(self) -> dict[str, Tensor]:
        """The part of `tensors` that belongs to routing and to no task: what is shared between tasks."""
        return {name: tensor for name, tensor, per_task in self._routing() if not per_task}

    def rows_of_tasks(self) -> dict[str, Tensor]:
        """The part of `tensors` that belongs to routing and whose first axis is the task: its rows."""
        return {name: tensor for name, tensor, per_task in self._routing() if per_task}

    def _routing(self) -> Iterator[tuple[str, Tensor, bool]]:
        """The part of `tensors` that belongs to routing: name, tensor, and whether its first axis is the task."""
        parts: dict[str, Router | TaskContexts] = {
            f"routers.{name or 'all'}": part for name, part in self.groups.items()
        }
        if self.contexts is not None:
            parts["contexts"] = self.contexts
        for name, part in parts.items():
            for key, tensor in part.state_dict().items():
                yield f"{name}.{key}", tensor, key in part.per_task

    def saved_parameters(self) -> list[nn.Parameter]:
        """Parameters of the modules that are trained whole."""
        # Each once: modules may share parameters (tied embeddings).
        return list(dict.fromkeys(p for module in self.saved.values() for p in module.parameters()))

    def saved_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the modules that are trained whole, by a name each."""
        named: dict[str, Tensor] = {}
        for name, module in self.saved.items():
            named.update({f"{name}.{key}": p for key, p in module.named_parameters()})
            named.update({f"{name}.{key}": b for key, b in module.named_buffers()})
        return named

    def weights(self) -> dict[str, Tensor]:
        """Routing weights of every task, group by group: name -> [T, H, S] (T = 1 where all tasks share a row)."""
        return {name: router.table() for name, router in self.groups.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint of the bank holds, by a name that does not depend on this class."""
        named: dict[str, Tensor] = {}
        for name, bank in self.banks().items():
            named.update({f"layers.{name}.{key}": p.data for key, p in bank.items()})
        named.update({name: tensor for name, tensor, _ in self._routing()})
        for name, module in self.saved.items():
            named.update({f"modules.{name}.{key}": t for key, t in module.state_dict().items()})
        return named

    def extra_repr(self) -> str:
        return f"{self.config.method} {self.config.adapter}, {len(self.tasks)} tasks, {len(self.layers)} layers"


def bank_of(model: nn.Module) -> AdapterBank:
    """The bank on a model. Raises ConfigError where there is none."""
    bank = getattr(model, "mhr", None)
    if not isinstance(bank, AdapterBank):
        raise ConfigError("the model has no bank: mhr.attach(model, config, tasks) adds one")
    return bank


def check_names(names: Sequence[str]) -> list[str]:
    """The names as a list. Raises TaskError for none, for an empty one and for one that is given twice."""
    seen: set[str] = set()
    for name in _no_string(names):
        if not isinstance(name, str) or not name.strip():
            raise TaskError(f"task name {name!r} is no name: expected a string such as 'boolq'")
        if name in seen:
            raise TaskError(f"task {name!r} is given twice: names of tasks must be distinct")
        seen.add(name)
    if not names:
        raise TaskError("no task is given: a bank needs at least one task name")
    return list(names)


def _no_string(names: Sequence[str]) -> Sequence[str]:
    """The names. Raises TaskError for a string, which would be a sequence of letters."""
    if isinstance(names, str):
        raise TaskError(f"tasks is the string {names!r}: expected a list of names")
    return names


def _number(task: SupportsIndex) -> int:
    """The number of a row. Raises TaskError for what is none."""
    try:
        return operator.index(task)
    except TypeError:
        raise TaskError(f"task id {task!r:.60} is neither the name of a task nor the number of its row") from None
