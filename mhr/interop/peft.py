"""Plain adapters as PEFT folders: written so that `PeftModel.from_pretrained` loads them, read without PEFT.

adapter_config.json and adapter_model.safetensors, as PEFT 0.5 and later write them. Pickled weights are never read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mhr.checkpoint.base import BaseModel
from mhr.checkpoint.plain import LoraFactors, PlainAdapter, PlainIA3, PlainLora
from mhr.errors import CheckpointError
from mhr.files import make_folder, read_json, write_bytes_atomically, write_json_atomically

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."

# Architectures whose Linear is Conv1D, with the weight transposed: PEFT calls it fan_in_fan_out.
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")

TASK_TYPES = {"seq2seq": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM"}
KINDS = {task_type: kind for kind, task_type in TASK_TYPES.items()} | {"SEQ_CLS": "encoder"}

# Settings that make a LoRA compute something else than W x + scaling * B A x.
BEYOND_LORA = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)

# Initialisations that subtract the first factors from the base weights, so that the adapter fits only what is left.
SHIFTED_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")


def is_peft(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter of any kind."""
    return (Path(folder) / CONFIG_FILE).is_file()


def save_peft(plain: PlainAdapter, folder: str | Path) -> Path:
    """Write a plain adapter as a PEFT folder. Rank and alpha travel as they are, layer by layer where they differ.

    Plain `PeftModel.from_pretrained(base, folder)` computes the same outputs. Raises MhrError where the folder cannot be
    written.
    """
    folder = make_folder(folder)
    config: dict[str, Any] = {
        "base_model_name_or_path": plain.base.name_or_path,
        "fan_in_fan_out": plain.base.model_type in CONV1D,
        "inference_mode": True,
        "modules_to_save": list(plain.modules) or None,
        "target_modules": list(plain.layers),
        "task_type": _task_type(plain),
    }
    tensors: dict[str, Tensor] = {}
    if isinstance(plain, PlainLora):
        config |= {"peft_type": "LORA", "bias": "none", "lora_dropout": 0.0, **_ranks(plain)}
        for name, factors in plain.layers.items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = factors.a.T
            tensors[f"{PREFIX}{name}.lora_B.weight"] = factors.b.T
    else:
        config |= {"peft_type": "IA3", "feedforward_modules": []}
        tensors = {f"{PREFIX}{name}.ia3_l": vector[:, None] for name, vector in plain.layers.items()}
    for module, state in plain.modules.items():
        tensors |= {f"{PREFIX}{module}.{key}": tensor for key, tensor in state.items()}
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes_atomically(folder / TENSORS_FILE, safetensors.torch.save(dense, metadata={"format": "pt"}))
    write_json_atomically(folder / CONFIG_FILE, dict(sorted(config.items())))
    return folder


def load_peft(folder: str | Path) -> PlainAdapter:
    """The LoRA (with rank_pattern, alpha_pattern and rslora) or IA3 in a PEFT folder, with its modules_to_save.

    rslora's scaling alpha / sqrt(R) becomes an alpha that gives the same. Raises CheckpointError for a folder that is
    missing, damaged or pickled, for every other kind of PEFT adapter, by its name, and for what goes beyond plain LoRA.
    """
    folder = Path(folder)
    if not is_peft(folder):
        raise CheckpointError(f"no PEFT adapter at {folder}: {CONFIG_FILE} is missing")
    config = read_json(folder / CONFIG_FILE, CheckpointError)
    kind = str(config.get("peft_type"))
    if kind not in ("LORA", "IA3"):
        raise CheckpointError(f"{folder} holds a PEFT adapter of kind {kind}: expected LORA or IA3")
    _refuse_beyond(config, folder)
    tensors = _read_tensors(folder)
    names = config.get("modules_to_save") or []
    modules: dict[str, dict[str, Tensor]] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        module = _module_of(name, names)
        adapted = re.fullmatch(r"(.+)\.(lora_A\.weight|lora_B\.weight|ia3_l)", name)
        if module is not None:
            modules.setdefault(module, {})[name.removeprefix(f"{module}.")] = tensor
        elif adapted and key.startswith(PREFIX):
            parts.setdefault(adapted[1], {})[adapted[2]] = tensor
        else:
            raise CheckpointError(f"{folder / TENSORS_FILE} holds tensor {key!r}, which is no part of a plain {kind}")
    if not parts:
        raise CheckpointError(f"{folder / TENSORS_FILE} holds no {kind} tensors")
    base = BaseModel(str(config.get("base_model_name_or_path") or ""), KINDS.get(str(config.get("task_type")), ""))
    if kind == "IA3":
        return PlainIA3({name: _vector(name, part, folder) for name, part in parts.items()}, base, modules)
    return PlainLora({name: _factors(name, part, config, folder) for name, part in parts.items()}, base, modules)


