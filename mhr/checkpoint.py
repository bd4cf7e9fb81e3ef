"""Adapter checkpoints: the bank, the routing and what was trained whole, but not the base model.

A folder with two files. `mhr_adapter.safetensors` holds `AdapterBank.tensors()`; `mhr_config.json` says what they are, on which
base model, and with which size and SHA-256. The JSON is put in place last: without it there is no checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr import __version__
from mhr.backbones import BUILTIN, load_backbone
from mhr.config import AdapterConfig
from mhr.errors import CheckpointError, ConfigError
from mhr.files import make_folder, read_json, write_bytes_atomically, write_json_atomically
from mhr.layers import AdapterBank, attach, detach
from mhr.layers.targets import features, is_linear

FORMAT = "mhr-adapter"
FORMAT_VERSION = 1
CONFIG_FILE = "mhr_config.json"
TENSORS_FILE = "mhr_adapter.safetensors"

# Elements of each parameter that a fingerprint looks at: a full copy of a large model takes well under a second.
SAMPLES = 256


@dataclass
class BaseModel:
    """Which model an adapter belongs to."""

    name_or_path: str
    kind: str
    model_type: str
    fingerprint: str


@dataclass
class AdapterCheckpoint:
    """What an adapter checkpoint holds, in memory and tied to no model.

    config   how tasks are routed; `tasks` the names of the routing table's rows
    layers   adapted layer -> (in, out) features
    modules  names of the modules that are stored whole
    tensors  `AdapterBank.tensors()`, on the CPU
    info     whatever the writer wanted to keep: steps, metrics ...
    """

    config: AdapterConfig
    tasks: list[str]
    base: BaseModel
    layers: dict[str, tuple[int, int]]
    modules: list[str]
    tensors: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)


def checkpoint_of(model: nn.Module, base: str, info: dict[str, Any] | None = None) -> AdapterCheckpoint:
    """The checkpoint of a model with a bank, its tensors copied to the CPU. `base` is the path or hub id of the base model.

    Raises ConfigError for a model without a bank.
    """
    bank = bank_of(model)
    return AdapterCheckpoint(
        config=bank.config,
        tasks=bank.tasks,
        base=BaseModel(_lasting(base), kind_of(model), _model_type(model), fingerprint(model)),
        layers={name: (layer.in_features, layer.out_features) for name, layer in bank.layers.items()},
        modules=list(bank.saved),
        tensors={name: t.detach().to("cpu", copy=True).contiguous() for name, t in bank.tensors().items()},
        info=dict(info or {}),
    )


def save_adapter(model: nn.Module, folder: str | Path, *, base: str, info: dict[str, Any] | None = None) -> Path:
    """Write the adapter checkpoint of a model with a bank into `folder`, which may hold other files as well.

    base: path or hub id of the base model, by which `load_checkpoint` finds it again. info: anything JSON can hold.
    Raises ConfigError for a model without a bank, MhrError where the folder cannot be written.
    """
    return write_adapter(checkpoint_of(model, base, info), folder)


def write_adapter(checkpoint: AdapterCheckpoint, folder: str | Path) -> Path:
    """Write a checkpoint into `folder`. A reader sees the old one or the new one, or is told that it is damaged."""
    folder = make_folder(folder)
    data = safetensors.torch.save(checkpoint.tensors, metadata={"format": "pt"})
    described = dataclasses.asdict(dataclasses.replace(checkpoint, tensors={}))
    described["tensors"] = {"file": TENSORS_FILE, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "mhr_version": __version__}
    write_bytes_atomically(folder / TENSORS_FILE, data)
    write_json_atomically(folder / CONFIG_FILE, head | described)
    return folder


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter checkpoint, sound or not."""
    return (Path(folder) / CONFIG_FILE).is_file()


def read_adapter(folder: str | Path) -> AdapterCheckpoint:
    """The checkpoint in `folder`. Raises CheckpointError where it is missing, cut, damaged, foreign, or too new to read."""
    folder = Path(folder)
    described = _read_config(folder)
    try:
        config = AdapterConfig.from_dict(described["config"])
        stored = described["tensors"]
        checkpoint = AdapterCheckpoint(
            config=config,
            tasks=list(described["tasks"]),
            base=BaseModel(**described["base"]),
            layers={name: (int(i), int(o)) for name, (i, o) in described["layers"].items()},
            modules=list(described["modules"]),
            tensors=_read_tensors(folder / stored["file"], int(stored["size"]), stored["sha256"]),
            info=dict(described["info"]),
        )
    except (ConfigError, AttributeError, KeyError, TypeError, ValueError) as fault:
        reason = f"{fault} is missing" if isinstance(fault, KeyError) else str(fault)
        raise CheckpointError(f"{folder / CONFIG_FILE} does not describe an adapter: {reason}") from None
    return checkpoint


def load_adapter(folder: str | Path, model: nn.Module) -> AdapterBank:
    """Attach the adapter in `folder` to its base model; returns the bank, also `model.mhr`.

    Raises CheckpointError for what `read_adapter` refuses and for another base model, naming what differs.
    """
    return attach_checkpoint(read_adapter(folder), model, str(folder))


def attach_checkpoint(checkpoint: AdapterCheckpoint, model: nn.Module, name: str = "the adapter") -> AdapterBank:
    """Attach a checkpoint that was read already to its base model. `name` is what errors call the checkpoint.

    A model that is refused is left as it was.
    """
    check_base(checkpoint, model, name)
    config = dataclasses.replace(checkpoint.config, targets=list(checkpoint.layers), modules_to_save=checkpoint.modules)
    bank = attach(model, config, checkpoint.tasks)
    try:
        _copy_tensors(bank, checkpoint.tensors, name)
    except CheckpointError:
        detach(model)
        raise
    return bank


