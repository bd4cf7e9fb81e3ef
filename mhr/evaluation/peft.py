"""Load an adapter of the PEFT library as that library runs it."""

from __future__ import annotations

from pathlib import Path

from peft import PeftConfig, PeftModel, PeftType
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from mhr.backbones import load_backbone
from mhr.errors import CheckpointError, ConfigError

KINDS = {"SEQ_2_SEQ_LM": "seq2seq", "CAUSAL_LM": "causal", "SEQ_CLS": "encoder"}
"""Kind of model by PEFT's task type."""


def is_peft_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT, sound or not."""
    return (folder / "adapter_config.json").is_file()


def load_peft_adapter(
    folder: Path, base: str | None = None, kind: str | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base model (the one that the adapter names unless `base` is given) with the adapter, and its tokenizer.

    Raises CheckpointError for an adapter that is cut, foreign or of another base, ConfigError for PEFT's Poly.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.peft_type == PeftType.POLY:
            raise ConfigError(f"{folder} is a Poly adapter of PEFT, routed by numbers that no task names go with")
        name = base or config.base_model_name_or_path
        if not name:
            raise CheckpointError(f"{folder} does not say which model it belongs to: give it as base")
        model, tokenizer = load_backbone(name, kind or KINDS.get(str(config.task_type)))
        return PeftModel.from_pretrained(model, str(folder)).eval(), tokenizer
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"cannot load the PEFT adapter in {folder}: {reason}") from error
