"""Load a base model and its tokenizer, as the kind of model that its configuration asks for."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from mhr.errors import ConfigError, MhrError, nearest

BUILTIN: dict[str, Path] = {"builtin:t5-tiny": Path(__file__).parent / "t5_tiny"}
"""Names of the models in this package and their folders."""

KINDS = ("seq2seq", "causal", "encoder")
"""What a model is asked to do: answer after reading, go on writing, or score an (input, choice) pair."""

_CLASSES = {
    "seq2seq": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "encoder": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
}


def load_backbone(
    name_or_path: str | Path, kind: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in evaluation mode with weights of `dtype`, and its tokenizer. `model.mhr_untrained` names the modules that
    the checkpoint does not hold (a new classification head, the pooler of an encoder that was saved without one).

    name_or_path  a name of BUILTIN, a local folder, or a hub id
    kind          one of KINDS; None takes what the configuration says: encoder-decoders are "seq2seq", models whose
                  saved architecture ends in ForCausalLM or LMHeadModel are "causal", every other one is an "encoder"
                  (AutoModelForSequenceClassification with one output)

    Raises ConfigError for a kind or name that is unknown or that the model cannot be, MhrError where nothing can be
    loaded from the folder or hub id.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind of model {kind!r}: {nearest(kind, KINDS)}")
    name = str(name_or_path)
    if name.startswith("builtin:") and name not in BUILTIN:
        raise ConfigError(f"unknown built-in model {name!r}: {nearest(name, BUILTIN)}")
    source = str(BUILTIN.get(name, name))
    is_folder = Path(source).is_dir()
    # "runs/first" may be a hub id or a folder that is missing; beside other folders it is taken for the second.
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) and (
        "/" not in source or not Path(source).parent.is_dir()
    )
    if not is_folder and not is_hub_id:
        raise MhrError(f"cannot load model {name!r}: no such folder, and no hub id of the form owner/name")
    try:
        config = AutoConfig.from_pretrained(source)
        kind = kind or kind_of(config)
        auto, mapping = _CLASSES[kind]
        if type(config) not in mapping:
            raise ConfigError(
                f"model {name!r} ({config.model_type}) cannot be loaded as {kind!r}: {_kinds_line(config)}"
            )
        settings = {"num_labels": 1} if kind == "encoder" else {}
        model, found = auto.from_pretrained(source, dtype=dtype, output_loading_info=True, **settings)
        tokenizer = ByT5Tokenizer() if name in BUILTIN else AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = "the folder is no model" if is_folder else "neither a local folder nor a hub id that can be reached"
        raise MhrError(f"cannot load model {name!r}: {where}: {reason}") from error
    # Drawn at random by transformers: attach has them trained and stored with the bank.
    model.__dict__["mhr_untrained"] = sorted({key.rpartition(".")[0] for key in found["missing_keys"]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def kind_of(config: PretrainedConfig) -> str:
    """What a configuration is meant for, one of KINDS; raises ConfigError for a model that is none of them."""
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    saved = (getattr(config, "architectures", None) or [""])[0]
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and saved.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return "encoder"
    raise ConfigError(
        f"a {config.model_type} model is no encoder-decoder, decoder or text encoder: {_kinds_line(config)}"
    )


def _kinds_line(config: PretrainedConfig) -> str:
    fitting = [kind for kind, (_, mapping) in _CLASSES.items() if type(config) in mapping]
    return (
        f"it can be {' or '.join(repr(k) for k in fitting)}"
        if fitting
        else "expected a T5, BART, Llama, GPT-2, BERT or their like"
    )
