"""Adapter checkpoints: the bank, the routing and what was trained whole, but not the base model.

A folder with two files. `mhr_adapter.safetensors` holds `AdapterBank.tensors()`; `mhr_config.json` says what they are, on which
base model, and with which size and SHA-256. The JSON is put in place last: without it there is no checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr import __version__
from mhr.adapters.base import BaseModel, check_base, describe_base
from mhr.adapters.finite import check_finite
from mhr.adapters.layer import Sizes
from mhr.adapters.outputs import check_outputs
from mhr.adapters.sharing import check_agreement
from mhr.adapters.tensor_file import TensorFile, file_digest
from mhr.backbones import heads_of, load_backbone, wearing_heads
from mhr.config import AdapterConfig
from mhr.errors import CheckpointError, ConfigError
from mhr.files import make_folder, read_json, write_bytes_atomically, write_json_atomically
from mhr.layers import AdapterBank, attach, detach
from mhr.layers.attach import bank_of
from mhr.layers.tied import bank_name
from mhr.loading import Loading
from mhr.routing import Router, RoutingBatch, TaskContexts, make_contexts, make_router
from mhr.task_heads import TaskHeads

FORMAT = "mhr-adapter"
FORMAT_VERSION = 1
CONFIG_FILE = "mhr_config.json"
TENSORS_FILE = "mhr_adapter.safetensors"
CONTEXTS = "contexts."
"""What the names of the tensors of `TaskContexts` begin with."""


@dataclass
class AdapterCheckpoint:
    """What an adapter checkpoint holds, tied to no model.

    config   how tasks are routed; `tasks` the names of the routing table's rows
    layers   adapted layer -> (in, out) features
    groups   adapted layer -> group of layers whose routing table it uses; of a part of the layers, those of all
    modules  names of the modules that are stored whole
    heads    what the outputs of the model stand for, where it has heads; their layer is in one of the modules
    tensors  `AdapterBank.tensors()`, on the CPU; a `TensorFile` where they are read when they are asked for
    info     whatever the writer wanted to keep: steps, metrics ...
    name     what errors call it, which is not stored
    """

    config: AdapterConfig
    tasks: list[str]
    base: BaseModel
    layers: dict[str, Sizes]
    groups: dict[str, str]
    modules: list[str]
    tensors: Mapping[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)
    name: str = "the adapter"
    heads: TaskHeads | None = None

    def bank_of(self, layer: str) -> str:
        """What the tensors of the layer's bank begin with, in `tensors`."""
        return f"layers.{bank_name(self.config, layer, self.layers[layer])}."

    def state(self, module: str) -> dict[str, Tensor]:
        """The state of a module that is stored whole, by the names that it has in the module."""
        prefix = f"modules.{module}."
        return {key.removeprefix(prefix): self.tensors[key] for key in self.tensors if key.startswith(prefix)}


def checkpoint_of(model: nn.Module, base: str, info: dict[str, Any] | None = None) -> AdapterCheckpoint:
    """The checkpoint of a model with a bank, its tensors copied to the CPU. `base` is the path or hub id of the base model.

    Raises ConfigError for a model without a bank.
    """
    bank = bank_of(model)
    group_names = {router: name for name, router in bank.groups.items()}
    return AdapterCheckpoint(
        config=bank.config,
        tasks=bank.tasks,
        base=describe_base(model, base),
        layers={name: (layer.in_features, layer.out_features) for name, layer in bank.layers.items()},
        groups={name: group_names[layer.router] for name, layer in bank.layers.items()},
        modules=list(bank.saved),
        tensors={name: t.detach().to("cpu", copy=True).contiguous() for name, t in bank.tensors().items()},
        info=dict(info or {}),
        heads=heads_of(model),
    )


def save_adapter(model: nn.Module, folder: str | Path, *, base: str, info: dict[str, Any] | None = None) -> Path:
    """Write the adapter checkpoint of a model with a bank into `folder`, which may hold other files as well.

    base: path or hub id of the base model, by which `load_checkpoint` finds it again. info: anything JSON can hold.
    Raises ConfigError for a model without a bank, MhrError where the folder cannot be written.
    """
    return write_adapter(checkpoint_of(model, base, info), folder)


