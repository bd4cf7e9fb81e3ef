"""Labels moved to the right: what a decoder reads while it predicts them, as its own model class moves them.

BART, Marian and T5 begin with a start token; mBART and PLBart take the last token, the code of the language, to the
front. A model does it in a method, or its module has a function for it (M2M100, NLLB, Blenderbot).
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor

from mhr.errors import ConfigError


def shift_right(model: Any, labels: Tensor) -> Tensor:
    """What the decoder of `model` reads at labels [B, T], IGNORED where padded; int64 [B, T].

    Raises ConfigError for a model that does not say how, or whose configuration lacks a token that it takes.
    """
    try:
        for method in ("prepare_decoder_input_ids_from_labels", "_shift_right"):
            if hasattr(model, method):
                return getattr(model, method)(labels)
        for cls in type(model).__mro__:
            shift = getattr(sys.modules.get(cls.__module__), "shift_tokens_right", None)
            if shift is not None:
                config = model.config
                tokens = {"pad_token_id": config.pad_token_id, "decoder_start_token_id": config.decoder_start_token_id}
                known = inspect.signature(shift).parameters
                return shift(labels, **{name: token for name, token in tokens.items() if name in known})
    except (AttributeError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"the configuration of this {model.config.model_type} lacks a token that its decoder begins with ({error}): set "
            "decoder_start_token_id and pad_token_id in its config.json"
        ) from error
    raise ConfigError(
        f"a {model.config.model_type} model does not say how its decoder reads labels, expected an encoder-decoder such as T5, "
        "BART, Marian, mBART or M2M100: choose one of these"
    )


def first_read(model: Any, target: list[int]) -> int:
    """The token that the decoder reads first when it is trained on a target, so that generation has to begin with it."""
    labels = torch.tensor([target], device=next(model.parameters()).device)
    return int(shift_right(model, labels)[0, 0])
