"""An adapter on disk, opened: as the bank that it is, or as one plain adapter whose layers are read when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from mhr.adapters.checkpoint import CONTEXTS, AdapterCheckpoint, is_adapter, open_adapter, routing_keys
from mhr.adapters.collapse import check_average, collapse_task, take_skill
from mhr.adapters.find import find_adapter, run_of
from mhr.adapters.heads import with_head
from mhr.adapters.layer import AdapterLayer, Shape
from mhr.adapters.peft import load_peft, open_peft
from mhr.adapters.peft_poly import is_poly, open_poly
from mhr.adapters.plain import Lazy, PlainAdapter, plain_checkpoint
from mhr.adapters.tensor_file import TensorFile, digest_of
from mhr.config import RANKED
from mhr.errors import CheckpointError, MergeError, TaskError, nearest
from mhr.layers.self_attention import gated_part
from mhr.layers.tied import bank_name


def open_bank(path: Path) -> AdapterCheckpoint | None:
    """The bank at a path, ours or a PEFT Poly folder, its tensors a `TensorFile`; None where it is another PEFT folder."""
    folder = find_adapter(path)
    if not (is_adapter(folder) or is_poly(folder)):
        return None
    bank = open_adapter(folder) if is_adapter(folder) else open_poly(folder)
    run = run_of(path)
    revision = (run and run.config().revision) or bank.base.revision
    return dataclasses.replace(bank, base=dataclasses.replace(bank.base, revision=revision), name=str(path))


def read_bank(folder: Path) -> AdapterCheckpoint:
    """What a folder with an adapter holds, in memory: a bank as it is, a plain adapter as a bank of one skill."""
    bank = open_bank(folder)
    if bank is None:
        return plain_checkpoint(load_peft(folder))
    assert isinstance(bank.tensors, TensorFile)
    return dataclasses.replace(bank, tensors=bank.tensors.read())


def needs_task(checkpoint: AdapterCheckpoint) -> bool:
    """Whether a bank is as many adapters as it has tasks, so that one has to be named."""
    return checkpoint.config.routing.needs_tasks and len(checkpoint.tasks) > 1


def check_by_task(bank: AdapterCheckpoint) -> None:
    """Raise MergeError for a bank that routes each token by itself, which is one adapter for no task."""
    if bank.config.routing.by_token:
        raise MergeError(
            f"{bank.name} routes each token by itself (method {bank.config.method!r}), so it is no one adapter: average its LoRAs with --method "
            "uniform, weigh them on a few examples with mhr adapt --mode lorahub, or write those that it was made of with mhr merge RUN --each-task"
        )


def open_plain(path: Path, task: str | None = None) -> PlainAdapter:
    """The one plain adapter that a path stands for: a LoRA as it is, a bank as it routes `task`.

    task: of a bank with several, the one that is meant; of other adapters, the one that they were made for, which only
    tells whoever scores them. Raises MergeError for a bank with several tasks of which none is named, TaskError for an
    unknown one.
    """
    bank = open_bank(path)
    if bank is None:
        plain = dataclasses.replace(open_peft(find_adapter(path)), name=str(path), task=task, run=run_of(path))
        return plain.checked()
    return plain_of(bank, task)


def plain_of(bank: AdapterCheckpoint, task: str | None = None) -> PlainAdapter:
    """`open_plain` of a bank that is open."""
    check_by_task(bank)
    tasks, path = bank.tasks, bank.name
    if needs_task(bank):
        if task is None:
            raise MergeError(
                f"{path} routes {len(tasks)} tasks: name with --task the one that it is to stand for, such as {tasks[0]!r}"
            )
        if task not in tasks:
            raise TaskError(f"unknown task {task!r} of {path}: {nearest(task, tasks)}")
    routed = task if task in tasks else tasks[0]
    # A bank that does the same for all tasks may have heads for several.
    named = task if task is not None and bank.heads is not None and task in bank.heads.tasks else routed
    plain = collapsed(bank, partial(collapse_task, task=routed), f"task {routed}, head {named}", named)
    plain.task = task or (routed if len(tasks) == 1 else None)
    if needs_task(bank):
        plain.name = f"{path}, task {task}"
    return plain


def open_skills(bank: AdapterCheckpoint) -> list[PlainAdapter]:
    """The skills of a bank, each as an adapter of its own; where every task has its own, under the task's name. Raises MergeError as
    `check_average`."""
    check_average(bank)
    named = bank.config.routing.skill_per_task
    found: list[PlainAdapter] = []
    for skill in range(bank.config.skills_for(len(bank.tasks))):
        plain = collapsed(bank, partial(take_skill, skill=skill), f"skill {skill}")
        plain.task = bank.tasks[skill] if named else None
        plain.name = f"{bank.name}, {f'task {plain.task}' if named else f'skill {skill}'}"
        found.append(plain)
    return found


def collapsed(
    bank: AdapterCheckpoint, collapse: Callable[[AdapterCheckpoint], PlainAdapter], how: str, task: str | None = None
) -> PlainAdapter:
    """A bank as a function from a checkpoint to a plain adapter sees it, which is applied to one layer when that is asked for.

    bank: as `open_bank` opens it. how: distinguishes functions on one bank. task: whose head is taken; None takes all.
    """
    file, config = bank.tensors, bank.config
    assert isinstance(file, TensorFile)
    keys: dict[str, list[str]] = {}
    tables = routing_keys(bank, file.shapes)
    contexts = [key for key in file.shapes if key.startswith(CONTEXTS)]
    for key in file.shapes:
        part, _, rest = key.partition(".")
        if part == "layers":
            keys.setdefault(rest.rpartition(".")[0], []).append(key)
    names = {name: bank_name(config, name, sizes) for name, sizes in bank.layers.items()}
    lacking = next((name for name, own in names.items() if own not in keys), None)
    if lacking is not None:
        raise CheckpointError(f"{bank.name} lacks the tensors of its layer {lacking!r}: copy or train it again")
    owned = {name: keys[own] for name, own in names.items()}
    for name, own in owned.items():
        for key in own:
            skills = 1 if config.in_common(key.rpartition(".")[2]) else config.skills_for(len(bank.tasks))
            if len(file.shapes[key]) != 4 or file.shapes[key][1] != skills:
                raise _does_not_fit(bank.name, name, file.path)
    size = config.rank if config.adapter in RANKED else config.prepended or 1
    alpha = float(config.alpha) if config.adapter == "lora" else 1.0
    parts = {name: gated_part(name) if config.adapter == "gated" else "" for name in bank.layers}
    states = {module: _under(f"modules.{module}.", file) for module in bank.modules}

    def layer(name: str) -> AdapterLayer:
        group = bank.groups[name]
        alone = dataclasses.replace(
            bank,
            layers={name: bank.layers[name]},
            modules=[],
            tensors=file.read([*owned[name], *tables.get(group, {}).values(), *contexts]),
        )
        try:
            found = collapse(alone).layers[name]
        except (RuntimeError, IndexError, KeyError) as fault:  # what torch raises for shapes
            raise _does_not_fit(bank.name, name, file.path) from fault
        if not found.fits(whole.shapes[name]):
            raise _does_not_fit(bank.name, name, file.path)
        return found

    def module(name: str) -> dict[str, Tensor]:
        prefix = f"modules.{name}."
        return {key.removeprefix(prefix): t for key, t in file.read(prefix + key for key in states[name]).items()}

    whole = PlainAdapter(
        layers=Lazy(bank.layers, layer),
        base=bank.base,
        modules=Lazy(states, module),
        shapes={
            name: Shape(
                config.adapter,
                sizes,
                file.dtypes[owned[name][0]],
                config.size_of(parts[name]) if parts[name] else size,
                alpha,
                norm=bool(config.norm),
                part=parts[name],
            )
            for name, sizes in bank.layers.items()
        },
        states=states,
        name=bank.name,
        digest=digest_of(file, config.to_dict(), bank.tasks, bank.groups, how),
        run=run_of(Path(bank.name)),
        heads=bank.heads,
        parts=config.parts,
        dropout=config.dropout,
    )
    return (whole if task is None else with_head(whole, task)).checked()


def _does_not_fit(bank: str, layer: str, path: Path) -> CheckpointError:
    return CheckpointError(
        f"the tensors of layer {layer!r} of {bank} have other shapes in {path.name} than its configuration says: the two do not belong "
        "together, copy or train it again"
    )


def _under(prefix: str, file: TensorFile) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in file.shapes.items() if key.startswith(prefix)}
