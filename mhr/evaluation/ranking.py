"""Answer by ranking: every choice of an example is scored and the best one is the answer.

generators   score = sum_t log p(y_t | x, y_<t) / len(y) ** length_norm      (T-Few, arXiv 2205.05638)
encoders     score = the one logit of the pair (x, y)
heads        score = the logit of the class y, see `mhr.evaluation.by_heads`
masked       score = the logit of y's word at the mask of x                   (LM-BFF, arXiv 2012.15723)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch

from mhr.data.example import Example
from mhr.data.mask_tokens import MaskWords, encode_masked
from mhr.data.tokens import check_choices, encode_pairs, pad
from mhr.errors import ConfigError
from mhr.evaluation.batching import in_batches
from mhr.evaluation.by_heads import ask_heads
from mhr.evaluation.likelihood import log_likelihoods
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.metrics import mean
from mhr.evaluation.not_a_number import check_scores
from mhr.evaluation.ranked import Ranked
from mhr.objectives.masked import word_scores


def rank_choices(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    max_input_length: int = 512,
    max_target_length: int = 128,
    length_norm: float = 1.0,
    batch_size: int | None = None,
    unseen: str = "uniform",
    precision: str = "no",
    draws: int = 1,
    advance: Callable[[float], None] | None = None,
) -> list[Ranked]:
    """The scores of every example's choices, in the order of the examples. Tasks may be mixed. A model with heads gives those of its
    task's classes, or its number.

    length_norm  0 adds up the log-likelihoods of a choice's tokens, 1 takes their mean; encoders have no use for it
    batch_size   examples (encoders: pairs) a batch; None finds it, see `in_batches`
    unseen       how a task that the bank does not know is routed, "uniform" or "error"
    precision    "no", "bf16" or "fp16" of the large products
    draws        how often each choice is scored, for the mean; see `Inference`
    advance      called with the number of examples done; a part of an example's choices counts as that part of it

    Raises DataError for an example without choices or with an empty one, ConfigError for a classifier with several outputs,
    TaskError for an unknown task with unseen="error", DivergedError for scores that are no numbers. Equal choices get equal scores.
    """
    for example in examples if loaded.heads is None else ():
        check_choices(example)
    if not examples:
        return []

    def done(part: float) -> None:
        if advance is not None:
            advance(part / draws)

    def rank() -> list[Ranked]:
        if loaded.heads is not None:
            return ask_heads(loaded, examples, max_input_length, batch_size, unseen, done)
        if loaded.kind == "masked":
            return _rank_words(loaded, examples, max_input_length, batch_size, unseen, done)
        if not loaded.objective.generates:
            return _rank_pairs(loaded, examples, max_input_length, batch_size, unseen, done)
        lengths = max_input_length, max_target_length
        return _rank_answers(loaded, examples, lengths, length_norm, batch_size, unseen, done)

    with loaded.judging(precision):
        drawn = [rank() for _ in range(draws)]
    ranked = [
        replace(each[0], scores=[mean(scores) for scores in zip(*(r.scores for r in each), strict=True)])
        for each in zip(*drawn, strict=True)
    ]
    check_scores(loaded, examples, ranked)
    return ranked


def _rank_pairs(
    loaded: LoadedModel,
    examples: Sequence[Example],
    max_length: int,
    batch_size: int | None,
    unseen: str,
    advance: Callable[[float], None],
) -> list[Ranked]:
    outputs = loaded.model.config.num_labels
    if outputs != 1:
        raise ConfigError(
            f"{loaded.description} has {outputs} outputs: expected num_labels=1, a score of an input and a choice"
        )
    owners = [example for example in examples for _ in example.choices]
    pairs = encode_pairs(loaded.tokenizer, examples, max_length)
    device = loaded.device

    def score(batch: list[int]) -> list[float]:
        ids, mask = loaded.pad([pairs.ids[p] for p in batch])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if pairs.types is not None:
            inputs["token_type_ids"] = pad([pairs.types[p] for p in batch], 0)[0].to(device)
        with loaded.routing([owners[p].task for p in batch], unseen):
            logits = loaded.model(**inputs).logits
        return logits.float().squeeze(-1).tolist()

    def done(batch: list[int]) -> None:
        advance(sum(1 / len(owners[p].choices) for p in batch))

    scores = in_batches(score, [len(row) for row in pairs.ids], device=device, batch_size=batch_size, done=done)
    ends = list(accumulate((len(example.choices) for example in examples), initial=0))
    return [
        Ranked(scores[a:b], any(pairs.cut[a:b]), False, example.choices)
        for example, (a, b) in zip(examples, pairwise(ends), strict=True)
    ]


def _rank_words(
    loaded: LoadedModel,
    examples: Sequence[Example],
    max_length: int,
    batch_size: int | None,
    unseen: str,
    advance: Callable[[float], None],
) -> list[Ranked]:
    rows = encode_masked(loaded.tokenizer, examples, max_length)
    look_up = MaskWords(loaded.tokenizer)
    words = [look_up(example) for example in examples]
    device = loaded.device

    def score(batch: list[int]) -> list[list[float]]:
        ids, mask = loaded.pad([rows.ids[i] for i in batch])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if rows.types is not None:
            inputs["token_type_ids"] = pad([rows.types[i] for i in batch], 0)[0].to(device)
        counts = [len(words[i]) for i in batch]
        tokens = torch.tensor([token for i in batch for token in words[i]], device=device)
        places = torch.tensor([rows.places[i] for i in batch], device=device)
        with loaded.routing([examples[i].task for i in batch], unseen):
            scores = word_scores(loaded.model, inputs, places, tokens, counts)
        return [part.tolist() for part in scores.float().split(counts)]

    def done(batch: list[int]) -> None:
        advance(len(batch))

    scores = in_batches(score, [len(row) for row in rows.ids], device=device, batch_size=batch_size, done=done)
    return [
        Ranked(own, cut, False, example.choices) for own, cut, example in zip(scores, rows.cut, examples, strict=True)
    ]


def _rank_answers(
    loaded: LoadedModel,
    examples: Sequence[Example],
    max_lengths: tuple[int, int],
    length_norm: float,
    batch_size: int | None,
    unseen: str,
    advance: Callable[[float], None],
) -> list[Ranked]:
    inputs, encoded = loaded.collator(*max_lengths).encode_answers(examples, [e.choices for e in examples])
    ends = list(accumulate((len(example.choices) for example in examples), initial=0))
    answers = [encoded.ids[a:b] for a, b in pairwise(ends)]
    cut = [any(encoded.cut[a:b]) for a, b in pairwise(ends)]

    def score(batch: list[int]) -> list[list[float]]:
        likelihoods = log_likelihoods(
            loaded,
            [inputs.ids[i] for i in batch],
            [answers[i] for i in batch],
            [examples[i].task for i in batch],
            unseen,
        )
        return [
            [total / len(answer) ** length_norm for total, answer in zip(totals, answers[i], strict=True)]
            for i, totals in zip(batch, likelihoods, strict=True)
        ]

    def done(batch: list[int]) -> None:
        advance(len(batch))

    # Every choice keeps a copy of its input's keys and values, so that memory goes with their product.
    sizes = [len(row) * len(a) + sum(map(len, a)) for row, a in zip(inputs.ids, answers, strict=True)]
    scores = in_batches(score, sizes, device=loaded.device, batch_size=batch_size, done=done)
    return [
        Ranked(s, cut_input, cut_choices, example.choices)
        for example, s, cut_input, cut_choices in zip(examples, scores, inputs.cut, cut, strict=True)
    ]
