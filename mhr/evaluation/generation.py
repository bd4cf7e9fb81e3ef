"""Answer by generation: greedy, beam search or sampling, batched, each row routed by its task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from mhr.data.example import Example
from mhr.errors import ConfigError
from mhr.evaluation.batching import in_batches
from mhr.evaluation.ends import special_tokens, until_end
from mhr.evaluation.habits import without_habits
from mhr.evaluation.inference import MeanOverDraws
from mhr.evaluation.likelihood import shares_cache
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.not_a_number import NumbersOnly
from mhr.evaluation.sampling import Sampling
from mhr.evaluation.stops import StopAt, Stops
from mhr.evaluation.streaming import AnswerStream


@dataclass(frozen=True, slots=True)
class Generated:
    """text: the answer, without special tokens, surrounding space and what follows a stop string; cut_input: whether its input was
    truncated."""

    text: str
    cut_input: bool


def generate_answers(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    max_input_length: int = 512,
    max_new_tokens: int = 128,
    min_new_tokens: int = 0,
    n_beams: int = 1,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    cache: str = "dynamic",
    batch_size: int | None = None,
    unseen: str = "uniform",
    precision: str = "no",
    draws: int = 1,
    advance: Callable[[float], None] | None = None,
    stream: Callable[[str], None] | None = None,
) -> list[Generated]:
    """The model's answer to every example, in the order of the examples. Tasks may be mixed.

    n_beams      1 decodes greedily; of the model's own generation config only the special tokens count
    sampling     how tokens are drawn, with one beam and one draw; None takes the likeliest
    stop         texts that end an answer, which is what stands before the first of them
    cache        "dynamic", keys and values that grow with the answer, or "static", of one size, with which transformers compiles a
                 plain model on a GPU (with a bank, whose routing changes from batch to batch, it does not)
    batch_size   examples a batch; None finds it, see `in_batches`
    unseen       how a task that the bank does not know is routed, "uniform" or "error"
    precision    "no", "bf16" or "fp16" of the large products
    draws        rows of each example that answer as one, by the mean of their scores; see `Inference`
    advance      called with the number of examples done
    stream       of one example, with one beam and one draw: called with each further piece of its answer as it is generated; the
                 pieces together are the answer

    Inputs of a decoder are padded on the left. Raises ConfigError for an encoder, which cannot generate, for lengths and beams out of
    range, for an empty stop, for a static cache of a model that has none, and for sampling and streams that have to be of one row;
    DivergedError for logits that are NaN.
    """
    if not examples:
        return []
    if not loaded.objective.generates:
        raise ConfigError(f"{loaded.description} is an encoder and cannot generate: give its tasks choices to rank")
    if not 0 <= min_new_tokens <= max_new_tokens or max_new_tokens < 1 or n_beams < 1:
        raise ConfigError(
            f"min_new_tokens {min_new_tokens}, max_new_tokens {max_new_tokens}, n_beams {n_beams}: expected "
            "0 <= min_new_tokens <= max_new_tokens, at least one new token and one beam"
        )
    if not all(stop):
        raise ConfigError("stop has an empty string, expected some text in each")
    if (sampling or stream) and (n_beams > 1 or draws > 1 or (stream and len(examples) > 1)):
        raise ConfigError(
            f"{'sampling' if sampling else 'stream'} is given with {len(examples)} examples, {n_beams} beams and {draws} draws: "
            "sampling is of one beam and one draw, and a stream of one example as well"
        )
    kept = cache_settings(loaded, cache)
    prompted = loaded.objective.shares_row
    collator = loaded.collator(max_input_length, max(max_new_tokens, 2))
    inputs = collator.encode_inputs(examples)
    special = special_tokens(loaded, examples)
    # What is left open here (further special tokens) comes from the model's own generation config; its habits are overruled.
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        num_beams=n_beams,
        **(sampling.settings if sampling else {"do_sample": False}),
        length_penalty=1.0,
        early_stopping=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=loaded.pad_id,
        **kept,
        **special,
    )
    lead = collator.chat_rows().template.lead if any(map(loaded.renders, examples)) else ""
    stops = Stops(loaded.tokenizer, stop, lead)
    numbers = NumbersOnly(loaded)
    processors = LogitsProcessorList([numbers])
    if draws > 1:
        processors.append(MeanOverDraws(draws, n_beams))

    def said(i: int, text: str) -> str:
        return str(collator.answer_text(examples[i], text))

    def words(rows: list[list[int]]) -> list[str]:
        return stops.texts([until_end(row, special["eos_token_id"]) for row in rows])

    def streamer(i: int) -> AnswerStream | None:
        held = max(map(len, stop), default=1) - 1

        def text(row: list[int]) -> str:
            numbers.check()
            return said(i, words([row])[0])

        return None if stream is None else AnswerStream(text, stream, held, lead)

    def answer(batch: list[int]) -> list[str]:
        rows = [i for i in batch for _ in range(draws)]
        ids, mask = loaded.pad([inputs.ids[i] for i in rows], left=prompted)
        # An encoder-decoder's row begins with the token that it read first, which may be an end token.
        skip = ids.shape[1] if prompted else 1
        with loaded.routing([examples[i].task for i in rows], unseen):
            out = loaded.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([StopAt(stops, skip)] if stop else []),
                streamer=streamer(batch[0]),
            )[::draws]
        numbers.check()
        return words(out[:, skip:].tolist())

    def done(batch: list[int]) -> None:
        if advance is not None:
            advance(len(batch))

    sizes = [(len(row) + max_new_tokens) * n_beams * draws for row in inputs.ids]
    with loaded.judging(precision), without_habits(loaded.model), sampling.seeded() if sampling else nullcontext():
        # Where padding may tell, only inputs of one length are read together.
        equal = not shares_cache(loaded, inputs.ids[0], inputs.ids[0][-1:], examples[0].task, unseen)
        texts = in_batches(answer, sizes, device=loaded.device, batch_size=batch_size, equal=equal, done=done)
    return [Generated(said(i, text), cut) for i, (text, cut) in enumerate(zip(texts, inputs.cut, strict=True))]


def cache_settings(loaded: LoadedModel, cache: str) -> dict[str, Any]:
    """Settings of `generate` for a "dynamic" or "static" cache. Raises ConfigError for a model that has none of fixed size."""
    if cache != "static":
        return {}
    if not getattr(loaded.model, "_can_compile_fullgraph", False):
        raise ConfigError(
            f"cache is 'static', but {loaded.model.config.model_type} has no cache of fixed size in transformers: leave it out"
        )
    return {"cache_implementation": "static", "disable_compile": loaded.routed}