def write_adapter(checkpoint: AdapterCheckpoint, folder: str | Path) -> Path:
    """Write a checkpoint into `folder`. A reader sees the old one or the new one, or an error that it is damaged."""
    folder = make_folder(folder)
    data = safetensors.torch.save(dict(checkpoint.tensors), metadata={"format": "pt"})
    write_bytes_atomically(folder / TENSORS_FILE, data)
    write_config(checkpoint, folder, len(data), hashlib.sha256(data).hexdigest())
    return folder


def write_config(checkpoint: AdapterCheckpoint, folder: Path, size: int, sha256: str) -> None:
    """Put in place what makes a checkpoint of the tensors that lie in `folder` already, given their size and SHA-256."""
    described = dataclasses.asdict(dataclasses.replace(checkpoint, tensors={}, heads=None))
    described["config"] = checkpoint.config.to_dict()
    if not checkpoint.base.revision:  # which earlier versions do not know
        del described["base"]["revision"]
    del described["name"], described["heads"]
    if checkpoint.heads is not None:
        described["heads"] = checkpoint.heads.to_json()
    described["tensors"] = {"file": TENSORS_FILE, "size": size, "sha256": sha256}
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "mhr_version": __version__}
    write_json_atomically(folder / CONFIG_FILE, head | described)


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter checkpoint, sound or not."""
    return (Path(folder) / CONFIG_FILE).is_file()


def read_adapter(folder: str | Path) -> AdapterCheckpoint:
    """The checkpoint in `folder`. Raises CheckpointError where it is missing, truncated, damaged, foreign, or too new to read."""
    checkpoint = open_adapter(folder)
    assert isinstance(checkpoint.tensors, TensorFile)
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors.read())


def open_adapter(folder: str | Path) -> AdapterCheckpoint:
    """The checkpoint in `folder`, checked like `read_adapter` does, its tensors a `TensorFile`: for what is larger than memory."""
    folder = Path(folder)
    described = _read_config(folder)
    try:
        # What was written without the setting shares nothing, whatever a new bank does.
        config = AdapterConfig.from_dict({"share": "none"} | described["config"])
        stored = described["tensors"]
        tensors = _open_tensors(folder / stored["file"], int(stored["size"]), stored["sha256"])
        heads = TaskHeads.from_json(described["heads"], str(folder / CONFIG_FILE)) if "heads" in described else None
        check_outputs(heads, tensors.shapes, str(folder), "modules.")
        return AdapterCheckpoint(
            config=config,
            tasks=list(described["tasks"]),
            base=BaseModel(**described["base"]),
            layers={name: (i and int(i), int(o)) for name, (i, o) in described["layers"].items()},
            groups=dict(described["groups"]),
            modules=list(described["modules"]),
            tensors=tensors,
            info=dict(described["info"]),
            name=str(folder),
            heads=heads,
        )
    except (ConfigError, AttributeError, KeyError, TypeError, ValueError) as fault:
        reason = f"{fault} is missing" if isinstance(fault, KeyError) else str(fault)
        raise CheckpointError(f"{folder / CONFIG_FILE} does not describe an adapter: {reason}") from None


def load_adapter(folder: str | Path, model: nn.Module) -> AdapterBank:
    """Attach the adapter in `folder` to its base model; returns the bank, also `model.mhr`.

    Raises CheckpointError for what `read_adapter` refuses and for another base model, naming what differs.
    """
    return attach_checkpoint(read_adapter(folder), model)


def attach_checkpoint(checkpoint: AdapterCheckpoint, model: nn.Module) -> AdapterBank:
    """Attach a checkpoint that was read already to its base model. A model that is refused is left as it was."""
    check_base(model, checkpoint.base, checkpoint.layers, checkpoint.modules, checkpoint.name)
    check_agreement(model, {module: checkpoint.state(module) for module in checkpoint.modules}, checkpoint.name)
    config = dataclasses.replace(checkpoint.config, targets=list(checkpoint.layers), modules_to_save=checkpoint.modules)
    with wearing_heads(model, checkpoint.heads, checkpoint.modules):
        bank = attach(model, config, checkpoint.tasks)
        try:
            _copy_tensors(bank, checkpoint.tensors, checkpoint.name)
            _check_parts(bank, checkpoint.name)
        except CheckpointError:
            detach(model)
            raise
    return bank


def load_checkpoint(
    folder: str | Path, base: str | None = None, kind: str | None = None, *, loading: Loading | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with the adapter in `folder` attached, in evaluation mode, and its tokenizer.

    base: path or hub id of the base model; None takes the one that the checkpoint names. kind: what the model is asked to do, where
    neither the checkpoint nor the model's configuration says. loading: see `BaseModel.loading`.
    Raises CheckpointError as `load_adapter`, and MhrError where the base model cannot be loaded.
    """
    checkpoint = read_adapter(folder)
    name = checkpoint.base.where(base, checkpoint.name)
    model, tokenizer = load_backbone(name, checkpoint.base.kind or kind, checkpoint.base.loading(loading, base))
    attach_checkpoint(checkpoint, model)
    return model.eval(), tokenizer


