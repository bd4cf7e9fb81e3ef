"""How the rows of a routed layer's input belong to the examples of a batch, by where the layer stands in its model.

Most layers are called with x [B, L, D], an example a row. What is different is listed here, by the class of the module that calls
the layer or by the layer's name; nothing is inferred from sizes that happen to agree.
"""

from __future__ import annotations

import re
from enum import Enum

from torch import nn

from mhr.errors import TargetError
from mhr.layers.linear import is_linear
from mhr.layers.weight_reads import weight_is_read


class Layout(Enum):
    """Axes of the x [...] that a layer is called with; B counts the rows of the call."""

    ROWS = "[B, ..., D]"
    SEQUENCE_FIRST = "[L, B, D]"
    TOKENS = "[B * L, D], or [B, ..., D]"


# The class that holds the layer, with the file it is defined in.
SEQUENCE_FIRST = {
    "modeling_longformer.LongformerSelfAttention",
    "modeling_led.LEDEncoderSelfAttention",
    "modeling_xlnet.XLNetFeedForward",
    "modeling_xlnet.XLNetRelativeAttention",
    "modeling_fsmt.Attention",
    "modeling_fsmt.EncoderLayer",
    "modeling_fsmt.DecoderLayer",
}
TOKENS = {"modeling_opt.OPTDecoderLayer"}

# Parts of a layer's name: what all tokens of a mixture of experts pass through, and the experts that tokens are dealt to.
SHARED_EXPERTS = re.compile(r"shared_(experts?|mlp|expert_gate)|router|gate")
EXPERTS = re.compile(r"(?!shared)(.*_)?experts")

# Layers that are called with relative positions, one table for all rows, where rows cannot be assigned to examples.
POSITIONS = {
    ("modeling_deberta.DebertaEncoder", "LayerNorm"),
    ("modeling_deberta_v2.DebertaV2Encoder", "LayerNorm"),
    ("modeling_deberta.DisentangledSelfAttention", "pos_proj"),
    ("modeling_deberta.DisentangledSelfAttention", "pos_q_proj"),
}

# Attention whose `disentangled_attention_bias` calls its projections with relative positions; see `mhr.layers.positions`.
RELATIVE = "modeling_deberta_v2.DisentangledSelfAttention"


def layout_of(model: nn.Module, name: str) -> Layout:
    """The layout of the x that the layer `name` is called with. Raises TargetError, in one line, for a layer that cannot be
    routed by example: one whose rows are tokens dealt to experts, or that the model never calls."""
    refusal = refusal_of(model, name)
    if refusal is not None:
        raise TargetError(f"layer {name!r} {refusal}: {working_targets(model)}")
    parts = name.split(".")
    holders = classes(model.get_submodule(".".join(parts[:-1])))
    if not holders.isdisjoint(SEQUENCE_FIRST):
        return Layout.SEQUENCE_FIRST
    if not holders.isdisjoint(TOKENS) or any(SHARED_EXPERTS.fullmatch(part) for part in parts):
        return Layout.TOKENS
    return Layout.ROWS


def working_targets(model: nn.Module) -> str:
    """Advice: targets of the model that can be routed, those of its attention where their names say so."""
    names = [name for name, module in model.named_modules() if is_linear(module) and routable(model, name)]
    attention = [name for name in names if "att" in name]
    endings = dict.fromkeys(name.rsplit(".", 1)[-1] for name in attention or names)
    return f"use targets such as {', '.join(list(endings)[:6])}" if endings else "no layer of this model can be routed"


def routable(model: nn.Module, name: str) -> bool:
    """Whether `layout_of` has a layout for the layer."""
    return refusal_of(model, name) is None


def refusal_of(model: nn.Module, name: str) -> str | None:
    """What a layer is or does, so that it cannot be routed by example; None where it can be."""
    parts = name.split(".")
    holders = classes(model.get_submodule(".".join(parts[:-1])))
    if any(EXPERTS.fullmatch(part) for part in parts):
        return "is part of an expert, which is called with the tokens dealt to it and not with the rows of the batch"
    if weight_is_read(model, name):
        return "is not always called: the model reads its weight, and an adapter beside it would do nothing"
    if not holders.isdisjoint(cls for cls, child in POSITIONS if child == parts[-1]):
        return "is called with relative positions, which all rows of a batch share"
    return None


def classes(module: nn.Module) -> set[str]:
    """Classes of a module and those it is derived from, each as "file.Class"."""
    return {f"{c.__module__.rpartition('.')[2]}.{c.__qualname__}" for c in type(module).__mro__}


def is_known(model: nn.Module) -> bool:
    """Whether the model is one of the transformers library, whose layouts are listed above wherever they are not ROWS."""
    return type(model).__module__.startswith("transformers.models.")
