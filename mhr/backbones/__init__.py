"""Base models by name: the built-in ones, local folders, GGUF files and hub ids."""

from __future__ import annotations

from mhr.backbones.kinds import is_masked
from mhr.backbones.load import load_backbone, load_tokenizer
from mhr.backbones.options import can_dequantise, check_loading, check_precision_of
from mhr.backbones.outputs import carry_heads, fill_heads, heads_of, name_outputs, set_heads, take_heads, wearing_heads
from mhr.backbones.source import BUILTIN, is_builtin, is_gguf, source_of
from mhr.backbones.untrained import forget_untrained, untrained_modules

__all__ = [
    "BUILTIN",
    "can_dequantise",
    "carry_heads",
    "check_loading",
    "check_precision_of",
    "fill_heads",
    "forget_untrained",
    "heads_of",
    "is_builtin",
    "is_gguf",
    "is_masked",
    "load_backbone",
    "load_tokenizer",
    "name_outputs",
    "set_heads",
    "source_of",
    "take_heads",
    "untrained_modules",
    "wearing_heads",
]
