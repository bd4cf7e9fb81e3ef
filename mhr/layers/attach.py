"""Put a bank of routed adapters on a transformers model, and take it off again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from mhr.config import AdapterConfig
from mhr.errors import ConfigError, TargetError, nearest
from mhr.layers.bank import AdapterBank, bank_of
from mhr.layers.memory import check_size
from mhr.layers.recompute import keep_routing, set_gradient_checkpointing, undo_keep_routing
from mhr.layers.routed import RoutedLayer, place
from mhr.layers.routed_bottleneck import RoutedBottleneck
from mhr.layers.routed_ia3 import RoutedIA3
from mhr.layers.routed_linear import RoutedLinear
from mhr.layers.targets import find_targets, routing_group
from mhr.routing import RoutingBatch, RoutingState, routers

LAYERS: dict[str, type[RoutedLayer]] = {"lora": RoutedLinear, "ia3": RoutedIA3, "bottleneck": RoutedBottleneck}

# Heads of AutoModelForSequenceClassification, which come untrained.
CLASSIFICATION_HEADS = ("classifier", "score", "classification_head")


def attach(model: nn.Module, config: AdapterConfig, tasks: Sequence[str]) -> AdapterBank:
    """Adapt `model` in place: wrap the target layers, freeze everything else, and return the bank, also `model.mhr`.

    Afterwards the model and its `generate` take `task_ids=[...]`, one name per example (or `model.mhr.for_batch(...)`,
    which keeps the host's work out of a compiled region), and everything else as before. Rows may be a multiple of
    the examples: beams, returned sequences, choices. The model keeps its class, and the names that its own tensors have
    in `state_dict` and `save_pretrained`; the bank's come in addition.

    Raises ConfigError if a bank is attached already, TargetError where targets or sizes do not fit, TaskError for
    task names that are missing or repeated; the model is then as it was.
    """
    if isinstance(getattr(model, "mhr", None), AdapterBank):
        raise ConfigError("the model has a bank already: call mhr.detach(model) first")
    saved = {name: model.get_submodule(name) for name in _modules_to_save(model, config)}
    names = find_targets(model, config.targets, outside=list(saved), adapter=config.adapter)
    check_size(model, names, config, len(tasks))
    state = RoutingState()
    bank = AdapterBank(config, tasks, state, saved)
    # Built before the model is touched, so that a layer that does not fit leaves it as it was.
    for name in names:
        group = routing_group(model, name, config.granularity)
        base = model.get_submodule(name)
        if group not in bank.groups:
            router = routers[config.method](config, bank.tasks, index=len(bank.groups))
            bank.add_router(group, router.to(**place(base)))
        bank.layers[name] = LAYERS[config.adapter](name, base, config, bank.groups[group], state)
    bank.frozen = [p for p in model.parameters() if p.requires_grad]
    for p in model.parameters():
        p.requires_grad_(False)
    for p in bank.saved_parameters():
        p.requires_grad_(True)
    for name, layer in bank.layers.items():
        layer.train(layer.base.training)
        _replace(model, name, layer)
    model.add_module("mhr", bank.train(model.training))
    bank.hooks = [
        model.register_forward_pre_hook(_enter, with_kwargs=True),
        model.register_forward_hook(_leave, always_call=True),
    ]
    _wrap_method(model, bank, "generate", _generate)
    if _wrap_method(model, bank, "_set_gradient_checkpointing", set_gradient_checkpointing):
        keep_routing(model, state)
    return bank


def detach(model: nn.Module) -> None:
    """Take the bank off: the base layers return to their places, with the gradients they asked for before.

    Modules that were trained whole (`modules_to_save`) keep their trained values. Raises ConfigError without a bank.
    """
    bank = bank_of(model)
    for hook in bank.hooks:
        hook.remove()
    for name, layer in bank.layers.items():
        _replace(model, name, layer.base)
    undo_keep_routing(model)
    for name, before in bank.wrapped.items():
        del model.__dict__[name]
        if before is not None:
            model.__dict__[name] = before
    del model.mhr
    for p in model.parameters():
        p.requires_grad_(False)
    for p in bank.frozen:
        p.requires_grad_(True)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _wrap_method(model: nn.Module, bank: AdapterBank, name: str, wrapper: Callable[..., Any]) -> bool:
    """Put `wrapper(model, method, ...)` in front of a method of this one model, if it has it."""
    method = getattr(model, name, None)
    if method is None:
        return False
    bank.wrapped[name] = model.__dict__.get(name)
    # A partial, not a closure, so that a deep copy of the model wraps the copy's method.
    model.__dict__[name] = partial(wrapper, model, method)
    return True


def _modules_to_save(model: nn.Module, config: AdapterConfig) -> list[str]:
    if config.modules_to_save is None:
        classifier = "ForSequenceClassification" in type(model).__name__
        heads = [n for n in CLASSIFICATION_HEADS if classifier and isinstance(getattr(model, n, None), nn.Module)]
        inside = tuple(f"{head}." for head in heads)
        return heads + [n for n in getattr(model, "mhr_untrained", ()) if not f"{n}.".startswith(inside)]
    known = [name for name, _ in model.named_modules()]
    for name in config.modules_to_save:
        if name not in known:
            raise TargetError(f"modules_to_save names {name!r}, which the model does not have: {nearest(name, known)}")
    return list(config.modules_to_save)


def _enter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take `task_ids` off the call and route by them until the call ends."""
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    task_ids = kwargs.pop("task_ids", None)
    if task_ids is None and (bank.state.block is not None or bank.ambiguous):
        bank.state.enter(None)
    else:
        bank.state.enter(task_ids if isinstance(task_ids, RoutingBatch) else bank.for_batch(task_ids))
    # Hooks are compiled apart from the model: there, each layer asks its router within the model's one graph.
    batch = bank.state.batch
    if batch is not None and not batch.drawn and not torch.compiler.is_compiling():
        bank.state.weights = bank.weigh(batch)
    return args, kwargs


def _leave(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    bank.state.leave()


def _generate(model: nn.Module, generate: Callable[..., Any], *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
    """The model's own generate, routed by `task_ids`; rows of beams and returned sequences follow their example."""
    bank = bank_of(model)
    if task_ids is None and (bank.state.block is not None or bank.ambiguous):
        return generate(*args, **kwargs)
    with bank.routing(task_ids):
        return generate(*args, **kwargs)
