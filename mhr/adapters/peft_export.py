"""Plain adapters as PEFT folders, so that `PeftModel.from_pretrained` loads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import conversion_mapping

from mhr.adapters.base import BaseModel
from mhr.adapters.layer import AdapterLayer, IA3Vector, LoraFactors
from mhr.adapters.peft import HEAD_FOLDER, PEFT_CONFIG_FILE, PEFT_TENSORS_FILE, PREFIX, TASK_TYPES
from mhr.adapters.peft_modules import HEADS, config_of, other_skeletons, outputs_of, skeleton, with_peers
from mhr.adapters.peft_prompts import prompt_config, prompt_tensors, virtual_tokens
from mhr.adapters.peft_readers import missing_layers, one_size, remarks, short_names
from mhr.adapters.plain import PlainAdapter
from mhr.adapters.tensor_file import TensorWriter
from mhr.config import VIRTUAL
from mhr.errors import CheckpointError, ConfigError
from mhr.files import make_folder, write_json_atomically

# Architectures whose Linear is Conv1D, with the weight transposed: PEFT calls it fan_in_fan_out.
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


# Layers that PEFT takes for those of experts, which it looks for in fused parameters: by the architecture that transformers converts
# the checkpoints of a base model like.
MOVED_TO_EXPERTS = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}


@dataclass(frozen=True)
class PeftFolder:
    """A PEFT folder that was written.

    kind         "lora", "ia3", "prompt" or "prefix", or "bank" for a whole one with its routing
    base         name of the base model in it; `revision` the one that is meant on the hub, None its main one
    rank, alpha  those of all layers, None where there is none; with patterns those of most
    patterns     whether layers differ in them
    remarks      what programs that read it have to know, a sentence each
    """

    path: Path
    kind: str
    base: str
    revision: str | None
    task_type: str | None
    rank: int | None
    alpha: float | None
    patterns: bool
    remarks: list[str]


class PeftWriter:
    """Writes plain adapters of one base model as PEFT folders: as many as there are, the base model being asked once.

        with one rank R and alpha a:  A [I, R] and B [R, O], filled up with zeros, B times (alpha_l / R_l) / (a / R)

    so that readers with one scaling (vLLM, llama.cpp) compute the same as PEFT. Of layers' scalings a / R is the least.

    base           name of the base model in the folders, see `mhr.adapters.base_name.name_as_given`; None takes the adapters' own
    revision       of the base model on the hub
    patterns       write each layer's own rank and alpha, in rank_pattern and alpha_pattern, and B as it is
    rank_multiple  the rank is rounded up to a multiple of this

    Raises ConfigError for both of the last two.
    """

    def __init__(
        self,
        *,
        base: str | None = None,
        revision: str | None = None,
        patterns: bool = False,
        rank_multiple: int | None = None,
    ):
        if patterns and rank_multiple is not None:
            raise ConfigError(
                f"rank_multiple is {rank_multiple}, but patterns keep each layer's own rank: leave one of the two out"
            )
        self.base, self.revision, self.patterns, self.rank_multiple = base, revision, patterns, rank_multiple
        self._skeletons: dict[tuple[BaseModel, int], nn.Module | None] = {}
        self._others: dict[BaseModel, list[nn.Module]] = {}

    def check(self, plain: PlainAdapter) -> list[str] | None:
        """What of an adapter its base model lacks, see `missing_layers`; None where the base model is not here to be asked. No value is read.

        Raises CheckpointError for what no folder can hold, or no reader take.
        """
        if plain.kind in VIRTUAL:
            virtual_tokens(plain)
            return []
        if plain.kind not in ("lora", "ia3"):
            folds = ", or into the model (--to model)" if plain.kind == "bias" else ""
            raise CheckpointError(
                f"PEFT has no {plain.kind} adapters: write it as an adapter of ours (--to mhr){folds}"
            )
        if plain.kind == "lora":
            _check_experts(plain)
            one_size(plain.shapes.values(), self.rank_multiple)
        elif self.rank_multiple is not None:
            raise CheckpointError(f"{plain.name} is an IA3, which has no rank: leave --rank-multiple out")
        return missing_layers(self._classes(plain), plain)

    def write(self, plain: PlainAdapter, folder: str | Path) -> PeftFolder:
        """Write one adapter, layer by layer. Raises what `check` does, before anything is written, and MhrError where the folder cannot be
        written.

        Where the adapter brings heads, the folder HEAD_FOLDER in it holds the base model's configuration with num_labels, id2label and
        label2id, which PEFT has no place for.
        """
        missing = self.check(plain)
        empty = self._skeleton(plain)
        if plain.kind in VIRTUAL:
            return self._write_tokens(plain, empty, folder)
        plain = with_peers(plain, empty)
        sizes = {name: (shape.rank, shape.alpha) for name, shape in plain.shapes.items()}
        if plain.kind == "lora" and not self.patterns:
            sizes = dict.fromkeys(plain.shapes, one_size(plain.shapes.values(), self.rank_multiple))
        differ = plain.kind == "lora" and len(set(sizes.values())) > 1
        name = plain.base.name_or_path if self.base is None else self.base
        config = _config(plain, sizes, name, self.revision)
        if plain.kind == "lora":
            config["target_modules"] = short_names(empty, plain.shapes)
        labelled = None if plain.heads is None else config_of(plain.base, plain.heads)
        folder = make_folder(folder)
        with TensorWriter(folder / PEFT_TENSORS_FILE) as file:
            for layer, found in plain.layers.items():
                fitted = _widened(found, *sizes[layer])
                file.add_all(_layer_tensors(f"{PREFIX}{layer}", fitted))
            for module, state in plain.modules.items():
                file.add_all({f"{PREFIX}{module}.{key}": tensor for key, tensor in state.items()})
        if labelled is not None:
            labelled.save_pretrained(folder / HEAD_FOLDER)
        write_json_atomically(folder / PEFT_CONFIG_FILE, config)
        return PeftFolder(
            path=folder,
            kind=plain.kind,
            base=name,
            revision=self.revision,
            task_type=config["task_type"],
            rank=config.get("r"),
            alpha=config.get("lora_alpha"),
            patterns=differ,
            remarks=remarks(plain, missing, differ, name),
        )

    def _write_tokens(self, plain: PlainAdapter, empty: nn.Module | None, folder: str | Path) -> PeftFolder:
        """`write` of a prompt or prefix."""
        if self.rank_multiple is not None:
            raise CheckpointError(
                f"{plain.name} is {virtual_tokens(plain).title}, which has no rank: leave --rank-multiple out"
            )
        tokens = virtual_tokens(plain)
        name = plain.base.name_or_path if self.base is None else self.base
        config = prompt_config(tokens, empty, name, self.revision, of_base(plain.base, ()))
        folder = make_folder(folder)
        with TensorWriter(folder / PEFT_TENSORS_FILE) as file:
            file.add_all(prompt_tensors(tokens, config))
        write_json_atomically(folder / PEFT_CONFIG_FILE, config)
        told = remarks(plain, [], False, name)
        return PeftFolder(folder, plain.kind, name, self.revision, config["task_type"], None, None, False, told)

    def _classes(self, plain: PlainAdapter) -> Iterator[nn.Module]:
        """The base model as each class that the adapter may have been trained on, the likeliest first."""
        first = self._skeleton(plain)
        if first is not None:
            yield first
        if plain.base not in self._others:
            self._others[plain.base] = list(other_skeletons(plain.base))
        yield from self._others[plain.base]

    def _skeleton(self, plain: PlainAdapter) -> nn.Module | None:
        key = plain.base, outputs_of(plain.heads)
        if key not in self._skeletons:
            self._skeletons[key] = skeleton(plain.base, plain.heads)
        return self._skeletons[key]


def save_peft(
    plain: PlainAdapter, folder: str | Path, *, patterns: bool = False, rank_multiple: int | None = None
) -> Path:
    """Write a plain adapter as a PEFT folder, see `PeftWriter`: with one rank and one alpha, or in patterns where they differ.

    Plain `PeftModel.from_pretrained(base, folder)` computes the same outputs. Raises CheckpointError for a kind of adapter that
    PEFT does not have, for layers that its base model does not have, and for layers and modules that PEFT would not find again,
    MhrError where the folder cannot be written.
    """
    return PeftWriter(patterns=patterns, rank_multiple=rank_multiple).write(plain, folder).path


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


def _config(
    plain: PlainAdapter, sizes: Mapping[str, tuple[int, float]], base: str, revision: str | None
) -> dict[str, Any]:
    """What adapter_config.json says. sizes: layer -> (rank, alpha) as written."""
    modules = list(plain.modules)
    config: dict[str, Any] = {
        "base_model_name_or_path": base,
        "fan_in_fan_out": plain.base.model_type in CONV1D,
        "inference_mode": True,
        "modules_to_save": modules or None,
        "revision": revision,
        "target_modules": list(plain.shapes),
        **of_base(plain.base, modules),
    }
    if plain.kind == "ia3":
        config |= {"peft_type": "IA3", "feedforward_modules": [n for n, s in plain.shapes.items() if s.inputs]}
    else:
        config |= {"peft_type": "LORA", "bias": "none", "lora_dropout": plain.dropout, **_patterns(sizes)}
    return dict(sorted(config.items()))


def _widened(layer: AdapterLayer, rank: int, alpha: float) -> AdapterLayer:
    if not isinstance(layer, LoraFactors) or (layer.rank, layer.alpha) == (rank, alpha):
        return layer
    return layer.widened(rank, alpha)


def _layer_tensors(name: str, layer: AdapterLayer) -> dict[str, Tensor]:
    """The tensors of an adapted layer by the names and in the shapes that PEFT gives them."""
    if isinstance(layer, IA3Vector):
        return {f"{name}.ia3_l": layer.v[None] if layer.inputs else layer.v[:, None]}
    assert isinstance(layer, LoraFactors)
    return {f"{name}.lora_A.weight": layer.a.T, f"{name}.lora_B.weight": layer.b.T}


def _patterns(sizes: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """r and lora_alpha, those of most layers, and patterns for the others."""
    rank = Counter(rank for rank, _ in sizes.values()).most_common(1)[0][0]
    alpha = Counter(alpha for _, alpha in sizes.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": _number(alpha),
        "use_rslora": False,
        "rank_pattern": {name: r for name, (r, _) in sizes.items() if r != rank},
        "alpha_pattern": {name: _number(a) for name, (_, a) in sizes.items() if a != alpha},
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
