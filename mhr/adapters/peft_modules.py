"""Modules that are stored whole, as PEFT will take them from a folder: by endings of names, and each as a copy of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from mhr.adapters.base import BaseModel
from mhr.adapters.plain import PlainAdapter
from mhr.adapters.sharing import check_copies, is_inside, sharing
from mhr.backbones import is_builtin, is_gguf, name_outputs, source_of
from mhr.errors import CheckpointError, MhrError
from mhr.task_heads import TaskHeads

CLASSES: dict[str, Any] = {
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal": AutoModelForCausalLM,
    "encoder": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
}

LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""No merge asks the network, or runs code of a folder."""

HEADS = ("classifier", "score")
"""What PEFT adds to modules_to_save of every SEQ_CLS adapter."""

ALONE = (*HEADS, "classification_head", "pre_classifier", "pooler")
"""Last part of the names of modules that share no parameters with others, so that they can be written without their base."""


def with_peers(plain: PlainAdapter, empty: nn.Module | None) -> PlainAdapter:
    """The adapter with every module that PEFT will look for in its folder: see `peers`. empty: `skeleton` of its base and heads.

    Modules that share parameters with the adapter's get the trained values; others those of the base model, which is loaded for
    it. An adapter that PEFT wrote stays as it is: it holds all that PEFT looks for, and one half of what a model shares is a copy
    there, which the other half does not follow. Raises CheckpointError where the adapter brings embeddings and the base model is
    not there to be asked.
    """
    if not plain.modules or plain.base.foreign:
        return plain
    if empty is None:
        unsure = [name for name in plain.modules if name.rpartition(".")[2] not in ALONE]
        if unsure:
            raise CheckpointError(
                f"{plain.name} brings module {unsure[0]!r}, which its base model may share with another (tied weights), and base model "
                f"{plain.base.name_or_path!r} cannot be read to see: name it with --model, or write an adapter of ours (--to mhr)"
            )
        return plain
    missing = [name for name in plain.modules if name not in dict(empty.named_modules(remove_duplicate=False))]
    more = [] if missing else peers(empty, plain.modules, plain.base.kind == "encoder")
    if not more:
        return plain
    states = {name: dict(state) for name, state in plain.modules.items()}
    labels = {"num_labels": outputs_of(plain.heads)} if plain.base.kind == "encoder" else {}
    model = CLASSES[plain.base.kind].from_pretrained(**_read(plain.base), dtype=torch.float32, **labels)
    for name, state in states.items():
        model.get_submodule(name).load_state_dict(state)
    dtype = next((t.dtype for state in states.values() for t in state.values() if t.is_floating_point()), torch.float32)
    states |= {name: _cast(model.get_submodule(name), dtype) for name in more}
    return dataclasses.replace(plain, modules=states, states={})


def check_opens(plain: PlainAdapter, base: BaseModel) -> None:
    """Raise CheckpointError where an adapter that PEFT wrote brings one half of what the base model shares, so that no adapter of
    ours can hold it: before anything is written. A base model whose configuration is not here is not asked."""
    empty = skeleton(base) if plain.base.foreign and plain.modules else None
    if empty is not None and plain.modules.keys() <= dict(empty.named_modules(remove_duplicate=False)).keys():
        check_copies(empty, plain.modules, plain.name)


def peers(model: nn.Module, modules: Iterable[str], classifies: bool = False) -> list[str]:
    """Modules that PEFT takes beside `modules`: those whose names end as one of theirs does, and as a head's where the model
    classifies; and those that share parameters with one, of which PEFT makes copies."""
    modules = list(modules)
    endings = [*modules, *(HEADS if classifies and any(name in HEADS for name in modules) else ())]
    found = [
        name
        for name, _ in model.named_modules(remove_duplicate=False)
        if any(name.endswith(ending) for ending in endings) and not is_inside(name, modules)
    ]
    return list(dict.fromkeys([*found, *sharing(model, [*modules, *found])]))


def outputs_of(heads: TaskHeads | None) -> int:
    """Outputs of an encoder with these heads; without any it has one, which ranks."""
    return 1 if heads is None else heads.size


def skeleton(base: BaseModel, heads: TaskHeads | None = None) -> nn.Module | None:
    """The base model, with an output layer for heads, without its weights, on the meta device; None where its configuration cannot be read or names no kind."""
    if not base.name_or_path or base.kind not in CLASSES:
        return None
    try:
        config = AutoConfig.from_pretrained(**_read(base))
        if base.kind == "encoder":
            config.num_labels = outputs_of(heads)
        with torch.device("meta"):
            model = CLASSES[base.kind].from_config(config, trust_remote_code=False)
    except (MhrError, OSError, ValueError, KeyError, RuntimeError, ImportError):
        return None
    model.tie_weights()
    return model


def other_skeletons(base: BaseModel) -> Iterator[nn.Module]:
    """`skeleton`s of the other classes that an adapter may have been trained on: that of the checkpoint, and the model without a
    head. None where its configuration cannot be read."""
    try:
        config = AutoConfig.from_pretrained(**_read(base)) if base.name_or_path else None
    except (MhrError, OSError, ValueError, KeyError):
        return
    names = [*(getattr(config, "architectures", None) or []), "AutoModel"] if config is not None else []
    for found in (getattr(transformers, name, None) for name in names):
        make = getattr(found, "from_config", None) or getattr(found, "_from_config", None)
        if make is None:
            continue
        try:
            with torch.device("meta"):
                yield make(config)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError):
            continue


def config_of(base: BaseModel, heads: TaskHeads) -> PretrainedConfig:
    """The configuration of the base model with an output layer for heads. Raises CheckpointError where it cannot be read."""
    try:
        config = AutoConfig.from_pretrained(**_read(base))
    except (MhrError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the configuration of base model {base.name_or_path!r} cannot be read, which the labels of its head go into: name the model "
            "with --model, or write an adapter of ours (--to mhr)"
        ) from error
    name_outputs(config, heads)
    return config


def _read(base: BaseModel) -> dict[str, Any]:
    """What transformers reads a base model by."""
    name = base.name_or_path
    place = source_of(name) if is_builtin(name) or is_gguf(name) else name
    return {"pretrained_model_name_or_path": place, "revision": base.revision or "main", **LOCAL}


def _cast(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        key: (t.to(dtype) if t.is_floating_point() else t).clone().contiguous()
        for key, t in module.state_dict().items()
    }
