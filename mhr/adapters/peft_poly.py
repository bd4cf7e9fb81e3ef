"""PEFT Poly folders: whole banks with their routing, which PEFT writes and reads as ours, by other names.

    base_model.model.{layer}.poly_lora_A [H, S, I/H, R]                layers.{layer}.bank_a
    base_model.model.{layer}.poly_lora_B [H, S, R, O/H]                layers.{layer}.bank_b
    base_model.model.{layer}.poly_router.module_logits [T, H * S]      routers.{layer}.logits [T, H, S]

PEFT says n_splits for H, scales by 1 / R, gives each layer routing logits of its own and numbers tasks instead of naming them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.layer import Sizes
from mhr.adapters.peft import (
    PEFT_CONFIG_FILE,
    PEFT_TENSORS_FILE,
    PREFIX,
    base_of,
    is_peft,
    module_of,
    open_peft_tensors,
)
from mhr.adapters.peft_export import CONV1D, PeftFolder, of_base
from mhr.adapters.peft_modules import skeleton, with_peers
from mhr.adapters.peft_readers import of_name
from mhr.adapters.plain import Lazy, PlainAdapter
from mhr.adapters.tensor_file import TensorFile, TensorView, TensorWriter
from mhr.config import AdapterConfig
from mhr.errors import CheckpointError, ConfigError
from mhr.files import make_folder, read_json, write_json_atomically
from mhr.methods import learned_routing
from mhr.task_heads import only_ranks

POLY = "POLY"
"""PEFT's name of the kind."""

POLY_PARTS = {"poly_lora_A": "bank_a", "poly_lora_B": "bank_b", "poly_router.module_logits": "logits"}

# Settings under which a folder computes what its tensors say: sizes, which are read here, those that chose the layers or the
# start, and those of every PEFT adapter.
POLY_SETTINGS = frozenset(
    [
        *(
            "task_type",
            "peft_type",
            "auto_mapping",
            "peft_version",
            "base_model_name_or_path",
            "revision",
            "inference_mode",
        ),
        *("r", "n_tasks", "n_skills", "n_splits", "poly_type"),
        *("target_modules", "exclude_modules", "modules_to_save", "init_weights"),
    ]
)


