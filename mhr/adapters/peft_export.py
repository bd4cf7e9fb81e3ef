"""Plain adapters as PEFT folders, so that `PeftModel.from_pretrained` loads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import conversion_mapping

from mhr.adapters.base import BaseModel
from mhr.adapters.layer import AdapterLayer, IA3Vector, LoraFactors, Shape
from mhr.adapters.peft import HEAD_FOLDER, PEFT_CONFIG_FILE, PEFT_TENSORS_FILE, PREFIX, TASK_TYPES
from mhr.adapters.peft_modules import HEADS, config_of, with_peers
from mhr.adapters.plain import PlainAdapter
from mhr.adapters.tensor_file import TensorWriter
from mhr.errors import CheckpointError
from mhr.files import make_folder, write_json_atomically

# Architectures whose Linear is Conv1D, with the weight transposed: PEFT calls it fan_in_fan_out.
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


# Layers that PEFT takes for those of experts, which it looks for in fused parameters: by the architecture that transformers converts
# the checkpoints of a base model like.
MOVED_TO_EXPERTS = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}


def save_peft(plain: PlainAdapter, folder: str | Path) -> Path:
    """Write a plain adapter as a PEFT folder, layer by layer. Rank and alpha travel as they are, in patterns where they differ.

    Plain `PeftModel.from_pretrained(base, folder)` computes the same outputs. Where the adapter brings heads, the folder HEAD_FOLDER
    in it holds the base model's configuration with num_labels, id2label and label2id, which PEFT has no place for:
    `AutoModelForSequenceClassification.from_pretrained(folder, config=AutoConfig.from_pretrained(folder / "head"))`. Raises CheckpointError for a kind of adapter
    that PEFT does not have, and for layers and modules that PEFT would not find again, MhrError where the folder cannot be written.
    """
    if plain.kind not in ("lora", "ia3"):
        raise CheckpointError(f"PEFT has no {plain.kind} adapters: write it as an adapter of ours (--to mhr)")
    if plain.kind == "lora":
        _check_experts(plain)
    plain = with_peers(plain)
    config = _config(plain)
    labelled = None if plain.heads is None else config_of(plain.base, plain.heads)
    folder = make_folder(folder)
    with TensorWriter(folder / PEFT_TENSORS_FILE) as file:
        for name, layer in plain.layers.items():
            file.add_all(_layer_tensors(f"{PREFIX}{name}", layer))
        for name, state in plain.modules.items():
            file.add_all({f"{PREFIX}{name}.{key}": tensor for key, tensor in state.items()})
    if labelled is not None:
        labelled.save_pretrained(folder / HEAD_FOLDER)
    write_json_atomically(folder / PEFT_CONFIG_FILE, config)
    return folder


def _check_experts(plain: PlainAdapter) -> None:
    """Raise CheckpointError for layers beside experts (shared ones, dense blocks) that PEFT would put on the experts instead."""
    alike = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {}).get(plain.base.model_type)
    moved: tuple[str, ...] = MOVED_TO_EXPERTS.get(str(alike), ())
    name = next((name for name in plain.shapes if name.rsplit(".", 1)[-1] in moved), None)
    if name is not None:
        raise CheckpointError(
            f"PEFT would put the LoRA of layer {name!r} on the experts of {plain.base.model_type!r}: write a plain model or an "
            "adapter of ours (--to model, --to mhr), or train with --targets attention"
        )


def _config(plain: PlainAdapter) -> dict[str, Any]:
    """What adapter_config.json says."""
    modules = list(plain.modules)
    config: dict[str, Any] = {
        "base_model_name_or_path": plain.base.name_or_path,
        "fan_in_fan_out": plain.base.model_type in CONV1D,
        "inference_mode": True,
        "modules_to_save": modules or None,
        "target_modules": list(plain.shapes),
        **of_base(plain.base, modules),
    }
    if plain.kind == "ia3":
        config |= {"peft_type": "IA3", "feedforward_modules": [n for n, s in plain.shapes.items() if s.inputs]}
    else:
        config |= {"peft_type": "LORA", "bias": "none", "lora_dropout": 0.0, **_patterns(plain.shapes)}
    return dict(sorted(config.items()))


def _layer_tensors(name: str, layer: AdapterLayer) -> dict[str, Tensor]:
    """The tensors of an adapted layer by the names and in the shapes that PEFT gives them."""
    if isinstance(layer, IA3Vector):
        return {f"{name}.ia3_l": layer.v[None] if layer.inputs else layer.v[:, None]}
    assert isinstance(layer, LoraFactors)
    return {f"{name}.lora_A.weight": layer.a.T, f"{name}.lora_B.weight": layer.b.T}


def _patterns(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """r and lora_alpha, those of most layers, and patterns for the others."""
    ranks = {name: (shape.rank, shape.alpha) for name, shape in shapes.items()}
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


def of_base(base: BaseModel, modules: Iterable[str]) -> dict[str, Any]:
    """By what adapter_config.json tells PEFT the class of the base model."""
    found: dict[str, Any] = {"task_type": _task_type(base, modules)}
    if base.kind == "masked":  # PEFT has no task type for it, and finds the class of the base model by this
        found["auto_mapping"] = {"base_model_class": "AutoModelForMaskedLM", "parent_library": "transformers"}
    return found


def _task_type(base: BaseModel, modules: Iterable[str]) -> str | None:
    """PEFT's name for what the model does. An encoder without a trained head stays without, or PEFT would add one."""
    if base.kind == "encoder" and any(name in HEADS for name in modules):
        return "SEQ_CLS"
    return TASK_TYPES.get(base.kind)
