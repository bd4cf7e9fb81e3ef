"""The states that a generator's head reads, so that logits are made where a label is and nowhere else.

A model is called as ever, but its head (`get_output_embeddings`) gets one position; the states of all others are kept, and
the head is applied to those with a label, run by run (`mhr.objectives.chunks`). What the model does with its head's output
(Gemma-2 caps it, Cohere and Granite scale it, BART adds a bias) is done here too. That this is the same is found out at a
model's first call, by a tiny one whose head is made to answer known numbers. Where it is not (a head that is adapted,
compiled, called more than once or not as a module; an output that is changed in a way unknown here), the model computes all
its logits, and those with a label are taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from mhr.layers.routed import RoutedLayer
from mhr.objectives.wrapping import bare

PROBE_ROWS, PROBE_LENGTH = 2, 3  # differ, so that a model with the sequence first is told from others
PROBE_LOGITS = 100.0  # large enough for a cap on logits to show

Finish = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Head:
    """How a model turns states [..., D] into logits [..., V]: its own `module`, and what it does with the output."""

    module: nn.Module
    finish: Finish
    width: int

    def __call__(self, states: Tensor) -> Tensor:
        return self.finish(self.module(states))


@dataclass(frozen=True, slots=True)
class States:
    """What logits are made of at N positions: states [N, D] of a head, or, without one, the logits [N, V] themselves."""

    values: Tensor
    head: Head | None = None

    @property
    def width(self) -> int:
        """V, the logits of a position."""
        return self.values.shape[-1] if self.head is None else self.head.width

    def logits(self, values: Tensor) -> Tensor:
        """The logits [n, V] of some of `values` [n, ...]."""
        return values if self.head is None else self.head(values)

    def take(self, index: Tensor) -> States:
        """The positions `index` of them."""
        return States(self.values[index], self.head)


def states_at(model: nn.Module, inputs: dict[str, Any], valid: Tensor) -> States:
    """Call `model` with `inputs` for the states of the N positions of `valid`, bool [B, L], row after row."""
    head = head_of(model)
    if head is None:
        return States(model(**inputs).logits[valid])
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(args[0])
        return (args[0][:1, :1], *args[1:])

    hook = head.module.register_forward_pre_hook(keep)
    try:
        model(**inputs)
    finally:
        hook.remove()
    (states,) = kept
    return States(states[valid], head)


_heads: WeakKeyDictionary[nn.Module, tuple[nn.Module, Head | None]] = WeakKeyDictionary()


def head_of(model: nn.Module) -> Head | None:
    """How the states of `model` become logits; None where only the model itself can do it."""
    inner = bare(model)
    module = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(module, nn.Module) or isinstance(module, RoutedLayer):
        return None
    # A compiled graph neither sees hooks that come later nor forgets those that it was made with.
    if any(_compiled(part) for part in (model, inner, module)):
        return None
    known = _heads.get(inner)
    if known is None or known[0] is not module:
        known = _heads[inner] = module, _probe(inner, module)
    return known[1]


def _compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _probe(model: Any, module: nn.Module) -> Head | None:
    """Call the model with a few tokens, for the head's output to be replaced by known numbers."""
    seen: list[Tensor] = []
    made: list[Tensor] = []
    trims = False  # the second call, of one position and in float32 at least, which shows what 16 bits round away

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (args[0][:1, :1], *args[1:]) if trims else args

    def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        dtype = torch.promote_types(output.dtype, torch.float32) if trims else output.dtype
        ramp = torch.linspace(-PROBE_LOGITS, PROBE_LOGITS, output.shape[-1], dtype=dtype, device=output.device)
        places = torch.arange(output[..., 0].numel(), device=output.device).view(*output.shape[:-1], 1)
        made.append(ramp + places.to(ramp))
        return made[-1]

    ids = torch.ones(PROBE_ROWS, PROBE_LENGTH, dtype=torch.long, device=next(model.parameters()).device)
    inputs = {"input_ids": ids, "attention_mask": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    hooks = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.no_grad(), torch.random.fork_rng(), _without_bank(model):
            found = [model(**inputs).logits]
            trims = True
            found.append(model(**inputs).logits)
    except Exception:  # noqa: BLE001  (whatever a model raises at this, it is then called as it was made to be)
        return None
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) != 2 or any(states.shape[:2] != ids.shape for states in seen):
        return None
    for finish in _finishes(model):
        if all(_same(finish(z), logits) for z, logits in zip(made, found, strict=True)):
            return Head(module, finish, found[0].shape[-1])
    return None


def _same(ours: Tensor, logits: Tensor) -> bool:
    """Whether they are the same bit by bit: the same operations are, and a tolerance in 16 bits would let a bias of 3 pass for none."""
    return ours.dtype == logits.dtype and torch.equal(ours, logits)


def _without_bank(model: Any) -> Any:
    bank = getattr(model, "mhr", None)
    return torch.no_grad() if bank is None else bank.state.use(None, disabled=True)


def _finishes(model: Any) -> list[Finish]:
    """What models are known to do with the output of their head, and the same in float32 at last. What a model's settings speak of comes
    first, as it may do nothing now and something later: a bias may be zero until it is loaded."""
    config = model.config.get_text_config(decoder=True)
    found: list[Finish] = []
    if getattr(model, "final_logits_bias", None) is not None:  # BART and its relatives
        found.append(partial(_biased, model=ref(model)))
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        if getattr(config, name, None) is not None:
            found.append(partial(torch.mul, other=getattr(config, name)))
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        found.append(partial(torch.div, other=config.logits_scaling))
    for name in ("final_logit_softcapping", "logits_soft_cap"):  # Gemma-2 and its relatives, RecurrentGemma
        cap = getattr(config, name, None)
        if cap is not None:
            found.append(partial(_capped, cap=cap))
    found.append(_unchanged)
    return [*found, *(partial(_in_float32, finish=finish) for finish in found)]


def _unchanged(logits: Tensor) -> Tensor:
    return logits


def _in_float32(logits: Tensor, finish: Finish) -> Tensor:
    return finish(logits).float()


def _biased(logits: Tensor, model: ref[Any]) -> Tensor:
    """With the bias that the model has now, since resizing replaces it; `_heads`, which holds this, must not keep the model."""
    held = model()
    assert held is not None
    return logits + held.final_logits_bias


def _capped(logits: Tensor, cap: float) -> Tensor:
    return torch.tanh(logits / cap) * cap
