"""What attach puts around the calls of a model: forward, `forward` itself, generate and what generate expands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from mhr.errors import TargetError
from mhr.layers.bank import AdapterBank, bank_of
from mhr.layers.rows import check_rows
from mhr.layers.together import compute_together
from mhr.layers.virtual import put_before_encoder, put_in_front, virtual_layer
from mhr.routing import RoutingBatch

TASK_IDS = inspect.Parameter("task_ids", inspect.Parameter.KEYWORD_ONLY, default=None)


def wrap_calls(model: nn.Module, bank: AdapterBank) -> None:
    """Have the calls of `model` take `task_ids`."""
    bank.hooks = [
        model.register_forward_pre_hook(_enter, with_kwargs=True),
        model.register_forward_hook(_leave, always_call=True),
    ]
    if virtual_layer(bank) is not None and model.config.is_encoder_decoder:  # type: ignore[union-attr]
        encoder = model.get_encoder()  # type: ignore[operator]
        bank.hooks.append(encoder.register_forward_pre_hook(partial(put_before_encoder, model), with_kwargs=True))
    wrap_method(model, bank, "generate", _generate)
    wrap_method(model, bank, "_expand_inputs_for_generation", _expand)
    wrap_method(model, bank, "forward", _forward)
    # What trainers read to find the columns of a dataset that the model takes.
    signature = inspect.signature(type(model).forward)
    named = [p for p in list(signature.parameters.values())[1:] if p.name != "task_ids"]
    named.insert(next((i for i, p in enumerate(named) if p.kind is p.VAR_KEYWORD), len(named)), TASK_IDS)
    model.__dict__["forward"].__signature__ = signature.replace(parameters=named)


def wrap_method(model: nn.Module, bank: AdapterBank, name: str, wrapper: Callable[..., Any]) -> bool:
    """Put `wrapper(model, method, ...)` in front of a method of this one model, if it has it."""
    method = getattr(model, name, None)
    if method is None:
        return False
    bank.wrapped[name] = model.__dict__.get(name)
    # A partial, not a closure, so that a deep copy of the model wraps the copy's method.
    model.__dict__[name] = partial(wrapper, model, method)
    return True


def unwrap_calls(model: nn.Module, bank: AdapterBank) -> None:
    """Undo `wrap_calls` and every `wrap_method`."""
    for hook in bank.hooks:
        hook.remove()
    for name, before in bank.wrapped.items():
        del model.__dict__[name]
        if before is not None:
            model.__dict__[name] = before


def _batch(bank: AdapterBank, task_ids: Any) -> RoutingBatch | None:
    """The routing that a call with these task ids works under; None where nothing says it."""
    if task_ids is None and (bank.state.block is not None or bank.ambiguous):
        return bank.state.block
    return task_ids if isinstance(task_ids, RoutingBatch) else bank.for_batch(task_ids)


def _enter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take `task_ids` off the call and route by them until the call ends."""
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    task_ids = kwargs.pop("task_ids", None)
    if bank.state.disabled:
        return args, kwargs
    batch = _batch(bank, task_ids)
    if batch is not None:
        batch = check_rows(model, batch, args, kwargs)
    bank.state.enter(batch)
    # Hooks are compiled apart from the model: there, each layer asks its router within the model's one graph.
    if batch is not None and not torch.compiler.is_compiling():
        compute_together(model, bank, batch)
    layer = virtual_layer(bank)
    if layer is not None:
        args, kwargs = (), _named(model, args, kwargs)
        kwargs = put_in_front(model, layer, bank.state.current(), kwargs)
        asked = kwargs.get("use_cache")
        bank.state.drops_cache = not (model.config.use_cache if asked is None else asked)  # type: ignore[union-attr]
    return args, kwargs


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return dict(zip(list(inspect.signature(type(model).forward).parameters)[1:], args, strict=False)) | kwargs


def _leave(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    state = bank.state
    if state.shared is not None and output is not None:  # None is what an exception leaves
        state.shared.finish()
    if state.drops_cache and getattr(output, "past_key_values", None) is not None:
        output.past_key_values = None
    unread = next(iter(state.prefixes), None) if output is not None else None
    state.leave()
    if unread is not None:
        raise TargetError(
            f"the keys of layer {unread!r} went to no attention that a prefix has a place in: choose another kind of adapter"
        )


def _forward(model: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The model's own forward. Called by itself with `task_ids`, past the hooks, it is routed as a call of the model is."""
    if "task_ids" not in kwargs:
        return forward(*args, **kwargs)
    args, kwargs = _enter(model, args, kwargs)
    output = None
    try:
        output = forward(*args, **kwargs)
        return output
    finally:
        _leave(model, args, output)


def _generate(model: nn.Module, generate: Callable[..., Any], *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
    """The model's own generate, routed by `task_ids`; rows of beams and returned sequences follow their example."""
    bank = bank_of(model)
    if bank.state.disabled:
        return generate(*args, **kwargs)
    batch = _batch(bank, task_ids)
    if batch is None:
        return generate(*args, **kwargs)
    with bank.routing(check_rows(model, batch, args, kwargs)):
        return generate(*args, **kwargs)


def _expand(model: nn.Module, expand: Callable[..., Any], expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
    """Within generate, where its inputs get a row for each beam or returned sequence: declare them."""
    state = bank_of(model).state
    if state.block is not None and expand_size > 1:
        state.batch = state.block = state.block.over(1, expand_size)
    return expand(expand_size, *args, **kwargs)
