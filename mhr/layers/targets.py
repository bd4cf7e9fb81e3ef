"""Which layers of a model are adapted, and which of them share a routing table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mhr.config import BEHIND, VIRTUAL
from mhr.errors import ConfigError, TargetError, nearest
from mhr.layers.biases import find_biases, has_bias
from mhr.layers.layouts import working_targets
from mhr.layers.linear import is_linear
from mhr.layers.self_attention import gated_places
from mhr.layers.structure import block_parts, is_within, structure_of

KINDS = {
    "attention": "the projections of attention",
    "feed-forward": "the Linear layers of feed-forward blocks",
    "outputs": "the Linear layers that return from attention and feed-forward blocks to d_model",
    "all-linear": "every Linear layer of the transformer blocks",
}
"""Words that stand for layers by where they stand, in place of names."""

FEED_FORWARD_OUTPUTS = "outputs of feed-forward blocks"


def find_targets(
    model: nn.Module, targets: Sequence[str] | str | None, outside: Sequence[str] = (), adapter: str = "lora"
) -> list[str]:
    """Names of the Linear-like layers that `targets` means, in the model's order.

    A list matches whole names or their endings at a dot, and a word of `KINDS` what that word says; a string is such a word, or a
    regular expression for the whole name. None takes the outputs of the feed-forward blocks for adapters that stand there (`BEHIND`), every
    layer that `mhr.layers.biases.find_biases` finds for "bias", and otherwise the projections of attention. Only layers with a bias are
    taken for "bias". Modules named in `outside`, and what is in them, are left out.
    Raises TargetError for an entry that matches nothing, or only layers that cannot be adapted.
    """
    everything = [name for name, _ in model.named_modules() if not is_within(name, outside)]
    if adapter in VIRTUAL:
        return _embeddings(model, targets, adapter)
    if adapter == "gated":
        return _gated(model, targets, everything, outside)
    if targets is None and adapter == "bias":
        return find_biases(model, outside).layers
    if targets is None:
        found = set(_by_structure(model, FEED_FORWARD_OUTPUTS if adapter in BEHIND else "attention", outside))
        return [name for name in everything if name in found]
    if not targets:
        raise TargetError(f"targets is empty: name at least one layer; Linear layers end in {_endings(model)}")
    fits = has_bias if adapter == "bias" else is_linear
    found = set()
    for target in [targets] if isinstance(targets, str) else targets:
        if target in KINDS:
            found.update(n for n in _by_structure(model, target, outside) if fits(model.get_submodule(n)))
            continue
        names = list(filter(_matches(target, isinstance(targets, str)), everything))
        layers = [n for n in names if fits(model.get_submodule(n))]
        if not layers:
            fused = _fused(model, target, isinstance(targets, str))
            if fused:
                raise TargetError(
                    f"target {target!r} is {fused[0]!r}, a parameter that holds the weights of several experts, whose tokens are "
                    f"not the rows of the batch: {working_targets(model)}"
                )
            lacks = "is no Linear layer" if fits is is_linear else "has no bias"
            reason = f"matches {names[0]!r}, which {lacks}" if names else "matches no layer"
            known = [*_linear_endings(model), *KINDS]
            raise TargetError(f"target {target!r} {reason}: {nearest(target, known)}")
        found.update(layers)
    if not found:
        raise TargetError(
            f"targets {targets!r} match no layer that has a bias: leave targets out, for all that have one"
        )
    return [name for name in everything if name in found]


def _embeddings(model: nn.Module, targets: Sequence[str] | str | None, adapter: str) -> list[str]:
    """The input embeddings, which virtual tokens are beside."""
    found = getattr(model, "get_input_embeddings", lambda: None)()
    names = [name for name, module in model.named_modules() if module is found]
    if targets is not None and list(targets) != names[:1]:
        raise TargetError(
            f"targets is {targets!r}, but adapter {adapter!r} stands in front of what the model reads: leave targets out"
        )
    if not names:
        raise TargetError(
            f"the model has no input embeddings, which adapter {adapter!r} is put beside: choose another kind"
        )
    return names[:1]


def _gated(
    model: nn.Module, targets: Sequence[str] | str | None, everything: list[str], outside: Sequence[str]
) -> list[str]:
    """Where the parts of a gated adapter stand."""
    found = set(gated_places(model, outside))
    if targets is not None and set(targets) != found:
        raise TargetError(
            f"targets is {targets!r}, but the parts of a gated adapter have their places in each block: leave targets out"
        )
    return [name for name in everything if name in found]


def by_structure(targets: Sequence[str] | str | None) -> bool:
    """Whether the model's structure says which layers are adapted, and not their names alone."""
    return targets is None or any(word in KINDS for word in ([targets] if isinstance(targets, str) else targets))


