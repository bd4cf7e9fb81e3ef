"""PEFT folders, read without PEFT: LoRA and IA3, with the modules that were trained whole beside them.

adapter_config.json and adapter_model.safetensors, as PEFT 0.5 and later write them. Pickled weights are never read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mhr.adapters.base import BaseModel
from mhr.adapters.base_name import is_local
from mhr.adapters.layer import AdapterLayer, IA3Vector, LoraFactors, Shape
from mhr.adapters.outputs import check_outputs
from mhr.adapters.plain import Lazy, PlainAdapter
from mhr.adapters.tensor_file import TensorFile, digest_of
from mhr.backbones import is_builtin
from mhr.errors import CheckpointError
from mhr.files import read_json
from mhr.task_heads import CONFIG_KEY, TaskHeads

PEFT_CONFIG_FILE = "adapter_config.json"
PEFT_TENSORS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
HEAD_FOLDER = "head"
"""In a PEFT folder of ours, the configuration that says what the outputs stand for."""
PREFIX = "base_model.model."

LAYER_TENSORS = {"lora": ("lora_A.weight", "lora_B.weight"), "ia3": ("ia3_l",)}
"""Ends of the names of a layer's tensors, by kind of adapter."""

TASK_TYPES = {"seq2seq": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM"}
KINDS_OF_TASK_TYPES = {task_type: kind for kind, task_type in TASK_TYPES.items()} | {"SEQ_CLS": "encoder"}

# Settings under which an adapter computes what its tensors say: those that are counted in here, those that chose the layers or
# the start, and those of training.
UNDERSTOOD = frozenset(
    [
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_config",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",
        "qalora_group_size",
        "velora_config",
        "ensure_weight_tying",
        "feedforward_modules",
        "init_ia3_weights",
    ]
)

# Initialisations that subtract the first factors from the base weights, so that the adapter fits only what is left.
SHIFTED_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")

# Last part of the names that embeddings and output layers have, whose weights PEFT's save_embedding_layers adds to an adapter.
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "shared", "word_embeddings", "embed_in", "embed_out", "tok_embeddings")


