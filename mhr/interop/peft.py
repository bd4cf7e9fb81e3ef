"""Plain adapters as PEFT folders: written so that `PeftModel.from_pretrained` loads them, read without PEFT.

adapter_config.json and adapter_model.safetensors, as PEFT 0.5 and later write them. Pickled weights are never read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mhr.checkpoint.base import BaseModel, Sizes
from mhr.checkpoint.plain import LoraFactors, PlainAdapter, PlainIA3, PlainLora
from mhr.checkpoint.tensor_file import TensorFile
from mhr.errors import CheckpointError
from mhr.files import make_folder, read_json, write_bytes_atomically, write_json_atomically

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."

PARTS = {"lora": ("lora_A.weight", "lora_B.weight"), "ia3": ("ia3_l",)}
"""Ends of the names of a layer's tensors, by kind of adapter."""

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

    Plain `PeftModel.from_pretrained(base, folder)` computes the same outputs. Raises CheckpointError for a kind of adapter
    that PEFT does not have, MhrError where the folder cannot be written.
    """
    if not isinstance(plain, (PlainLora, PlainIA3)):
        raise CheckpointError(
            f"PEFT has no {type(plain).__name__.removeprefix('Plain').lower()} adapters to save it as"
        )
    folder = make_folder(folder)
    ranks = {n: (f.rank, f.alpha) for n, f in plain.layers.items()} if isinstance(plain, PlainLora) else None
    tensors: dict[str, Tensor] = {}
    for name, layer in plain.layers.items():
        tensors |= layer_tensors(name, layer)
    for module, state in plain.modules.items():
        tensors |= module_tensors(module, state)
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes_atomically(folder / TENSORS_FILE, safetensors.torch.save(dense, metadata={"format": "pt"}))
    write_json_atomically(folder / CONFIG_FILE, peft_config(plain.base, plain.layers, plain.modules, ranks))
    return folder


def peft_config(
    base: BaseModel, layers: Iterable[str], modules: Iterable[str], ranks: Mapping[str, tuple[int, float]] | None
) -> dict[str, Any]:
    """What adapter_config.json says. ranks: layer -> (rank, alpha) of a LoRA; None for an IA3."""
    modules = list(modules)
    config: dict[str, Any] = {
        "base_model_name_or_path": base.name_or_path,
        "fan_in_fan_out": base.model_type in CONV1D,
        "inference_mode": True,
        "modules_to_save": modules or None,
        "target_modules": list(layers),
        "task_type": _task_type(base, modules),
    }
    if ranks is None:
        config |= {"peft_type": "IA3", "feedforward_modules": []}
    else:
        config |= {"peft_type": "LORA", "bias": "none", "lora_dropout": 0.0, **_patterns(ranks)}
    return dict(sorted(config.items()))


def layer_tensors(name: str, layer: LoraFactors | Tensor) -> dict[str, Tensor]:
    """The tensors of an adapted layer by the names that PEFT gives them."""
    if isinstance(layer, Tensor):
        return {f"{PREFIX}{name}.ia3_l": layer[:, None]}
    return {f"{PREFIX}{name}.lora_A.weight": layer.a.T, f"{PREFIX}{name}.lora_B.weight": layer.b.T}


def module_tensors(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module that is stored whole by the names that PEFT gives them."""
    return {f"{PREFIX}{name}.{key}": tensor for key, tensor in state.items()}


