"""How likely a generator finds given answers: log p(y | x) for several answers y to each input x.

What the answers to an input share is computed once: the input, and the place where an answer begins. All answers of a batch
are then decoded together on top of the cached keys and values of their inputs, however many each input has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.errors import ConfigError
from mhr.evaluation.loaded import LoadedModel


def log_likelihoods(
    loaded: LoadedModel,
    inputs: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    tasks: Sequence[str],
    unseen: str = "uniform",
) -> list[list[float]]:
    """`sum_t log p(y_t | x, y_<t)` for each answer y (at least one token) to each input x, computed in float32.

    One batch: B inputs with a task name each, and P answers in all. Raises ConfigError for a model whose cache of keys and
    values cannot be shared by several answers.
    """
    device = loaded.device
    owner = [i for i, own in enumerate(answers) for _ in own]
    tokens, mask = loaded.pad([answer for own in answers for answer in own])
    index = torch.tensor(owner, device=device)
    read = _read_input if loaded.kind == "seq2seq" else _read_prompt
    with loaded.routing(tasks, unseen) as routed:
        begun = read(loaded, inputs, tokens, mask, index)
    losses = torch.zeros(tokens.shape, device=device)
    losses[:, 0] = F.cross_entropy(begun.logits[index].float(), tokens[:, 0], reduction="none")
    if tokens.shape[1] > 1:
        if not hasattr(begun.cache, "batch_select_indices"):
            raise ConfigError(
                f"{loaded.description} keeps no keys and values that choices could share: it cannot rank them"
            )
        begun.cache.batch_select_indices(index)
        with loaded.routing(tasks if routed is None else routed.take(index)):
            logits = loaded.model(**begun.going_on, past_key_values=begun.cache, use_cache=True).logits
        losses[:, 1:] = F.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
    totals = iter((-losses * mask).sum(1).tolist())
    return [[next(totals) for _ in own] for own in answers]


@dataclass(frozen=True, slots=True)
class _Begun:
    """Inputs that were read: logits [B, V] of the first token, the cache, and the model's arguments for the other tokens."""

    logits: Tensor
    cache: Any
    going_on: dict[str, Any]


def _read_input(
    loaded: LoadedModel, inputs: Sequence[list[int]], tokens: Tensor, mask: Tensor, index: Tensor
) -> _Begun:
    """An encoder-decoder reads the input and decodes the start token. index [P]: the input of each answer."""
    ids, seen = loaded.pad(inputs)
    decoded = loaded.model.prepare_decoder_input_ids_from_labels(tokens.masked_fill(mask == 0, -100))
    first = torch.searchsorted(index, torch.arange(len(inputs), device=index.device))
    out = loaded.model(input_ids=ids, attention_mask=seen, decoder_input_ids=decoded[first, :1], use_cache=True)
    going_on = {
        "encoder_outputs": (out.encoder_last_hidden_state[index],),
        "attention_mask": seen[index],
        "decoder_input_ids": decoded[:, 1:],
    }
    return _Begun(out.logits[:, -1], out.past_key_values, going_on)


def _read_prompt(
    loaded: LoadedModel, inputs: Sequence[list[int]], tokens: Tensor, mask: Tensor, index: Tensor
) -> _Begun:
    """A decoder reads the prompt, padded on its left so that every answer begins in the same column."""
    ids, seen = loaded.pad(inputs, left=True)
    extra: dict[str, Any] = {"logits_to_keep": 1} if loaded.takes("logits_to_keep") else {}
    rest = tokens[:, :-1]
    going_on = {"input_ids": rest, "attention_mask": torch.cat([seen[index], mask[:, :-1]], 1)}
    if loaded.takes("position_ids"):
        extra["position_ids"] = (seen.cumsum(1) - 1).clamp(min=0)
        steps = torch.arange(rest.shape[1], device=rest.device)
        going_on["position_ids"] = seen.sum(1)[index, None] + steps
    out = loaded.model(input_ids=ids, attention_mask=seen, use_cache=True, **extra)
    return _Begun(out.logits[:, -1], out.past_key_values, going_on)