def _ranks(plain: PlainLora) -> dict[str, Any]:
    """r and lora_alpha, those of most layers, and patterns for the others."""
    rank = Counter(factors.rank for factors in plain.layers.values()).most_common(1)[0][0]
    alpha = Counter(factors.alpha for factors in plain.layers.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": _number(alpha),
        "use_rslora": False,
        "rank_pattern": {name: f.rank for name, f in plain.layers.items() if f.rank != rank},
        "alpha_pattern": {name: _number(f.alpha) for name, f in plain.layers.items() if f.alpha != alpha},
    }


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _task_type(plain: PlainAdapter) -> str | None:
    """PEFT's name for what the model does. An encoder without a trained head stays without, or PEFT would add one."""
    if plain.base.kind == "encoder" and any(name in ("classifier", "score") for name in plain.modules):
        return "SEQ_CLS"
    return TASK_TYPES.get(plain.base.kind)


def _refuse_beyond(config: Mapping[str, Any], folder: Path) -> None:
    for name in BEYOND_LORA:
        if config.get(name):
            raise CheckpointError(f"{folder / CONFIG_FILE} sets {name}, which no plain LoRA can hold")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(SHIFTED_BASE):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} sets init_lora_weights to {start!r}, which changes the base weights too: convert the "
            "adapter to a plain LoRA with PEFT (path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{folder / CONFIG_FILE} sets bias to {config['bias']!r}: expected 'none'")
    if config.get("feedforward_modules"):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} sets feedforward_modules, whose inputs are scaled: expected an IA3 that scales outputs"
        )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS_FILE
    if not path.is_file():
        if (folder / PICKLE_FILE).is_file():
            raise CheckpointError(
                f"{folder / PICKLE_FILE} is a pickle, which can run code when it is read: save it as {TENSORS_FILE} with PEFT"
            )
        raise CheckpointError(f"{folder} holds no {TENSORS_FILE}: the adapter is incomplete")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"cannot read {path}: it is truncated or no safetensors file ({fault})") from None


def _module_of(name: str, modules: list[str]) -> str | None:
    """The module to save that the tensor `name` belongs to, by its full name: PEFT matches names by their endings."""
    for module in modules:
        found = re.match(rf"((?:.+\.)?{re.escape(module)})\.", name)
        if found:
            return found[1]
    return None


def _factors(name: str, part: dict[str, Tensor], config: Mapping[str, Any], folder: Path) -> LoraFactors:
    if len(part) != 2:
        raise CheckpointError(f"{folder / TENSORS_FILE} holds only {next(iter(part))} of layer {name!r}")
    a, b = part["lora_A.weight"], part["lora_B.weight"]
    rank = int(_pattern(config.get("rank_pattern"), name, config.get("r", 8)))
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(
            f"layer {name!r} of {folder} has factors of shape {tuple(a.shape)} and {tuple(b.shape)}, "
            f"but {CONFIG_FILE} gives it rank {rank}"
        )
    alpha = float(_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8)))
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)
    return LoraFactors(a.T.contiguous(), b.T.contiguous(), alpha)


def _vector(name: str, part: dict[str, Tensor], folder: Path) -> Tensor:
    vector = part["ia3_l"]
    if vector.dim() != 2 or vector.shape[1] != 1:
        raise CheckpointError(
            f"layer {name!r} of {folder} has a vector of shape {tuple(vector.shape)}, expected (out, 1): it scales the output"
        )
    return vector[:, 0].contiguous()


def _pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first pattern, a regular expression for the end of a layer's name, that fits."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return otherwise
