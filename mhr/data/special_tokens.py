"""What a tokenizer puts around a text, and which tokens begin, end and fill up a row."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mhr.errors import ConfigError

PROBE = "a"
"""A text that every tokenizer takes for running text."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens that a tokenizer puts before and after a text by itself."""

    before: list[int]
    after: list[int]


def frame_of(tokenizer: PreTrainedTokenizerBase, *, target: bool = False) -> Frame:
    """The frame of an input, or of a target, which tokenizers for translation mark with its language."""
    bare = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = (tokenizer(text_target=PROBE) if target else tokenizer(PROBE))["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return Frame(whole[:start], whole[start + len(bare) :])
    ends = bool(whole) and whole[-1] == tokenizer.eos_token_id
    return Frame(whole[:-1], whole[-1:]) if ends else Frame(whole, [])


def end_token(tokenizer: PreTrainedTokenizerBase, frame: Frame | None = None) -> int:
    """The token that a generated text ends in: the first behind a text in its `frame`, or else the end-of-sequence token, or
    else the separator. Raises ConfigError for a tokenizer that has none."""
    if frame is not None and frame.after:
        return frame.after[0]
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise ConfigError(
        f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no end token, expected an eos_token that answers end "
        "in: set eos_token in its tokenizer_config.json"
    )


def answer_end(tokenizer: PreTrainedTokenizerBase, *, decoder: bool) -> int:
    """The token that answers are trained to end in, so that generation has to stop at it.

    decoder  whether the model goes on from its prompt; an encoder-decoder ends a target as its tokenizer does
    """
    return end_token(tokenizer, None if decoder else frame_of(tokenizer, target=True))


def target_language(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a target begins with and an input does not, which is the code of its language (mBART-50, NLLB, M2M100);
    None for tokenizers without such. Generation has to begin with it."""
    target = frame_of(tokenizer, target=True).before
    return target[0] if target and target != frame_of(tokenizer).before else None


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands before a text that has none of its own: the first one is predicted from it."""
    return end_token(tokenizer) if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up; its value does not matter where there is none, because padding is masked."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