def is_poly(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT Poly adapter, sound or not."""
    if not is_peft(folder):
        return False
    return read_json(Path(folder) / PEFT_CONFIG_FILE, CheckpointError).get("peft_type") == POLY


def numbered(n: int) -> list[str]:
    """Names for `n` tasks that have none: task-0, task-1 ..."""
    return [f"task-{i}" for i in range(n)]


def open_poly(folder: str | Path) -> AdapterCheckpoint:
    """The bank in a PEFT Poly folder, its tensors read when they are asked for; its tasks are called task-0, task-1 ...

    Method "mhr", or "poly" with one head; alpha 1, noise per example. Raises CheckpointError for a folder that is missing, damaged
    or pickled, whose tensors do not have the sizes that it says, and for settings that no bank can hold.
    """
    folder = Path(folder)
    config = read_json(folder / PEFT_CONFIG_FILE, CheckpointError)
    where = folder / PEFT_CONFIG_FILE
    for name, value in config.items():
        if value and name not in POLY_SETTINGS:
            raise CheckpointError(
                f"{where} sets {name}, which no bank can hold: it is not one of PEFT's settings of Poly"
            )
    if config.get("poly_type", "poly") != "poly":
        raise CheckpointError(f"{where} sets poly_type to {config['poly_type']!r}: expected 'poly'")
    rank, tasks, skills, heads = (_size(config, name, where) for name in ("r", "n_tasks", "n_skills", "n_splits"))
    file = open_peft_tensors(folder)
    parts, modules = _sort(file, config.get("modules_to_save") or [])
    places: dict[str, tuple[str, tuple[int, ...]]] = {}
    layers: dict[str, Sizes] = {}
    for layer, keys in parts.items():
        shapes = {part: file.shapes[key] for part, key in keys.items()}
        a, b = shapes.get("bank_a", ()), shapes.get("bank_b", ())
        expected = {"bank_a": (heads, skills, *a[2:3], rank), "bank_b": (heads, skills, rank, *b[3:4])}
        for part, shape in (expected | {"logits": (tasks, heads * skills)}).items():
            if shapes.get(part) != shape:
                name = next(theirs for theirs, ours in POLY_PARTS.items() if ours == part)
                raise CheckpointError(
                    f"{name} of layer {layer!r} in {folder} has shape {shapes.get(part)}, but {PEFT_CONFIG_FILE} gives it n_tasks {tasks}, "
                    f"n_splits {heads}, n_skills {skills} and r {rank}"
                )
        layers[layer] = (heads * a[2], heads * b[3])
        places[f"layers.{layer}.bank_a"] = keys["bank_a"], a
        places[f"layers.{layer}.bank_b"] = keys["bank_b"], b
        places[f"routers.{layer}.logits"] = keys["logits"], (tasks, heads, skills)
    places |= {
        f"modules.{module}.{key}": (full, file.shapes[full])
        for module, state in modules.items()
        for key, full in state.items()
    }
    try:
        ours = AdapterConfig(
            method=learned_routing(heads),
            n_heads=heads,
            n_skills=skills,
            rank=rank,
            targets=list(layers),
            modules_to_save=list(modules),
            noise="per_example",
            init="peft",
        )
    except ConfigError as fault:
        raise CheckpointError(f"{where} has a setting that no bank can hold: {fault}") from None
    return AdapterCheckpoint(
        config=ours,
        tasks=numbered(tasks),
        base=base_of(config),
        layers=layers,
        groups={layer: layer for layer in layers},
        modules=list(modules),
        tensors=TensorView(file, places),
        name=str(folder),
    )


def save_poly(bank: AdapterCheckpoint, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a bank as a PEFT Poly folder, tensor by tensor, so that `PeftModel.from_pretrained` computes the same outputs.

    B takes up the scaling that PEFT does not know, and layers that share routing get copies of it. Task t is number t of
    `task_ids`. dtype: of skills and modules, None: as they are. Raises CheckpointError for a bank that PEFT's Poly cannot hold, MhrError where the folder cannot be written.
    """
    return write_poly(bank, folder, dtype).path


def write_poly(
    bank: AdapterCheckpoint,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    base: str | None = None,
    revision: str | None = None,
) -> PeftFolder:
    """`save_poly`, with what there is to tell of the folder. base: name of the base model in it, None: as recorded; revision: of that on
    the hub."""
    check_poly(bank)
    config, file = bank.config, bank.tensors
    name = bank.base.name_or_path if base is None else base
    peers = with_peers(_modules_alone(bank), skeleton(bank.base) if bank.modules else None)
    folder = make_folder(folder)
    with TensorWriter(folder / PEFT_TENSORS_FILE) as written:
        for layer, group in bank.groups.items():
            a, b = (file[f"layers.{layer}.{part}"] for part in ("bank_a", "bank_b"))
            logits = file[f"routers.{group or 'all'}.logits"]
            b = b if config.alpha == 1 else b * config.alpha
            tensors = {"bank_a": a.to(dtype), "bank_b": b.to(dtype), "logits": logits.flatten(1)}
            written.add_all({f"{PREFIX}{layer}.{theirs}": tensors[ours] for theirs, ours in POLY_PARTS.items()})
        for module, state in peers.modules.items():
            cast = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
            written.add_all({f"{PREFIX}{module}.{key}": tensor for key, tensor in cast.items()})
    described = {
        "base_model_name_or_path": name,
        "inference_mode": True,
        "modules_to_save": list(peers.modules) or None,
        "revision": revision,
        "n_skills": config.n_skills,
        "n_splits": config.n_heads,
        "n_tasks": len(bank.tasks),
        "peft_type": POLY,
        "poly_type": "poly",
        "r": config.rank,
        "target_modules": list(bank.layers),
        **of_base(bank.base, list(peers.modules)),
    }
    write_json_atomically(folder / PEFT_CONFIG_FILE, described)
    numbers = ", ".join(f"{number} is {task!r}" for number, task in enumerate(bank.tasks[:50]))
    told = [
        "vLLM and llama.cpp take LoRAs only: this folder is for PEFT and transformers",
        f"PEFT numbers the tasks in task_ids: {numbers}{', ...' if len(bank.tasks) > 50 else ''}",
        *of_name(name),
    ]
    return PeftFolder(folder, "bank", name, revision, described["task_type"], config.rank, None, False, told)


def check_poly(bank: AdapterCheckpoint) -> None:
    """Raise CheckpointError, naming what it is, for a bank that PEFT's Poly cannot hold: before anything is written."""
    config = bank.config
    if not config.routing.noisy or config.routing.contexts or config.adapter != "lora":
        raise CheckpointError(
            f"{bank.name} has method {config.method!r} with adapter {config.adapter!r}, but PEFT's Poly holds LoRAs whose routing is "
            f"learnt as logits: write an adapter of ours (--to mhr){', or one task with --to peft-lora' if config.adapter == 'lora' else ''}"
        )
    if bank.heads is not None and not only_ranks(bank.heads.heads):
        raise CheckpointError(
            f"{bank.name} has heads of its tasks ({bank.heads.heads[0]}), which a PEFT Poly folder has no place for: write an adapter of "
            "ours (--to mhr), or one task with --to peft-lora"
        )
    if bank.base.model_type in CONV1D:
        raise CheckpointError(
            f"{bank.name} adapts Conv1D layers ({bank.base.model_type}), which PEFT's Poly does not take: write an adapter of ours (--to mhr), or "
            "one task with --to peft-lora"
        )
    if config.straight_through:
        raise CheckpointError(
            f"{bank.name} rounds its routing (straight_through), which PEFT's Poly does not: write an adapter of ours (--to mhr)"
        )


def _modules_alone(bank: AdapterCheckpoint) -> PlainAdapter:
    """What a bank brings whole, as an adapter with the bank's layers, which are not read."""
    shapes: Mapping[str, Any] = dict.fromkeys(bank.layers)
    modules = {module: bank.state(module) for module in bank.modules}
    return dataclasses.replace(
        PlainAdapter(Lazy(bank.layers, _unread), bank.base, shapes=dict(shapes), name=bank.name),
        modules=modules,
        states={},
    )


def _unread(layer: str) -> Any:
    raise AssertionError(f"layer {layer!r} is no plain one")


def _sort(file: TensorFile, to_save: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """The tensors of a file: adapted layer -> our name of a part -> name here; module that is stored whole -> name in its state -> name
    here."""
    parts: dict[str, dict[str, str]] = {}
    modules: dict[str, dict[str, str]] = {}
    pattern = re.compile(rf"(.+)\.({'|'.join(map(re.escape, POLY_PARTS))})")
    for key in file.shapes:
        name = key.removeprefix(PREFIX)
        found = pattern.fullmatch(name)
        module = module_of(name, to_save)
        if found and key.startswith(PREFIX):
            parts.setdefault(found[1], {})[POLY_PARTS[found[2]]] = key
        elif module is not None:
            modules.setdefault(module, {})[name.removeprefix(f"{module}.")] = key
        else:
            raise CheckpointError(f"{file.path} holds tensor {key!r}, which is no part of a Poly adapter")
    if not parts:
        raise CheckpointError(f"{file.path} holds no tensors of Poly")
    return parts, modules


def _size(config: Mapping[str, Any], name: str, where: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{where} sets {name} to {value!r}: expected an integer of at least 1")
    return value