def is_peft(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter of any kind."""
    return (Path(folder) / PEFT_CONFIG_FILE).is_file()


def load_peft(folder: str | Path) -> PlainAdapter:
    """The adapter in a PEFT folder, in memory, see `open_peft`."""
    return open_peft(folder).read()


def open_peft(folder: str | Path) -> PlainAdapter:
    """The LoRA (with rank_pattern, alpha_pattern and rslora) or IA3 (with feedforward_modules) in a PEFT folder, with its
    modules_to_save and saved embeddings; layers are read when they are asked for. lora_dropout is kept for training that goes on.

    rslora's scaling alpha / sqrt(R) becomes an alpha that gives the same. Raises CheckpointError for a folder that is
    missing, damaged or pickled, for every other kind of PEFT adapter, by its name, and for what goes beyond plain LoRA.
    """
    folder = Path(folder)
    if not is_peft(folder):
        raise CheckpointError(f"no PEFT adapter at {folder}: {PEFT_CONFIG_FILE} is missing")
    config = read_json(folder / PEFT_CONFIG_FILE, CheckpointError)
    kind = str(config.get("peft_type"))
    if kind not in ("LORA", "IA3"):
        raise CheckpointError(f"{folder} holds a PEFT adapter of kind {kind}: expected LORA or IA3")
    _refuse_beyond(config, folder)
    kind = kind.lower()
    file = open_peft_tensors(folder)
    parts, modules = _sort(file, kind, config.get("modules_to_save") or [])
    if not parts:
        raise CheckpointError(f"{file.path} holds no {kind.upper()} tensors")
    if kind == "lora":
        shapes = {name: _lora_shape(name, found, file, config, folder) for name, found in parts.items()}
    else:
        shapes = {name: _ia3_shape(name, file, config, folder) for name in parts}

    def layer(name: str) -> AdapterLayer:
        keys = [f"{PREFIX}{name}.{part}" for part in LAYER_TENSORS[kind]]
        tensors = file.read(keys)
        if kind == "ia3":
            return IA3Vector(tensors[keys[0]].flatten(), shapes[name].inputs)
        a, b = (tensors[key].T.contiguous() for key in keys)
        return LoraFactors(a, b, shapes[name].alpha)

    def module(name: str) -> dict[str, Tensor]:
        tensors = file.read(modules[name].values())
        return {key: tensors[full] for key, full in modules[name].items()}

    ranks = {name: (shape.rank, shape.alpha) for name, shape in shapes.items()} if kind == "lora" else {}
    return PlainAdapter(
        layers=Lazy(shapes, layer),
        base=base_of(config),
        modules=Lazy(modules, module),
        shapes=shapes,
        states={name: {key: file.shapes[full] for key, full in keys.items()} for name, keys in modules.items()},
        name=str(folder),
        digest=digest_of(file, kind, ranks),
        heads=_heads(folder, file),
        dropout=_dropout(config, folder) if kind == "lora" else 0.0,
    )


def _dropout(config: Mapping[str, Any], folder: Path) -> float:
    share = config.get("lora_dropout") or 0.0
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
        raise CheckpointError(
            f"{folder / PEFT_CONFIG_FILE} sets lora_dropout to {share!r}: expected a number of at least 0 and below 1"
        )
    return float(share)


def _heads(folder: Path, file: TensorFile) -> TaskHeads | None:
    path = folder / HEAD_FOLDER / "config.json"
    said = read_json(path, CheckpointError).get(CONFIG_KEY) if path.is_file() else None
    if said is None:
        return None
    heads = TaskHeads.from_json(said, str(path))
    check_outputs(heads, file.shapes, str(folder), PREFIX)
    return heads


def base_of(config: Mapping[str, Any]) -> BaseModel:
    """The base model that a configuration names, at its revision, which PEFT heeds of models on the hub alone."""
    name = str(config.get("base_model_name_or_path") or "")
    revision = str(config.get("revision") or "")
    on_hub = not (is_local(name) or is_builtin(name))
    return BaseModel(name, _kind_of_base(config), revision=revision if on_hub and revision != "main" else "")


def _kind_of_base(config: Mapping[str, Any]) -> str:
    """What the base model of an adapter does, "" where its configuration does not say."""
    mapped = config.get("auto_mapping")
    if isinstance(mapped, Mapping) and str(mapped.get("base_model_class")).endswith("ForMaskedLM"):
        return "masked"
    return KINDS_OF_TASK_TYPES.get(str(config.get("task_type")), "")


def _sort(file: TensorFile, kind: str, to_save: list[str]) -> tuple[dict[str, set[str]], dict[str, dict[str, str]]]:
    """The tensors of a file: adapted layer -> its parts, and module that is stored whole -> name in its state -> name here."""
    parts: dict[str, set[str]] = {}
    modules: dict[str, dict[str, str]] = {}
    for key in file.shapes:
        name = key.removeprefix(PREFIX)
        module = module_of(name, to_save)
        adapted = re.fullmatch(rf"(.+)\.({'|'.join(map(re.escape, LAYER_TENSORS[kind]))})", name)
        if module is not None:
            modules.setdefault(module, {})[name.removeprefix(f"{module}.")] = key
        elif adapted and key.startswith(PREFIX):
            parts.setdefault(adapted[1], set()).add(adapted[2])
        elif ".lora_embedding_" in key or ".base_layer." in key:
            layer = re.split(r"\.(?:lora_embedding_|base_layer\.)", name)[0]
            raise CheckpointError(
                f"{file.path} adapts the embeddings {layer!r} ({key!r}), which takes more than a plain LoRA on Linear layers: "
                "train it without them in target_modules, or fold it into its base with PEFT (merge_and_unload) and use that model"
            )
        else:
            raise CheckpointError(f"{file.path} holds tensor {key!r}, which is no part of a plain {kind.upper()}")
    return parts, modules


def module_of(name: str, modules: Iterable[str]) -> str | None:
    """The module that is stored whole and that the tensor `name` belongs to, by its full name.

    PEFT takes every module whose name ends as an entry of modules_to_save does, in the middle of a word too: classifier means
    pre_classifier as well. save_embedding_layers adds embeddings without an entry.
    """
    parents = name.split(".")[:-1]
    for n in range(1, len(parents) + 1):
        prefix = ".".join(parents[:n])
        if any(prefix.endswith(module) for module in modules):
            return prefix
    return ".".join(parents) if parents and parents[-1] in EMBEDDINGS and name.endswith(".weight") else None


def _lora_shape(name: str, found: set[str], file: TensorFile, config: Mapping[str, Any], folder: Path) -> Shape:
    if len(found) != 2:
        raise CheckpointError(f"{file.path} holds only {next(iter(found))} of layer {name!r}")
    rank, alpha = _rank(name, config, folder)
    keys = [f"{PREFIX}{name}.{part}" for part in LAYER_TENSORS["lora"]]
    a, b = (file.shapes[key] for key in keys)
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
        raise CheckpointError(
            f"layer {name!r} of {folder} has factors of shape {a} and {b}, but {PEFT_CONFIG_FILE} gives it rank {rank}"
        )
    return Shape("lora", (a[1], b[0]), file.dtypes[keys[0]], rank, alpha)


def _ia3_shape(name: str, file: TensorFile, config: Mapping[str, Any], folder: Path) -> Shape:
    key = f"{PREFIX}{name}.{LAYER_TENSORS['ia3'][0]}"
    shape = file.shapes[key]
    inputs = _scales_inputs(name, config.get("feedforward_modules") or [])
    if len(shape) != 2 or shape[0 if inputs else 1] != 1:
        expected = "(1, in): it scales the input" if inputs else "(out, 1): it scales the output"
        raise CheckpointError(f"layer {name!r} of {folder} has a vector of shape {shape}, expected {expected}")
    sizes = (shape[1], None) if inputs else (None, shape[0])
    return Shape("ia3", sizes, file.dtypes[key], inputs=inputs)


def _scales_inputs(name: str, feedforward: str | Iterable[str]) -> bool:
    """Whether PEFT takes a layer for one of feedforward_modules: a regular expression, or endings of names."""
    if isinstance(feedforward, str):
        return re.fullmatch(feedforward, name) is not None
    return any(name.endswith(ending) for ending in feedforward)


def _refuse_beyond(config: Mapping[str, Any], folder: Path) -> None:
    for name, value in config.items():
        if value and name not in UNDERSTOOD:
            raise CheckpointError(
                f"{folder / PEFT_CONFIG_FILE} sets {name}, which no plain LoRA can hold: fold the adapter into its base with PEFT "
                "(merge_and_unload) and use that model"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(SHIFTED_BASE):
        raise CheckpointError(
            f"{folder / PEFT_CONFIG_FILE} sets init_lora_weights to {start!r}, which changes the base weights too: convert the "
            "adapter to a plain LoRA with PEFT (path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{folder / PEFT_CONFIG_FILE} sets bias to {config['bias']!r}: expected 'none'")


def open_peft_tensors(folder: Path) -> TensorFile:
    path = folder / PEFT_TENSORS_FILE
    if not path.is_file():
        if (folder / PICKLE_FILE).is_file():
            raise CheckpointError(
                f"{folder / PICKLE_FILE} is a pickle, which can run code when it is read: save it as {PEFT_TENSORS_FILE} with PEFT"
            )
        raise CheckpointError(f"{folder} holds no {PEFT_TENSORS_FILE}: the adapter is incomplete")
    try:
        return TensorFile(path)
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"cannot read {path}: it is truncated or no safetensors file ({fault})") from None


def _rank(name: str, config: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """Rank and alpha of a layer, such that alpha / rank is what PEFT scales its update by."""
    rank = int(_pattern(config.get("rank_pattern"), name, config.get("r", 8)))
    alpha = float(_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8)))
    if rank < 1 or not alpha > 0:
        raise CheckpointError(
            f"{folder / PEFT_CONFIG_FILE} gives layer {name!r} rank {rank} and alpha {alpha:g}: expected both above 0"
        )
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first pattern, a regular expression for the end of a layer's name, that fits."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return otherwise
