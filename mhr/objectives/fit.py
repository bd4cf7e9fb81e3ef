"""Whether a model and its tokenizer fit each other and what they are asked to do, before anything is trained or scored."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.data.mask_tokens import check_mask_token
from mhr.data.special_tokens import end_token, frame_of, pad_token
from mhr.errors import ConfigError
from mhr.objectives.objective import objective_of

# By how many units of rounding, relative to the largest, a later token may change logits (experts that get other batches).
ROUNDING = 64


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """Raise ConfigError for a tokenizer that makes tokens which the model has no embedding of, or that a generator's answers
    cannot end in or a "masked" one has no mask in, and for a "causal" model that reads ahead, so that it would be shown the answers that it is to give."""
    _check_vocabulary(model, tokenizer)
    if kind == "masked":
        check_mask_token(tokenizer)
    if objective_of(kind).generates:
        end_token(tokenizer)
    if objective_of(kind).shares_row and not hasattr(model, "mhr"):
        _check_order(model)


def notes_on(tokenizer: PreTrainedTokenizerBase, kind: str) -> list[str]:
    """What a user should know of a tokenizer that is taken as it is, a line each."""
    own_row = objective_of(kind).generates and not objective_of(kind).shares_row
    if own_row and not frame_of(tokenizer, target=True).after:
        return [
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} ends targets in no end token, so that answers in words "
            "go on to max_target_length: give it a post-processor that adds one"
        ]
    return []


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Special tokens that only a text with their very name makes may lie beyond the embedding (Gemma's image token)."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        return
    rows = embedding.num_embeddings
    special = set(tokenizer.all_special_ids)
    added = [pad_token(tokenizer), *frame_of(tokenizer).before, *frame_of(tokenizer).after]
    ordinary = [i for i in tokenizer.get_vocab().values() if i not in special]
    largest = max([*ordinary, *added])
    if largest >= rows:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} makes tokens up to {largest} "
            f"({tokenizer.convert_ids_to_tokens(largest)!r}), but the model's embedding has {rows} rows, expected at least "
            f"{largest + 1}: take the tokenizer that belongs to the model, or enlarge the model by resize_token_embeddings"
        )


@torch.no_grad()
def _check_order(model: PreTrainedModel) -> None:
    """Ask for the logits of a token with two different tokens behind it."""
    device = next(model.parameters()).device
    rows = [torch.tensor([[1, 2, 3, last]], device=device) for last in (1, 4)]
    first, second = (model(input_ids=row).logits[0, :3] for row in rows)
    limit = min(ROUNDING * torch.finfo(first.dtype).eps, 0.05) * first.abs().max()
    if (first - second).abs().max() > limit:
        raise ConfigError(
            f"this {model.config.model_type} is no decoder, expected one whose tokens see only those before them: it reads "
            "ahead, so that it would be shown its answers; set is_decoder in its config.json, or choose another kind of model"
        )
