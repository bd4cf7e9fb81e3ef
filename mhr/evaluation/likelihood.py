"""How likely a generator finds given answers: log p(y | x) for several answers y to each input x.

Where a model caches keys and values, what the answers to an input share is computed once: the input, and the place where an
answer begins. All answers of a batch are then decoded together on top of the cached keys and values of their inputs, however
many each input has. Every other model (state-space and hybrid decoders, models without a cache, and those whose cache or padding
changes what they say) reads each input with each answer as one row, as in training: padded on its right, which no decoder attends
to; an encoder-decoder reads inputs, and answers, of one length at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.data.collators import IGNORED
from mhr.evaluation.caching import NO_CACHE, keeps_keys_and_values
from mhr.evaluation.loaded import LoadedModel
from mhr.layers import disabled
from mhr.objectives.shifting import shift_right


class NoSharedCache(Exception):
    """A model keeps more than keys and values, or nothing, of what it has read."""


AGREEMENT = 1e-4
"""How far, relative to a log-likelihood, two ways of computing it in float32 may be apart."""


def log_likelihoods(
    loaded: LoadedModel,
    inputs: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    tasks: Sequence[str],
    unseen: str = "uniform",
) -> list[list[float]]:
    """`sum_t log p(y_t | x, y_<t)` for each answer y (at least one token) to each input x, computed in float32.

    One batch: B inputs with a task name each, and P answers in all. Whether the model can decode on a cache that answers share
    is found out with the first batch and kept in `loaded.shares_cache`.
    """
    compute = with_cache if shares_cache(loaded, inputs[0], answers[0][0], tasks[0], unseen) else without_cache
    each = iter(compute(loaded, inputs, answers, tasks, unseen))
    return [[next(each) for _ in own] for own in answers]


def shares_cache(loaded: LoadedModel, prompt: list[int], answer: list[int], task: str, unseen: str = "uniform") -> bool:
    """Whether what the model says on the shared keys and values of padded inputs is what it says without, found out with a few
    tokens of a prompt and an answer where it is not known.

    Otherwise a state runs through the padding, or positions are counted from it (the decoders of BART and its like), or
    are not those that the model is told (RoBERTa), or an encoder does not keep padding out.
    """
    if loaded.shares_cache is None:
        loaded.shares_cache = not getattr(loaded.model, "_is_stateful", False) and _agree(
            loaded, prompt, answer, task, unseen
        )
    return loaded.shares_cache


def _agree(loaded: LoadedModel, prompt: list[int], answer: list[int], task: str, unseen: str) -> bool:
    """Whether two inputs with two answers each, all of different lengths, are as likely on a shared cache as one by one."""
    tokens = (prompt * 6)[:6]
    inputs = [tokens, tokens[3:]]
    answers = [[[*tokens[:2], answer[-1]], [tokens[1], answer[-1]]]] * 2
    bank = loaded.bank
    with disabled(loaded.model) if bank else nullcontext(), bank.uncounted_draws() if bank else nullcontext():
        try:
            together = with_cache(loaded, inputs, answers, [task] * 2, unseen)
        except torch.OutOfMemoryError:
            raise
        except (NoSharedCache, *NO_CACHE):
            return False
        pairs = [(row, one) for row, own in zip(inputs, answers, strict=True) for one in own]
        alone = [without_cache(loaded, [row], [[one]], [task], unseen)[0] for row, one in pairs]
    kind = loaded.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else loaded.model.dtype
    limit = max(AGREEMENT, 8 * torch.finfo(dtype).eps)
    return all(abs(a - b) <= limit * (1 + abs(b)) for a, b in zip(together, alone, strict=True))


def with_cache(
    loaded: LoadedModel,
    inputs: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    tasks: Sequence[str],
    unseen: str = "uniform",
) -> list[float]:
    """The log-likelihood of each answer, decoded on the cached keys and values of its input.

    Raises NoSharedCache for a model that keeps anything else of an input, such as the state of a recurrence.
    """
    device = loaded.device
    tokens, mask, index = _laid_out(loaded, answers)
    read = _read_prompt if loaded.objective.shares_row else _read_input
    with loaded.routing(tasks, unseen) as routed:
        begun = read(loaded, inputs, tokens, mask, index)
    if not keeps_keys_and_values(begun.cache):
        raise NoSharedCache
    losses = torch.zeros(tokens.shape, device=device)
    losses[:, 0] = F.cross_entropy(begun.logits[index].float(), tokens[:, 0], reduction="none")
    if tokens.shape[1] > 1:
        begun.cache.batch_select_indices(index)
        with loaded.routing(tasks if routed is None else routed.take(index)):
            logits = loaded.model(**begun.going_on, past_key_values=begun.cache, use_cache=True).logits
        losses[:, 1:] = F.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
    return (-losses * mask).sum(1).tolist()


def without_cache(
    loaded: LoadedModel,
    inputs: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    tasks: Sequence[str],
    unseen: str = "uniform",
) -> list[float]:
    """The log-likelihood of each answer, read behind its input in one row, or decoded whole by an encoder-decoder."""
    if loaded.objective.shares_row:
        return _read_whole(loaded, inputs, answers, tasks, unseen)
    # Not every encoder or decoder keeps padding out of its tokens (ProphetNet's do not).
    every = [(i, answer) for i, own in enumerate(answers) for answer in own]
    found = [0.0] * len(every)
    lengths = [(len(inputs[i]), len(answer)) for i, answer in every]
    for length in dict.fromkeys(lengths):
        places = [place for place, other in enumerate(lengths) if other == length]
        rows = [every[place][0] for place in places]
        one_each = [[every[place][1]] for place in places]
        totals = _decode_whole(loaded, [inputs[i] for i in rows], one_each, [tasks[i] for i in rows], unseen)
        for place, total in zip(places, totals, strict=True):
            found[place] = total
    return found


def _decode_whole(
    loaded: LoadedModel,
    inputs: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    tasks: Sequence[str],
    unseen: str,
) -> list[float]:
    """Encoder-decoder: inputs and answers of one length, each input as often as it has answers."""
    tokens, mask, index = _laid_out(loaded, answers)
    owners = index.tolist()
    ids, seen = loaded.pad([inputs[i] for i in owners])
    decoded = shift_right(loaded.model, tokens.masked_fill(mask == 0, IGNORED))
    with loaded.routing([tasks[i] for i in owners], unseen):
        out = loaded.model(input_ids=ids, attention_mask=seen, decoder_input_ids=decoded, use_cache=False)
    return _sums(out.logits, [0] * len(owners), tokens, mask)


def _read_whole(
    loaded: LoadedModel,
    inputs: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    tasks: Sequence[str],
    unseen: str,
) -> list[float]:
    """Decoder: each input with one of its answers behind it."""
    tokens, mask, index = _laid_out(loaded, answers)
    owners = index.tolist()
    flat = [answer for own in answers for answer in own]
    ids, seen = loaded.pad([inputs[i] + answer for i, answer in zip(owners, flat, strict=True)])
    with loaded.routing([tasks[i] for i in owners], unseen):
        logits = loaded.model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    return _sums(logits, [len(inputs[i]) - 1 for i in owners], tokens, mask)


def _sums(logits: Tensor, begins: Sequence[int], tokens: Tensor, mask: Tensor) -> list[float]:
    """The log-likelihood of each row of `tokens` [P, T], whose first token is foretold at its place of `begins`."""
    row, step = mask.nonzero(as_tuple=True)
    place = torch.tensor(begins, device=row.device)[row] + step
    # In float32 the logits of answer tokens alone, [N, V].
    losses = F.cross_entropy(logits[row, place].float(), tokens[row, step], reduction="none")
    return torch.zeros(len(tokens), device=row.device).index_add(0, row, -losses).tolist()


def _laid_out(loaded: LoadedModel, answers: Sequence[Sequence[list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """The answers' tokens and mask [P, T], and the input of each [P]."""
    tokens, mask = loaded.pad([answer for own in answers for answer in own])
    owner = [i for i, own in enumerate(answers) for _ in own]
    return tokens, mask, torch.tensor(owner, device=loaded.device)


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
    decoded = shift_right(loaded.model, tokens.masked_fill(mask == 0, IGNORED))
    first = torch.searchsorted(index, torch.arange(len(inputs), device=index.device))
    out = loaded.model(input_ids=ids, attention_mask=seen, decoder_input_ids=decoded[first, :1], use_cache=True)
    going_on = {
        "encoder_outputs": (out.encoder_last_hidden_state[index],),
        "attention_mask": seen[index],
        "decoder_input_ids": decoded[:, 1:],
    }
    return _Begun(out.logits[:, -1], getattr(out, "past_key_values", None), going_on)


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
    return _Begun(out.logits[:, -1], getattr(out, "past_key_values", None), going_on)