def routing_weights(checkpoint: AdapterCheckpoint) -> dict[str, Tensor]:
    """Routing weights [T, H, S] of every task, for each group of layers, without noise.

    Raises CheckpointError where the routing tables do not fit the configuration, and where each token is routed by itself.
    """
    if checkpoint.config.routing.by_token:
        raise CheckpointError(
            f"{checkpoint.name} routes each token by itself (method {checkpoint.config.method!r}), so there are no weights of its tasks"
        )
    return {group: router.table() for group, router in _routers(checkpoint)}


def routing_transforms(checkpoint: AdapterCheckpoint) -> dict[str, Tensor]:
    """The matrices [T, R, R] of every task between factors A and B, for each group of layers; none where the method has no such.

    Raises CheckpointError as `routing_weights`.
    """
    if not checkpoint.config.routing.transforms:
        return {}
    tasks = torch.arange(len(checkpoint.tasks))
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for group, router in _routers(checkpoint):
            transform = router.transform(RoutingBatch(rows=tasks, tasks=tasks))
            assert transform is not None
            found[group] = transform
    return found


def _routers(checkpoint: AdapterCheckpoint) -> Iterator[tuple[str, Router]]:
    """The router of each group of layers, one after the other."""
    states = routing_states(checkpoint)
    # As wide as in the model that the checkpoint is of.
    wide = any(tensor.dtype == torch.float64 for tensor in checkpoint.tensors.values())
    # Routers draw themselves at random before they are filled: the caller's random state is kept.
    with torch.random.fork_rng(devices=[]):
        contexts = _contexts(checkpoint, wide)
    used = {checkpoint.groups[layer] for layer in checkpoint.layers}
    for index, group in enumerate(dict.fromkeys(checkpoint.groups.values())):
        if group not in used:
            continue
        with torch.random.fork_rng(devices=[]):
            router = make_router(checkpoint.config, checkpoint.tasks, index, contexts)
        _fill(router, states.get(group, {}), wide, f"routing of group {group!r}")
        yield group, router


def context_state(checkpoint: AdapterCheckpoint) -> dict[str, Tensor]:
    """The tensors of the contexts by their names in `TaskContexts`; none where routing is computed from no contexts."""
    found = [key for key in checkpoint.tensors if key.startswith(CONTEXTS)]
    return {key.removeprefix(CONTEXTS): checkpoint.tensors[key] for key in found}


def _contexts(checkpoint: AdapterCheckpoint, wide: bool) -> TaskContexts | None:
    """The contexts that a checkpoint holds, where routing is computed from such."""
    contexts = empty_contexts(checkpoint)
    if contexts is not None:
        _fill(contexts, context_state(checkpoint), wide, "contexts")
    return contexts


def empty_contexts(checkpoint: AdapterCheckpoint) -> TaskContexts | None:
    """Contexts as the checkpoint's bank has them, without its values; None where it has none."""
    return make_contexts(checkpoint.config, checkpoint.tasks, list(dict.fromkeys(checkpoint.groups.values())))


