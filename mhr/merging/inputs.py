"""What can be merged, found on disk and opened: runs, folders of runs, adapter checkpoints, PEFT folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mhr.backbones import BUILTIN
from mhr.checkpoint import AdapterCheckpoint, BaseModel, is_adapter, open_adapter, same_base
from mhr.checkpoint.base import Sizes
from mhr.checkpoint.plain import PlainAdapter
from mhr.errors import CheckpointError, MergeError, TaskError, nearest
from mhr.interop import PeftAdapter, is_peft
from mhr.merging.banks import Bank
from mhr.merging.collapse import collapse
from mhr.merging.source import BankSource, PeftSource, Source
from mhr.merging.task import merge_task
from mhr.runs.run import RUN_FILE, RunFolder

SHOWN = {"lora": "a LoRA", "ia3": "an IA3", "bottleneck": "a bottleneck adapter"}


def find_adapter(path: str | Path) -> Path:
    """The adapter in `path`: the folder itself, or the `adapter` folder of a run. Raises CheckpointError for neither."""
    path = Path(path)
    for folder in (path, path / "adapter"):
        if is_adapter(folder) or is_peft(folder):
            return folder
    if not path.is_dir():
        raise CheckpointError(f"no adapter at {path}: there is no such folder")
    inside = _inside(path)
    if inside:
        raise CheckpointError(f"{path} holds {len(inside)} adapters: name one of them, as in {inside[0]}")
    if (path / RUN_FILE).is_file():
        run = RunFolder.open(path)
        if run.status != "done":
            raise CheckpointError(f"no adapter at {path}: its run is not done (status {run.status!r}), finish it first")
        if run.model.is_dir():
            raise CheckpointError(
                f"no adapter at {path}: its run trained all weights, and {run.model} is the model that came out; adapters are "
                "what is merged"
            )
    raise CheckpointError(f"no adapter at {path}: expected a run folder, an adapter checkpoint or a PEFT folder")


def find_adapters(path: str | Path) -> list[Path]:
    """`path` itself where `find_adapter` finds one in it, or else the folders in it, or one deeper, where it does.

    So a folder of seeds, as `mhr adapt` writes them, stands for all of them. Raises CheckpointError where there is none.
    """
    path = Path(path)
    inside = [] if (path / RUN_FILE).is_file() or _holds_one(path) else _inside(path)
    if not inside:
        find_adapter(path)
        return [path]
    for folder in inside:
        find_adapter(folder)
    return inside


def _holds_one(path: Path) -> bool:
    return any(is_adapter(folder) or is_peft(folder) for folder in (path, path / "adapter"))


def _inside(path: Path) -> list[Path]:
    """Runs and adapters that lie in a folder, not deeper than a task and a seed."""
    found: list[Path] = []
    for child in sorted(path.iterdir()) if path.is_dir() else []:
        if _holds_one(child) or (child / RUN_FILE).is_file():
            found.append(child)
        elif child.is_dir():
            found += [f for f in sorted(child.iterdir()) if _holds_one(f) or (f / RUN_FILE).is_file()]
    return found


def run_of(path: Path) -> RunFolder | None:
    """The run that a path names, if it is one whose settings are there."""
    return RunFolder.open(path) if (path / RUN_FILE).is_file() and (path / "config.yaml").is_file() else None


def open_bank(path: Path) -> Bank | None:
    """The adapter checkpoint of ours at a path; None where it is a PEFT folder."""
    folder = find_adapter(path)
    return Bank(str(path), *open_adapter(folder)) if is_adapter(folder) else None


def needs_task(checkpoint: AdapterCheckpoint) -> bool:
    """Whether a bank is as many adapters as it has tasks, so that one has to be named."""
    return checkpoint.config.routing.needs_tasks and len(checkpoint.tasks) > 1


def open_source(path: Path, task: str | None = None) -> Source:
    """The one plain adapter that a path stands for: a LoRA as it is, a bank as it routes `task`.

    task: of a bank with several, the one that is meant; of other adapters, the one that they were made for, which only
    tells whoever scores them. Raises MergeError for a bank with several tasks of which none is named, TaskError for an
    unknown one.
    """
    bank = open_bank(path)
    source: Source
    if bank is None:
        source = PeftSource(str(path), PeftAdapter(find_adapter(path)), task)
    else:
        tasks = bank.checkpoint.tasks
        if needs_task(bank.checkpoint):
            if task is None:
                raise MergeError(
                    f"{path} routes {len(tasks)} tasks: name with --task the one that it is to stand for, such as {tasks[0]!r}"
                )
            if task not in tasks:
                raise TaskError(f"unknown task {task!r} of {path}: {nearest(task, tasks)}")
        routed = task if task in tasks else tasks[0]
        source = BankSource(str(path), bank.checkpoint, bank.file, partial(merge_task, task=routed), f"task {routed}")
        source.task = task or (routed if len(tasks) == 1 else None)
        if needs_task(bank.checkpoint):
            source.name = f"{path}, task {task}"
    source.run = run_of(path)
    return source


def open_skills(bank: Bank) -> list[Source]:
    """The skills of a bank, each as an adapter of its own; where every task has its own, under the task's name."""
    checkpoint = bank.checkpoint
    named = checkpoint.config.routing.skill_per_task
    found: list[Source] = []
    for skill in range(checkpoint.config.skills_for(len(checkpoint.tasks))):
        task = checkpoint.tasks[skill] if named else None
        name = f"{bank.name}, {f'task {task}' if named else f'skill {skill}'}"
        source = BankSource(name, checkpoint, bank.file, partial(_take_skill, skill=skill), f"skill {skill}", task)
        source.run = run_of(Path(bank.name))
        found.append(source)
    return found