def unadapted(
    model: nn.Module, targets: Sequence[str] | str | None, outside: Sequence[str] = (), adapter: str = "lora"
) -> list[str]:
    """One line for each kind of layer of the model's blocks that such targets leave out although they mean it, or might: layers that
    cannot be adapted, and, where all Linear layers are asked for, those that are none of text or choose."""
    words = [targets] if isinstance(targets, str) else list(targets or ())
    structure = structure_of(model, outside)
    if by_structure(targets):
        experts = structure.experts
    else:
        experts = [name for word in words for name in _fused(model, word, isinstance(targets, str))]
    lines = []
    if experts:
        lines.append(
            f"not adapted: {_shown(experts)}: holds the weights of several experts, whose tokens are not the rows of the batch"
        )
    reasons: dict[str, list[str]] = defaultdict(list)
    left_out = structure.left_out if "all-linear" in words else {}
    if targets is None and adapter == "bias":
        left_out = find_biases(model, outside).left_out
    for name, reason in left_out.items():
        reasons[reason].append(name)
    return [*lines, *(f"not adapted: {_shown(names)}: {reason}" for reason, names in reasons.items())]


def _shown(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more like it"


def _matches(target: str, whole: bool) -> Callable[[str], Any]:
    """Whether a name is meant: by a regular expression for the `whole` of it, or by its ending at a dot."""
    if not whole:
        return lambda name: name == target or name.endswith("." + target)
    try:
        return re.compile(target).fullmatch
    except re.error as error:
        raise ConfigError(f"targets {target!r} is not a regular expression: {error}") from None


def _fused(model: nn.Module, target: str, whole: bool) -> list[str]:
    """Parameters with an axis of experts that are meant."""
    matches = _matches(target, whole)
    return [name for name, p in model.named_parameters() if p.dim() == 3 and matches(name)]


def _by_structure(model: nn.Module, kind: str, outside: Sequence[str]) -> list[str]:
    """Layers of a word of `KINDS`, or the outputs of the feed-forward blocks. Raises TargetError where the model's structure does not
    show any."""
    structure = structure_of(model, outside)
    found = {
        "attention": structure.attention,
        FEED_FORWARD_OUTPUTS: structure.outputs,
        "outputs": [*structure.attended, *structure.outputs],
        "feed-forward": structure.feed_forward,
        "all-linear": structure.linear,
    }[kind]
    if not found:
        sought = KINDS.get(kind, kind)
        experts = f"; {structure.experts[0]!r} holds the weights of several experts" if structure.experts else ""
        what = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise TargetError(
            f"the structure of {what!r} does not show {sought}{experts}: name the layers, as in targets: [q_proj, v_proj]; "
            f"its Linear layers end in {_endings(model)}"
        )
    return found


def routing_group(model: nn.Module, layer: str, granularity: str) -> str:
    """Name of the group of layers that `layer` shares its routing table with.

    fine: the layer itself; layer: its part of a transformer block (self-attention, feed-forward ...); block: the
    transformer block; coder: encoder or decoder; coarse: the whole model (""). A transformer block is an element of the
    outermost ModuleList around the layer. Raises TargetError where the model has no such part around the layer.
    """
    if granularity == "fine":
        return layer
    if granularity == "coarse":
        return ""
    parts = layer.split(".")
    if granularity == "coder":
        for i, part in enumerate(parts):
            if part in ("encoder", "decoder"):
                return ".".join(parts[: i + 1])
        raise TargetError(
            f"granularity 'coder' does not fit layer {layer!r}: no 'encoder' or 'decoder' in its name; use 'coarse'"
        )
    block = block_parts(model, layer)
    if block is None:
        raise TargetError(
            f"granularity {granularity!r} does not fit layer {layer!r}, which is in no transformer block: leave it out of "
            "targets, or use 'fine', 'coder' or 'coarse'"
        )
    if granularity == "block":
        return ".".join(parts[:block])
    end = block + 1
    if isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList):
        end += 1
    return ".".join(parts[:end])


def in_list(model: nn.Module, layer: str) -> bool:
    """Whether the layer is in a transformer block: in an element of a ModuleList."""
    return block_parts(model, layer) is not None


def _linear_endings(model: nn.Module) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_linear(module)})


def _endings(model: nn.Module) -> str:
    return ", ".join(_linear_endings(model)) or "(it has none)"