def load_checkpoint(folder: str | Path, base: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with the adapter in `folder` attached, in evaluation mode, and its tokenizer.

    base: path or hub id of the base model; None takes the one that the checkpoint names.
    Raises CheckpointError as `load_adapter`, and MhrError where the base model cannot be loaded.
    """
    checkpoint = read_adapter(folder)
    model, tokenizer = load_backbone(base or checkpoint.base.name_or_path, checkpoint.base.kind)
    attach_checkpoint(checkpoint, model, str(folder))
    return model.eval(), tokenizer


def check_base(checkpoint: AdapterCheckpoint, model: nn.Module, name: str = "the adapter") -> None:
    """Raise CheckpointError, naming what differs, where `model` is not the base model of `checkpoint`."""
    wrong = f"{name} belongs to another base model ({checkpoint.base.name_or_path})"
    model_type = _model_type(model)
    if model_type != checkpoint.base.model_type:
        raise CheckpointError(
            f"{wrong}: its architecture is {checkpoint.base.model_type!r}, this model's is {model_type!r}"
        )
    modules = dict(model.named_modules())
    for layer, sizes in checkpoint.layers.items():
        if layer not in modules or not is_linear(modules[layer]):
            raise CheckpointError(f"{wrong}: it adapts layer {layer!r}, which this model does not have as a Linear")
        found = features(modules[layer])
        if found != sizes:
            raise CheckpointError(
                f"{wrong}: its layer {layer!r} has {_sizes(sizes)} features, this model's has {_sizes(found)}"
            )
    for module in checkpoint.modules:
        if module not in modules:
            raise CheckpointError(f"{wrong}: it brings module {module!r}, which this model does not have")
    if not same_base(checkpoint.base.fingerprint, fingerprint(model, checkpoint.modules)):
        raise CheckpointError(
            f"{wrong}: the architecture is the same, but the weights are not; name the right one with --model"
        )


def fingerprint(model: nn.Module, without: list[str] | None = None) -> str:
    """A short text that tells base models apart: hashes of names and shapes, and of sampled values of the parameters.

    The same with and without a bank; parameters of the modules that the bank (or `without`) names are left out. The values
    are hashed as float32, bfloat16 and float16, so that `same_base` knows a model again that was loaded in a narrower dtype.
    """
    bank = getattr(model, "mhr", None)
    layers: set[str] = set()
    skipped = tuple(f"{name}." for name in without or ())
    if isinstance(bank, AdapterBank):
        layers = set(bank.layers)
        skipped += ("mhr.", *(f"{name}." for name in bank.saved))
    structure = hashlib.sha256()
    values = {dtype: hashlib.sha256() for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    for full_name, parameter in model.named_parameters():
        if full_name.startswith(skipped):
            continue
        owner, _, own = full_name.rpartition(".")
        base_owner = owner.removesuffix(".base")
        if base_owner in layers:
            if owner == base_owner:
                continue  # a parameter of the bank
            full_name = f"{base_owner}.{own}"
        structure.update(f"{full_name} {tuple(parameter.shape)};".encode())
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)].cpu()
        for dtype, digest in values.items():
            cast = sample.to(dtype) if sample.is_floating_point() else sample
            digest.update(cast.contiguous().view(torch.uint8).numpy().tobytes())
    return "-".join(digest.hexdigest()[:16] for digest in (structure, *values.values()))


def same_base(one: str, other: str) -> bool:
    """Whether two fingerprints are of one base model, up to its rounding to a narrower dtype."""
    a, b = one.split("-"), other.split("-")
    return a[0] == b[0] and any(x == y for x, y in zip(a[1:], b[1:], strict=False))


def kind_of(model: nn.Module) -> str:
    """What a model is asked to do: "seq2seq", "causal" or "encoder" (see `mhr.backbones.KINDS`)."""
    if not getattr(model, "can_generate", lambda: False)():
        return "encoder"
    return "seq2seq" if model.config.is_encoder_decoder else "causal"  # type: ignore[union-attr]


def bank_of(model: nn.Module) -> AdapterBank:
    """The bank that is attached to a model. Raises ConfigError where there is none."""
    bank = getattr(model, "mhr", None)
    if not isinstance(bank, AdapterBank):
        raise ConfigError("the model has no bank: mhr.attach(model, config, tasks) adds one")
    return bank


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


def _read_tensors(path: Path, size: int, digest: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise CheckpointError(f"cannot read {path}: {fault.strerror or fault}") from None
    if len(data) != size:
        state = "truncated" if len(data) < size else "too long"
        raise CheckpointError(
            f"{path} is {state}: {len(data)} bytes, {CONFIG_FILE} says {size}; copy or train it again"
        )
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {CONFIG_FILE}; copy or train it again")
    try:
        return safetensors.torch.load(data)
    except SafetensorError as fault:
        raise CheckpointError(f"{path} is no safetensors file: {fault}") from None


def _copy_tensors(bank: AdapterBank, tensors: dict[str, Tensor], name: str) -> None:
    own = bank.tensors()
    for key in own.keys() | tensors.keys():
        if key not in tensors:
            raise CheckpointError(f"{name} lacks tensor {key!r}")
        if key not in own:
            raise CheckpointError(f"{name} holds tensor {key!r}, which its configuration has no place for")
        if own[key].shape != tensors[key].shape:
            raise CheckpointError(
                f"tensor {key!r} of {name} has shape {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}"
            )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


def _lasting(base: str) -> str:
    """A name of the base model that still holds in another working directory."""
    return str(Path(base).resolve()) if base not in BUILTIN and Path(base).is_dir() else base


def _model_type(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)


def _sizes(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]} -> {sizes[1]}"
