"""Put a bank of routed adapters on a transformers model, and take it off again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import nn

from mhr.config import AdapterConfig
from mhr.errors import ConfigError, TargetError
from mhr.layers.bank import AdapterBank
from mhr.layers.recompute import unwrap_checkpointing, wrap_checkpointing
from mhr.layers.routed import RoutedLayer
from mhr.layers.routed_ia3 import RoutedIA3
from mhr.layers.routed_linear import RoutedLinear
from mhr.layers.targets import find_targets, routing_group
from mhr.routing import RoutingBatch, RoutingState, routers

LAYERS: dict[str, type[RoutedLayer]] = {"lora": RoutedLinear, "ia3": RoutedIA3}

# Heads of AutoModelForSequenceClassification, which come untrained.
CLASSIFICATION_HEADS = ("classifier", "score", "classification_head")


def attach(model: nn.Module, config: AdapterConfig, tasks: Sequence[str]) -> AdapterBank:
    """Adapt `model` in place: wrap the target layers, freeze everything else, and return the bank, also `model.mhr`.

    Afterwards the model and its `generate` take `task_ids=[...]`, one name per example (or `model.mhr.for_batch(...)`,
    which keeps the host's work out of a compiled region), and everything else as before. Rows may be a multiple of
    the examples: beams, returned sequences, choices.

    Raises ConfigError if a bank is attached already, TargetError where targets or sizes do not fit, TaskError for
    task names that are missing or repeated.
    """
    if isinstance(getattr(model, "mhr", None), AdapterBank):
        raise ConfigError("the model has a bank already: call mhr.detach(model) first")
    names = find_targets(model, config.targets)
    saved = {name: model.get_submodule(name) for name in _modules_to_save(model, config)}
    state = RoutingState()
    bank = AdapterBank(config, tasks, state, saved)
    # Built before the model is touched, so that a layer that does not fit leaves it as it was.
    for name in names:
        group = routing_group(model, name, config.granularity)
        known = bank.groups
        base = model.get_submodule(name)
        router = known.get(group) or bank.add_router(group, _router(config, bank, base))
        bank.layers[name] = LAYERS[config.adapter](name, base, config, router, state)
    bank.frozen = [p for p in model.parameters() if p.requires_grad]
    for p in model.parameters():
        p.requires_grad_(False)
    for p in bank.saved_parameters():
        p.requires_grad_(True)
    for name, layer in bank.layers.items():
        _replace(model, name, layer)
    bank.train(model.training)
    model.mhr = bank
    bank.hooks = [
        model.register_forward_pre_hook(_enter, with_kwargs=True),
        model.register_forward_hook(_leave, always_call=True),
    ]
    if hasattr(model, "generate"):
        model.generate = functools.partial(_generate, model)
    if hasattr(model, "_set_gradient_checkpointing"):
        model._set_gradient_checkpointing = functools.partial(_set_gradient_checkpointing, model)
        wrap_checkpointing(model, state)
    return bank


def detach(model: nn.Module) -> None:
    """Take the bank off: the base layers return to their places, with the gradients they asked for before.

    Modules that were trained whole (`modules_to_save`) keep their trained values. Raises ConfigError without a bank.
    """
    bank = getattr(model, "mhr", None)
    if not isinstance(bank, AdapterBank):
        raise ConfigError("the model has no bank: mhr.attach(model, config, tasks) adds one")
    for hook in bank.hooks:
        hook.remove()
    for name, layer in bank.layers.items():
        _replace(model, name, layer.base)
    for name in ("generate", "_set_gradient_checkpointing"):
        model.__dict__.pop(name, None)
    unwrap_checkpointing(model)
    del model.mhr
    for p in model.parameters():
        p.requires_grad_(False)
    for p in bank.frozen:
        p.requires_grad_(True)


def _router(config: AdapterConfig, bank: AdapterBank, base: nn.Module):
    router = routers[config.method](config, bank.tasks, index=len(bank.routers))
    return router.to(next(iter(base.parameters())).device)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _modules_to_save(model: nn.Module, config: AdapterConfig) -> list[str]:
    if config.modules_to_save is None:
        if "ForSequenceClassification" not in type(model).__name__:
            return []
        return [name for name in CLASSIFICATION_HEADS if isinstance(getattr(model, name, None), nn.Module)]
    known = dict(model.named_modules())
    for name in config.modules_to_save:
        if name not in known:
            raise TargetError(f"modules_to_save names {name!r}, which the model does not have: it has {', '.join(n for n, _ in model.named_children())}")
    return list(config.modules_to_save)


def _enter(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Take `task_ids` off the call and route by them until the call ends."""
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    task_ids = kwargs.pop("task_ids", None)
    bank.outer.append(bank.state.batch)
    if task_ids is not None or (bank.state.batch is None and not bank.ambiguous):
        bank.state.batch = task_ids if isinstance(task_ids, RoutingBatch) else bank.for_batch(task_ids)
    return args, kwargs


def _leave(model: nn.Module, args: tuple, output: Any) -> None:
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    bank.state.batch = bank.outer.pop()


def _generate(model: nn.Module, *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
    """The model's own generate, routed by `task_ids`; rows of beams and returned sequences follow their example."""
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    generate = type(model).generate
    if task_ids is None:
        return generate(model, *args, **kwargs)
    with bank.routing(task_ids):
        return generate(model, *args, **kwargs)


def _set_gradient_checkpointing(model: nn.Module, enable: bool = True, **kwargs: Any) -> None:
    """The model's own switch; blocks then keep the routing of their batch, and the frozen embeddings pass gradients on."""
    type(model)._set_gradient_checkpointing(model, enable=enable, **kwargs)
    if enable:
        wrap_checkpointing(model, model.mhr.state)
        # Re-entrant checkpointing yields no gradient where no input asks for one, and everything below is frozen.
        model.enable_input_require_grads()
    else:
        model.disable_input_require_grads()
