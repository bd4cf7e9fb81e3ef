"""The output layer of a model with a sequence-classification head, and what its outputs stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mhr.errors import CheckpointError, ConfigError
from mhr.ops.checks import accumulator
from mhr.task_heads import CLASSIFY, CONFIG_KEY, REGRESS, TaskHeads

PROBLEM_TYPES = {CLASSIFY: "single_label_classification", REGRESS: "regression"}
"""What transformers calls what one head does."""


def heads_in_config(config: PretrainedConfig, where: str) -> TaskHeads | None:
    """What the outputs of a model with this configuration stand for; None where it does not say. Raises CheckpointError."""
    said = getattr(config, CONFIG_KEY, None)
    return None if said is None else TaskHeads.from_json(said, where)


def heads_of(model: nn.Module) -> TaskHeads | None:
    """What the outputs of a model stand for; None for one without heads, whose one output, if any, ranks choices."""
    config = getattr(model, "config", None)
    return None if config is None else heads_in_config(config, "the model's configuration")


def head_modules(auto: Any, config: PretrainedConfig) -> list[str]:
    """What a model that an auto class makes has above its encoder, and its pooler, which a checkpoint may lack: names of modules."""
    with torch.device("meta"):
        model = auto.from_config(config)
    return [name for name, _ in model.named_children() if name != model.base_model_prefix] + ["pooler"]


def output_layer(model: PreTrainedModel) -> str:
    """The name of the Linear that makes the logits: the last one outside the encoder with as many outputs as labels.

    Raises ConfigError for a model without one.
    """
    encoder = f"{model.base_model_prefix}."
    bank = "mhr."
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == model.config.num_labels
        and not name.startswith((encoder, bank))
    ]
    if not found:
        raise ConfigError(
            f"this {type(model).__name__} has no Linear layer with {model.config.num_labels} outputs for its logits, which heads are "
            "put in place of: use --head rank, or another model"
        )
    return found[-1]


def set_heads(model: PreTrainedModel, heads: TaskHeads | None) -> TaskHeads | None:
    """Put a fresh output layer for `heads` in place of the model's, drawn as the architecture draws it from torch's generator; None
    makes it one output that ranks choices. Returns the heads with the name of that layer.

    The layer stays the same module with new parameters, which ask for a gradient as the old ones did; it counts as untrained.
    Raises ConfigError for a model without an output layer.
    """
    name = output_layer(model)
    layer: Any = model.get_submodule(name)
    size = 1 if heads is None else heads.size
    place = {"device": layer.weight.device, "dtype": accumulator(layer.weight.dtype)}
    fresh = nn.Linear(layer.in_features, size, layer.bias is not None, **place)
    with torch.no_grad():
        model._init_weights(fresh)
    fresh.to(layer.weight.dtype)  # drawn in float32, so that a base in 16 bits begins with the same head, rounded
    bank = getattr(model, "mhr", None)
    for key, parameter in fresh.named_parameters():
        setattr(layer, key, nn.Parameter(parameter.detach(), requires_grad=getattr(layer, key).requires_grad))
        if bank is not None and f"{name}.{key}" in bank.originals:
            before = bank.originals[f"{name}.{key}"]
            bank.originals[f"{name}.{key}"] = parameter.detach().to(before.dtype, copy=True)
    layer.out_features = size
    untrained = list(getattr(model, "mhr_untrained", ()))
    if not any(f"{name}.".startswith(f"{other}.") for other in untrained):
        model.__dict__["mhr_untrained"] = sorted([*untrained, name])
    named = None if heads is None else replace(heads, layer=name)
    _say_outputs(model, named)
    return named


def carry_heads(model: PreTrainedModel, heads: TaskHeads) -> TaskHeads:
    """`set_heads`, each head with the values of the one that the model has for its task and classes; others are fresh."""
    before = heads_of(model)
    layer = model.get_submodule(output_layer(model))
    held = {key: parameter.detach().clone() for key, parameter in layer.named_parameters()}
    named = set_heads(model, heads)
    assert named is not None
    if before is not None:
        fill_heads(model, named, before, held)
    return named


@torch.no_grad()
def fill_heads(model: nn.Module, heads: TaskHeads, before: TaskHeads, held: Mapping[str, Tensor]) -> None:
    """Give each head of the model the values that `held`, an output layer's weight and bias for the heads `before`, has for its task
    and its classes, or through a shared head for these; one without stays as it is."""
    layer = model.get_submodule(heads.layer)
    for number, head in enumerate(heads.heads):
        task = next(task for task, own in heads.tasks.items() if own == number)
        source = before.find(task, head.labels)
        if source is None or not before.heads[source].alike(head):
            continue
        rows, labels = before.outputs(source), before.heads[source].labels
        order = [rows[labels.index(label)] for label in head.labels] or list(rows)
        for key, parameter in layer.named_parameters():
            parameter[list(heads.outputs(number))] = held[key][order].to(parameter)


def take_heads(model: PreTrainedModel, heads: TaskHeads | None) -> TaskHeads | None:
    """`set_heads`, but for a model that has no heads and needs none, whose one output stays as it is."""
    if heads is None and heads_of(model) is None and model.config.num_labels == 1:
        return None
    return set_heads(model, heads)


@contextmanager
def wearing_heads(model: Any, heads: TaskHeads | None, modules: Iterable[str]) -> Iterator[None]:
    """The model with an output layer for these heads inside the block, to be filled there by `modules`, and afterwards; where an
    exception ends the block, the model is as it was. A model that has these heads, or whose output layer is none of the modules,
    stays as it is."""
    before = heads_of(model)
    if before == heads:
        yield
        return
    name = output_layer(model)
    if heads is None and not any(f"{name}.".startswith(f"{module}.") for module in modules):
        yield
        return
    layer: Any = model.get_submodule(name)
    held = layer.weight, layer.bias, list(getattr(model, "mhr_untrained", ()))
    with torch.random.fork_rng(devices=[]):  # what is drawn is replaced
        worn = set_heads(model, heads)
    try:
        if worn is not None and heads is not None and worn.layer != heads.layer:
            raise CheckpointError(
                f"the heads are in {heads.layer!r}, but the output layer of this model is {worn.layer!r}: take the base model that they "
                "were trained on"
            )
        yield
    except BaseException:  # Ctrl-C too leaves the model as it was
        layer.weight, layer.bias, model.__dict__["mhr_untrained"] = held
        layer.out_features = layer.weight.shape[0]
        _say_outputs(model, before)
        raise


def _say_outputs(model: Any, heads: TaskHeads | None) -> None:
    name_outputs(model.config, heads)
    if hasattr(model, "num_labels"):
        model.num_labels = model.config.num_labels


def name_outputs(config: PretrainedConfig, heads: TaskHeads | None) -> None:
    """Have a configuration say what the outputs stand for: the heads, and for one head num_labels, id2label, label2id and
    problem_type, by which transformers and its pipelines answer in labels. None: one output that ranks choices."""
    config.num_labels = 1 if heads is None else heads.size
    config.problem_type = None
    if heads is None:
        vars(config).pop(CONFIG_KEY, None)
        return
    setattr(config, CONFIG_KEY, heads.to_json())
    one = len(heads.heads) == 1
    if one:
        config.problem_type = PROBLEM_TYPES.get(heads.heads[0].kind)
    if not one or heads.heads[0].labels:
        labels = output_names(heads)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}


def output_names(heads: TaskHeads) -> list[str]:
    """A name for each output: its label, behind the task where there are several heads."""
    if len(heads.heads) == 1:
        return list(heads.heads[0].labels) or [heads.heads[0].kind]
    names = []
    for number, head in enumerate(heads.heads):
        owners = ", ".join(task for task, own in heads.tasks.items() if own == number)
        names += [f"{owners}: {label}" for label in head.labels or (head.kind,)]
    return names
