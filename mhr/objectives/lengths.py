"""Tokens of an input and of a target that a model has positions for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.errors import ConfigError
from mhr.layers import AdapterBank
from mhr.objectives.objective import objective_of
from mhr.runs.data_settings import DataConfig


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of an input and of a target that are kept; `note` says in one line where that is less than was asked for."""

    input: int
    target: int
    note: str | None = None


def fit_lengths(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    max_input_length: int,
    max_target_length: int,
    description: str = "the model",
) -> Lengths:
    """The lengths asked for, or what the model takes where that is less.

    Raises ConfigError for fewer than 2 tokens, or where the target leaves no room for an input.
    """
    asked = Lengths(max_input_length, max_target_length)
    for name, value in (("max_input_length", asked.input), ("max_target_length", asked.target)):
        if value < 2:
            raise ConfigError(f"{name} is {value}, expected at least 2 tokens")
    encoder, decoder = positions(model, tokenizer, "encoder"), positions(model, tokenizer, "decoder")
    target = asked.target if decoder is None else min(asked.target, decoder)
    # A decoder reads and writes in one row; the target of an encoder-decoder has a row of its own.
    room = encoder if encoder is None or not objective_of(kind).shares_row else encoder - target
    kept = asked.input if room is None else min(asked.input, room)
    if kept < 2:
        raise ConfigError(
            f"max_target_length is {target}, but {description} takes {encoder} tokens with the input: use less"
        )
    changes = [
        f"{name} from {before} to {after}"
        for name, before, after in (
            ("max_input_length", asked.input, kept),
            ("max_target_length", asked.target, target),
        )
        if after != before
    ]
    note = (
        f"lowered {' and '.join(changes)}, as {description} takes {_limits(encoder, decoder)} tokens"
        if changes
        else None
    )
    return Lengths(kept, target, note)


def positions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, side: str) -> int | None:
    """Tokens that one side of a model has positions for; None where it has no such limit (T5). side: "encoder" or "decoder",
    which are the same for a model that is not both. Virtual tokens of a bank have positions too."""
    within = {"decoder": True} if side == "decoder" else {}  # a multimodal decoder has one text part for both
    config = getattr(model.config, side, None) or model.config.get_text_config(**within)
    found = getattr(config, f"max_{side}_position_embeddings", None) or getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found < 1:
        return None
    # RoBERTa and its like begin to count behind the index of padding: 514 positions are for 512 tokens.
    set_aside = max(
        (
            module.padding_idx + 1
            for name, module in model.named_modules()
            if "position_emb" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None
            if module.num_embeddings == found
        ),
        default=0,
    )
    bank = getattr(model, "mhr", None)
    prepended = bank.config.prepended if isinstance(bank, AdapterBank) else 0
    return min(found - set_aside, tokenizer.model_max_length) - prepended


def _limits(encoder: int | None, decoder: int | None) -> str:
    both = [str(n) for n in dict.fromkeys((encoder, decoder)) if n is not None]
    return " and ".join(both)


def fit_data(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    data: DataConfig,
    description: str = "the model",
) -> tuple[DataConfig, str | None]:
    """Settings of data with lengths that the model has positions for, and the note of `Lengths`."""
    found = fit_lengths(model, tokenizer, kind, data.max_input_length, data.max_target_length, description)
    return replace(data, max_input_length=found.input, max_target_length=found.target), found.note