class PeftAdapter:
    """The adapter in a PEFT folder, of which only what is asked for is in memory.

    kind     "lora" or "ia3"
    base     its base model, as far as PEFT says
    layers   adapted layers: name -> (in, out) features, where None is not told
    ranks    layer -> (rank, alpha) of a LoRA, with rank_pattern, alpha_pattern and rslora counted in; {} of an IA3
    modules  modules to save: full name -> name in its state -> name in the file
    file     the tensors
    """

    def __init__(self, folder: str | Path):
        """Raises CheckpointError as `load_peft` does; tensors are not read yet."""
        self.folder = Path(folder)
        if not is_peft(folder):
            raise CheckpointError(f"no PEFT adapter at {folder}: {CONFIG_FILE} is missing")
        config = read_json(self.folder / CONFIG_FILE, CheckpointError)
        kind = str(config.get("peft_type"))
        if kind not in ("LORA", "IA3"):
            raise CheckpointError(f"{folder} holds a PEFT adapter of kind {kind}: expected LORA or IA3")
        _refuse_beyond(config, self.folder)
        self.kind = kind.lower()
        self.base = BaseModel(
            str(config.get("base_model_name_or_path") or ""), KINDS.get(str(config.get("task_type")), "")
        )
        self.file = _open_tensors(self.folder)
        self.modules: dict[str, dict[str, str]] = {}
        parts: dict[str, set[str]] = {}
        for key in self.file.shapes:
            name = key.removeprefix(PREFIX)
            module = _module_of(name, config.get("modules_to_save") or [])
            adapted = re.fullmatch(rf"(.+)\.({'|'.join(map(re.escape, PARTS[self.kind]))})", name)
            if module is not None:
                self.modules.setdefault(module, {})[name.removeprefix(f"{module}.")] = key
            elif adapted and key.startswith(PREFIX):
                parts.setdefault(adapted[1], set()).add(adapted[2])
            else:
                raise CheckpointError(f"{self.file.path} holds tensor {key!r}, which is no part of a plain {kind}")
        if not parts:
            raise CheckpointError(f"{self.file.path} holds no {kind} tensors")
        self.layers: dict[str, Sizes] = {}
        self.ranks: dict[str, tuple[int, float]] = {}
        for name, found in parts.items():
            if self.kind == "ia3":
                self.layers[name] = (None, self._vector_size(name))
            else:
                self.ranks[name] = _rank(name, config, self.folder)
                self.layers[name] = self._factor_sizes(name, found)

    def layer_keys(self, name: str) -> list[str]:
        """Names of a layer's tensors in the file."""
        return [f"{PREFIX}{name}.{part}" for part in PARTS[self.kind]]

    def layer(self, name: str) -> LoraFactors | Tensor:
        """The factors, or the vector, of a layer, read now."""
        keys = self.layer_keys(name)
        tensors = self.file.read(keys)
        if self.kind == "ia3":
            return tensors[keys[0]][:, 0].contiguous()
        a, b = (tensors[key].T.contiguous() for key in keys)
        return LoraFactors(a, b, self.ranks[name][1])

    def module(self, name: str) -> dict[str, Tensor]:
        """The state of a module to save, read now."""
        keys = self.modules[name]
        tensors = self.file.read(keys.values())
        return {key: tensors[full] for key, full in keys.items()}

    def _factor_sizes(self, name: str, found: set[str]) -> Sizes:
        if len(found) != 2:
            raise CheckpointError(f"{self.file.path} holds only {next(iter(found))} of layer {name!r}")
        a, b = (self.file.shapes[f"{PREFIX}{name}.{part}"] for part in PARTS["lora"])
        rank = self.ranks[name][0]
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise CheckpointError(
                f"layer {name!r} of {self.folder} has factors of shape {a} and {b}, but {CONFIG_FILE} gives it rank {rank}"
            )
        return a[1], b[0]

    def _vector_size(self, name: str) -> int:
        shape = self.file.shapes[f"{PREFIX}{name}.{PARTS['ia3'][0]}"]
        if len(shape) != 2 or shape[1] != 1:
            raise CheckpointError(
                f"layer {name!r} of {self.folder} has a vector of shape {shape}, expected (out, 1): it scales the output"
            )
        return shape[0]


def load_peft(folder: str | Path) -> PlainAdapter:
    """The LoRA (with rank_pattern, alpha_pattern and rslora) or IA3 in a PEFT folder, with its modules_to_save.

    rslora's scaling alpha / sqrt(R) becomes an alpha that gives the same. Raises CheckpointError for a folder that is
    missing, damaged or pickled, for every other kind of PEFT adapter, by its name, and for what goes beyond plain LoRA.
    """
    found = PeftAdapter(folder)
    layers: dict[str, Any] = {name: found.layer(name) for name in found.layers}
    modules = {name: found.module(name) for name in found.modules}
    return (PlainIA3 if found.kind == "ia3" else PlainLora)(layers, found.base, modules)


def _patterns(ranks: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """r and lora_alpha, those of most layers, and patterns for the others."""
    rank = Counter(rank for rank, _ in ranks.values()).most_common(1)[0][0]
    alpha = Counter(alpha for _, alpha in ranks.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": _number(alpha),
        "use_rslora": False,
        "rank_pattern": {name: r for name, (r, _) in ranks.items() if r != rank},
        "alpha_pattern": {name: _number(a) for name, (_, a) in ranks.items() if a != alpha},
    }


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _task_type(base: BaseModel, modules: Iterable[str]) -> str | None:
    """PEFT's name for what the model does. An encoder without a trained head stays without, or PEFT would add one."""
    if base.kind == "encoder" and any(name in ("classifier", "score") for name in modules):
        return "SEQ_CLS"
    return TASK_TYPES.get(base.kind)


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


def _open_tensors(folder: Path) -> TensorFile:
    path = folder / TENSORS_FILE
    if not path.is_file():
        if (folder / PICKLE_FILE).is_file():
            raise CheckpointError(
                f"{folder / PICKLE_FILE} is a pickle, which can run code when it is read: save it as {TENSORS_FILE} with PEFT"
            )
        raise CheckpointError(f"{folder} holds no {TENSORS_FILE}: the adapter is incomplete")
    try:
        return TensorFile(path)
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"cannot read {path}: it is truncated or no safetensors file ({fault})") from None


def _module_of(name: str, modules: list[str]) -> str | None:
    """The module to save that the tensor `name` belongs to, by its full name: PEFT matches names by their endings."""
    for module in modules:
        found = re.match(rf"((?:.+\.)?{re.escape(module)})\.", name)
        if found:
            return found[1]
    return None


def _rank(name: str, config: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """Rank and alpha of a layer, such that alpha / rank is what PEFT scales its update by."""
    rank = int(_pattern(config.get("rank_pattern"), name, config.get("r", 8)))
    alpha = float(_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8)))
    if rank < 1 or not alpha > 0:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} gives layer {name!r} rank {rank} and alpha {alpha:g}: expected both above 0"
        )
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first pattern, a regular expression for the end of a layer's name, that fits."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return otherwise
