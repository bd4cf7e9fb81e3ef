"""Load a base model and its tokenizer, as the kind of model that its configuration asks for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from transformers import (
    AutoConfig,
    AutoTokenizer,
    ByT5Tokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AutoHfQuantizer

from mhr.backbones.kinds import kind_of_config, loader_of, possible_kinds
from mhr.backbones.options import arguments_of, check_loading, keep_differentiable
from mhr.backbones.outputs import head_modules, heads_in_config, name_outputs
from mhr.backbones.source import BUILTIN, PACKAGED, is_gguf, source_of
from mhr.config import MODEL_KINDS
from mhr.data.special_tokens import pad_token
from mhr.errors import ConfigError, MhrError, nearest
from mhr.loading import Loading
from mhr.task_heads import CLASSIFY, MLM, REGRESS

Found = TypeVar("Found")


def load_backbone(
    name_or_path: str | Path,
    kind: str | None = None,
    loading: Loading | None = None,
    head: str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in evaluation mode, and its tokenizer. `model.mhr_untrained` names the modules that
    the checkpoint does not hold (a new classification head, the pooler of an encoder that was saved without one).

    name_or_path       what `source_of` knows: a built-in name, a local folder, a GGUF file, or a hub id
    kind               one of MODEL_KINDS; None takes what the configuration says, see `kind_of_config`. An "encoder" is loaded with a
                       sequence-classification head: of one output, or of those that its configuration names heads for; a "masked" one
                       with its masked-LM head, which the checkpoint has to hold
    head               what the setting `head` asks for: "classify" and "regress" make an "encoder" of a model whose kind is not given, "mlm" a
                       "masked" one of that and of an "encoder"
    loading            dtype, quantisation, attention, devices, revision, and whether code that the checkpoint brings is run, which
                       nothing that a checkpoint says switches on. None: float32, one device, no code

    Only weights are unpickled, never objects. Raises ConfigError for a kind or name that is unknown or that the model cannot be,
    MhrError, in one line, for whatever keeps transformers from loading it.
    """
    if kind is not None and kind not in MODEL_KINDS:
        raise ConfigError(f"unknown kind of model {kind!r}: {nearest(kind, MODEL_KINDS)}")
    name = str(name_or_path)
    loading = loading or Loading()
    check_loading(loading)
    source = source_of(name)
    if loading.revision is not None and Path(source).is_dir():
        raise ConfigError(
            f"revision is {loading.revision!r}, but model {name!r} is a folder, not a hub id: leave revision out"
        )
    trust = _trust(loading)
    config = _loading(name, source, None, lambda: AutoConfig.from_pretrained(source, **trust))
    if head == MLM and kind in (None, "encoder"):
        kind = "masked"
    kind = kind or ("encoder" if head in (CLASSIFY, REGRESS) else kind_of_config(config))
    auto = loader_of(kind, config)
    if auto is None:
        raise ConfigError(
            f"model {name!r} ({config.model_type}) cannot be loaded as {kind!r}: {possible_kinds(config)}"
        )
    attention = str(getattr(config, "_attn_implementation", None) or "")
    if "/" in attention and not loading.trust_remote_code:
        raise MhrError(_asks_for_code(name, f"names the kernel {attention!r}"))
    quantised: Any = getattr(config, "quantization_config", None)
    if isinstance(quantised, dict) and not _loading(
        name, source, config, lambda: AutoHfQuantizer.supports_quant_method(quantised)
    ):
        # Transformers would warn and take packed integers for weights.
        raise MhrError(f"cannot load model {name!r}: {_unreadable(config, 'transformers knows no such quantisation')}")
    labels = getattr(config, "num_labels", None)
    heads = heads_in_config(config, f"the configuration of model {name!r}") if kind == "encoder" else None
    outputs = 1 if heads is None else heads.size
    # Shapes that differ are ours to judge: transformers reports them by itself and raises an error that names none.
    whole = head_modules(auto, config) if kind == "encoder" and loading.quantize in ("4bit", "8bit") else ()
    settings = arguments_of(loading, config, name, whole)
    settings |= {"ignore_mismatched_sizes": True} | ({"num_labels": outputs} if kind == "encoder" else {})
    model, found = _loading(
        name,
        source,
        config,
        lambda: auto.from_pretrained(source, output_loading_info=True, weights_only=True, **trust, **settings),
    )
    keep_differentiable(model)
    tokenizer = load_tokenizer(name, loading)
    other_head = _of_another_head(name, found["mismatched_keys"], labels if kind == "encoder" else None)
    # Drawn at random by transformers: attach has them trained and stored with the bank.
    model.__dict__["mhr_untrained"] = sorted({key.rpartition(".")[0] for key in [*found["missing_keys"], *other_head]})
    if heads is not None:
        name_outputs(model.config, heads)
    if kind == "masked" and model.mhr_untrained:
        raise MhrError(
            f"model {name!r} holds no masked-LM head ({model.mhr_untrained[0]!r} is missing), and one drawn at random would say nothing at a "
            "mask: choose a checkpoint of a masked language model such as BERT or RoBERTa, or another head"
        )
    if kind == "encoder" and kind_of_config(config) != "encoder":
        if tokenizer.pad_token_id is None:
            raise ConfigError(
                f"the tokenizer of model {name!r} has no padding token, by which a decoder that classifies finds the last token of a "
                "row: set pad_token in its tokenizer_config.json"
            )
        model.config.pad_token_id = pad_token(tokenizer)  # by which a decoder finds the last token, which it classifies
    # A model of text and images keeps the settings of its text in a configuration of their own.
    for part in (model.config, model.config.get_text_config()):
        if getattr(part, "pad_token_id", 0) is None:
            part.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def load_tokenizer(name_or_path: str | Path, loading: Loading | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_backbone` returns, without the model. Raises MhrError, in one line, for whatever keeps transformers from
    loading it."""
    name = str(name_or_path)
    source, trust = source_of(name), _trust(loading or Loading())
    tokenizer = _loading(
        name,
        source,
        None,
        lambda: ByT5Tokenizer() if name in BUILTIN else AutoTokenizer.from_pretrained(source, **trust),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _trust(loading: Loading) -> dict[str, Any]:
    """Arguments of every from_pretrained."""
    trust: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    return trust | ({"revision": loading.revision} if loading.revision is not None else {})


def _of_another_head(name: str, differing: Iterable[tuple[str, Any, Any]], labels: int | None) -> list[str]:
    """Parameters of a head for `labels` outputs, where one of one output was asked for, among those (name, shape in the checkpoint,
    shape in the model) that differ. Raises MhrError for any other one."""
    found = []
    for key, held, wanted in sorted(differing):
        if labels is None or list(held) != [labels, *wanted[1:]] or wanted[0] != 1:
            raise MhrError(
                f"cannot load model {name!r}: its checkpoint holds {key} as {list(held)}, but its configuration asks for "
                f"{list(wanted)}: the two do not belong together"
            )
        found.append(key)
    return found


def _loading(name: str, source: str, config: PretrainedConfig | None, step: Callable[[], Found]) -> Found:
    """What a step of transformers returns, or one line on why it does not. `source` is where the model `name` lies, `config` that of the
    weights, where they are read.

    Transformers, tokenizers and safetensors raise nearly every class of exception on a folder that is damaged, foreign or ahead of
    its time, plain `Exception` included.
    """
    try:
        return step()
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise MhrError(_asks_for_code(name, "brings code of its own")) from error
        raise MhrError(f"cannot load model {name!r}: {_reason(name, source, config, error)}") from error


def _asks_for_code(name: str, what: str) -> str:
    return (
        f"model {name!r} {what}, which would run on this machine: read it first, and allow it with --trust-remote-code "
        "(trust_remote_code) if you trust it"
    )


def _reason(name: str, source: str, config: PretrainedConfig | None, error: Exception) -> str:
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else said[:297] + "..."
    said = said or type(error).__name__
    if getattr(config, "quantization_config", None) is not None:
        return _unreadable(config, said)
    if isinstance(error, pickle.UnpicklingError):
        return (
            "its weights are a pickle that is damaged or holds more than weights, and nothing of it was run: use a checkpoint in "
            "safetensors"
        )
    if isinstance(error, KeyError):
        said = f"it lacks {said}"
    if is_gguf(name) or name in PACKAGED:
        return f"its folder {source} in the cache is damaged, delete it and it is made again: {said}"
    if Path(source).is_dir():
        return f"the folder is no model that can be read here: {said}"
    return f"neither a local folder nor a hub id that can be reached: {said}"


def _unreadable(config: Any, why: str) -> str:
    quantised = config.quantization_config
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
    return (
        f"it is quantised ({getattr(method, 'value', method)}), which cannot be read here: {why}; install what is missing, or name "
        "the same model in 16 bits as the base (--model)"
    )
