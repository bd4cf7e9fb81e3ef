"""What a base model is asked to do, and the classes of transformers that do it."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from mhr.config import MODEL_KINDS
from mhr.errors import ConfigError

# Kind -> the auto classes that load it with the architectures that each knows, in the order in which they are asked. A model of
# text and images whose text part is a decoder is used as that decoder.
_LOADERS: dict[str, list[tuple[Any, Any]]] = {
    "seq2seq": [(AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)],
    "causal": [
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    ],
    "encoder": [(AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)],
    "masked": [(AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING)],
}


def kind_of_config(config: PretrainedConfig) -> str:
    """What the checkpoint with this configuration is meant for, one of MODEL_KINDS.

    The architecture that it names decides. One that names none of them (a base class, or nothing) is "seq2seq" where it is an
    encoder-decoder, "causal" where transformers has its architecture as a decoder and not as a masked language model, and
    "encoder" otherwise: that a checkpoint holds a masked-LM head says where it comes from, not that its head is to answer.

    Raises ConfigError for a model that is none of these.
    """
    named = (getattr(config, "architectures", None) or [""])[0]
    possible = _possible(config)
    for kind, loaders in _LOADERS.items():
        if kind == "masked":
            continue
        for _, mapping in loaders:
            if named and type(config) in mapping and named in _names(mapping[type(config)]):
                return kind
    if "seq2seq" in possible and getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    if "causal" in possible and (
        named.endswith(("ForCausalLM", "LMHeadModel")) or type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    ):
        return "causal"
    if "encoder" in possible:
        return "encoder"
    raise ConfigError(
        f"a {config.model_type} model is no encoder-decoder, decoder or text encoder: {possible_kinds(config)}"
    )


def loader_of(kind: str, config: PretrainedConfig) -> Any:
    """The auto class of transformers that loads a model of this configuration as `kind`; None where none does."""
    own = getattr(config, "auto_map", None) or {}
    if kind == "masked" and getattr(config, "is_encoder_decoder", False):
        return None  # BART, whose class for this is the one that generates
    for auto, mapping in _LOADERS[kind]:
        if type(config) in mapping or auto.__name__ in own:
            # A model of images and text that writes as an encoder-decoder (BLIP-2 on T5) is no decoder.
            text_decodes = auto is not AutoModelForImageTextToText or not config.get_text_config().is_encoder_decoder
            return auto if text_decodes else None
    return None


def is_masked(model: Any) -> bool:
    """Whether a model has a masked-LM head."""
    config = getattr(model, "config", None)
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and type(model).__name__ in _names(
        MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    )


def possible_kinds(config: PretrainedConfig) -> str:
    """The part of an error line that says what a model of this configuration can be."""
    fitting = _possible(config)
    return (
        f"it can be {' or '.join(repr(k) for k in fitting)}"
        if fitting
        else "expected a T5, BART, Llama, GPT-2, BERT or their like"
    )


def _possible(config: PretrainedConfig) -> list[str]:
    return [kind for kind in MODEL_KINDS if loader_of(kind, config) is not None]


def _names(classes: Any) -> list[str]:
    return [c.__name__ for c in (classes if isinstance(classes, (tuple, list)) else [classes])]