def _take_skill(checkpoint: AdapterCheckpoint, skill: int) -> PlainAdapter:
    # A factor that all skills share is there once.
    tensors = {
        key: t[:, min(skill, t.shape[1] - 1), None] if key.startswith("layers.") else t
        for key, t in checkpoint.tensors.items()
    }
    return collapse(dataclasses.replace(checkpoint, tensors=tensors), None)


def check_sources(sources: Sequence[Source], space: str, base: str | None = None) -> None:
    """Raise MergeError, naming what differs, where sources cannot be merged with one another.

    base: a base model that the user vouches for, so that names of base models may differ.
    """
    one = sources[0]
    for other in sources[1:]:
        if one.kind != other.kind:
            raise MergeError(
                f"{one.name} is {SHOWN[one.kind]}, {other.name} is {SHOWN[other.kind]}: expected adapters of one kind"
            )
        _check_base(one, other, base)
        for name, difference in (
            (other.name, one.shapes.keys() - other.shapes.keys()),
            (one.name, other.shapes.keys() - one.shapes.keys()),
        ):
            if difference:
                there = one.name if name == other.name else other.name
                raise MergeError(
                    f"{name} does not adapt layer {min(difference)!r}, as {there} does ({len(difference)} layers in all): expected "
                    "adapters of the same layers"
                )
        for layer in one.shapes:
            _check_layer(layer, one, other, space)
        if one.modules != other.modules:
            raise MergeError(
                f"{one.name} stores {_told(one)}, {other.name} {_told(other)}: expected the same modules of the same shapes"
            )


def _check_base(one: Source, other: Source, base: str | None) -> None:
    a, b = one.base, other.base
    if a.fingerprint and b.fingerprint:
        differ = not same_base(a.fingerprint, b.fingerprint)
    else:
        differ = base is None and bool(a.name_or_path and b.name_or_path) and _place(a) != _place(b)
    if a.model_type and b.model_type and a.model_type != b.model_type:
        differ = True
    if differ:
        mend = "" if a.fingerprint and b.fingerprint else ", or name the one model that both mean with --model"
        raise MergeError(
            f"{one.name} belongs to base model {a.name_or_path!r}, {other.name} to {b.name_or_path!r}"
            f"{', and their weights differ' if a.name_or_path == b.name_or_path else ''}: expected adapters of one model{mend}"
        )


def _place(base: BaseModel) -> str:
    """Where a base model is: a folder by its full path, a hub id as it is."""
    name = str(BUILTIN.get(base.name_or_path, base.name_or_path))
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _check_layer(layer: str, one: Source, other: Source, space: str) -> None:
    a, b = one.shapes[layer], other.shapes[layer]
    for what, x, y in (
        ("sizes", a.sizes, b.sizes),
        ("dtype", a.dtype, b.dtype),
        ("rank", a.rank, b.rank) if space == "factor" else ("", 0, 0),
    ):
        if x != y and not (what == "sizes" and _fit(a.sizes, b.sizes)):
            mend = "expected the same"
            if what == "rank":
                mend += ", or --space delta, which merges products of any rank" if one.kind == "lora" else ""
            elif what == "dtype":
                mend += ": store them in one with mhr merge INPUT --dtype NAME first"
            raise MergeError(f"layer {layer!r} has {what} {x} in {one.name} and {y} in {other.name}: {mend}")


def _fit(one: Sizes, other: Sizes) -> bool:
    """Whether sizes are the same as far as both tell them."""
    return one[1] == other[1] and None in (one[0], other[0])


def _told(source: Source) -> str:
    shapes = [f"{name}.{key} {shape}" for name, state in source.modules.items() for key, shape in state.items()]
    return (
        ", ".join(shapes[:2]) + (f" and {len(shapes) - 2} more tensors" if len(shapes) > 2 else "")
        if shapes
        else "no modules"
    )