def _fill(module: nn.Module, state: Mapping[str, Tensor], wide: bool, what: str) -> None:
    if wide:
        module.double()
    try:
        module.load_state_dict(state)
    except RuntimeError as fault:
        reason = " ".join(str(fault).split())
        raise CheckpointError(f"the {what} does not fit its configuration: {reason}") from None


def routing_states(checkpoint: AdapterCheckpoint) -> dict[str, dict[str, Tensor]]:
    """The tensors of each router by their names in it: group of layers -> its state. A group without tensors is left out."""
    keys = routing_keys(checkpoint, checkpoint.tensors)
    return {group: {name: checkpoint.tensors[key] for name, key in own.items()} for group, own in keys.items()}


def routing_keys(checkpoint: AdapterCheckpoint, keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Which of `keys`, names of a checkpoint's tensors, belong to which router: group of layers -> name in the router -> key.

    Both parts of a key may have dots in them, so it is the groups' names that tell where one ends.
    """
    found: dict[str, dict[str, str]] = {}
    groups = sorted(set(checkpoint.groups.values()), key=len, reverse=True)  # one name may begin another
    for key in keys:
        for group in groups:
            prefix = f"routers.{group or 'all'}."
            if key.startswith(prefix):
                found.setdefault(group, {})[key.removeprefix(prefix)] = key
                break
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(f"no adapter at {folder}: there is no such folder")
    if not path.is_file():
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:4]) or "nothing"
        raise CheckpointError(f"no adapter at {folder}: {CONFIG_FILE} is missing (the folder holds {held})")
    described = read_json(path, CheckpointError)
    if described.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by mhr: its format is {described.get('format')!r}, expected {FORMAT!r}"
        )
    version = described.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version!r}, written by mhr {described.get('mhr_version')}; this is mhr {__version__}, which "
            f"reads format {FORMAT_VERSION}: install the newer one"
        )
    return described


def _open_tensors(path: Path, size: int, digest: str) -> TensorFile:
    try:
        found = path.stat().st_size
        if found != size:
            state = "truncated" if found < size else "too long"
            raise CheckpointError(
                f"{path} is {state}: {found} bytes, {CONFIG_FILE} says {size}; copy or train it again"
            )
        if file_digest(path) != digest:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the one in {CONFIG_FILE}; copy or train it again"
            )
        return TensorFile(path, digest)
    except OSError as fault:
        raise CheckpointError(f"cannot read {path}: {fault.strerror or fault}") from None
    except SafetensorError as fault:
        raise CheckpointError(f"{path} is no safetensors file: {fault}") from None


def _check_parts(bank: AdapterBank, name: str) -> None:
    """Raise CheckpointError where a layer of which parts are adapted holds a value outside of them."""
    for layer in bank.layers.values():
        if bank.config.parts is not None and not torch.equal(layer.factors()["bank_b"], layer.bank()["bank_b"]):
            raise CheckpointError(
                f"layer {layer.name!r} of {name} has values outside of its parts {bank.config.parts}: train it again, or take parts out of "
                f"its {CONFIG_FILE}"
            )


def _copy_tensors(bank: AdapterBank, tensors: Mapping[str, Tensor], name: str) -> None:
    check_finite(tensors, name)
    targets = bank.tensors()
    former = {f"routers.{group or 'all'}.{part}" for group, router in bank.groups.items() for part in router.former}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in former}
    for key in targets.keys() | tensors.keys():
        if key not in tensors:
            raise CheckpointError(f"{name} lacks tensor {key!r}")
        if key not in targets:
            raise CheckpointError(f"{name} holds tensor {key!r}, which its configuration has no place for")
        if targets[key].shape != tensors[key].shape:
            raise CheckpointError(
                f"tensor {key!r} of {name} has shape {tuple(tensors[key].shape)}, expected {tuple(targets[key].shape)}"
            )
    with torch.no_grad():
        for key, tensor in targets.items():
            tensor.copy_(tensors[key])
    if bank.contexts is not None:
        bank.contexts.look()
    for router in bank.groups.values():
        router.look()
