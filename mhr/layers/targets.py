"""Which layers of a model are adapted, and which of them share a routing table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from mhr.errors import ConfigError, TargetError, nearest
from mhr.layers.layouts import routable, working_targets
from mhr.layers.linear import is_linear

# Attention projections by `config.model_type`; more names stand for the same layout.
ATTENTION: dict[tuple[str, ...], list[str] | str] = {
    ("t5", "mt5", "umt5", "longt5", "switch_transformers"): ["q", "k", "v", "o"],
    ("bart", "mbart", "pegasus", "marian", "m2m_100", "opt", "whisper"): ["q_proj", "k_proj", "v_proj", "out_proj"],
    ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "cohere", "olmo", "olmo2"): [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    ],
    ("phi", "phi3"): ["q_proj", "k_proj", "v_proj", "dense", "qkv_proj", "o_proj"],
    ("gpt2",): ["attn.c_attn", "attn.c_proj"],
    ("gpt_neox", "bloom", "falcon"): ["query_key_value", "dense"],
    ("bert", "roberta", "xlm-roberta", "electra", "camembert"): ["query", "key", "value", "attention.output.dense"],
    ("distilbert",): ["q_lin", "k_lin", "v_lin", "out_lin"],
    ("deberta-v2",): ["query_proj", "key_proj", "value_proj", "attention.output.dense"],
}

# Last Linear of each feed-forward block, as an ending or a regular expression, where bottleneck adapters go.
FEED_FORWARD: dict[tuple[str, ...], list[str] | str] = {
    ("t5", "mt5", "umt5", "longt5"): ["wo"],
    ("bart", "mbart", "pegasus", "marian", "m2m_100", "opt", "whisper", "phi"): ["fc2"],
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "cohere", "olmo", "olmo2", "phi3"): [
        "down_proj"
    ],
    ("gpt2",): ["mlp.c_proj"],
    ("gpt_neox", "bloom", "falcon"): ["dense_4h_to_h"],
    ("bert", "roberta", "xlm-roberta", "electra", "camembert", "deberta-v2"): r".*layer\.\d+\.output\.dense",
    ("distilbert",): ["ffn.lin2"],
}


def default_targets(model: nn.Module, adapter: str = "lora") -> list[str] | str:
    """Where `adapter` goes in the model's architecture, as `find_targets` takes it: the outputs of the feed-forward blocks for
    "bottleneck", otherwise the attention projections. Raises TargetError for an architecture that is not known."""
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for names, targets in (FEED_FORWARD if adapter == "bottleneck" else ATTENTION).items():
        if model_type in names:
            return targets
    raise TargetError(
        f"no default targets for architecture {model_type!r}: name the layers, as in targets: [q_proj, v_proj]; "
        f"its Linear layers end in {_endings(model)}"
    )


def find_targets(
    model: nn.Module, targets: Sequence[str] | str | None, outside: Sequence[str] = (), adapter: str = "lora"
) -> list[str]:
    """Names of the Linear-like layers that `targets` means, in the model's order.

    A list matches whole names or their endings at a dot; a string is a regular expression for the whole name; None takes
    `default_targets` of the kind of adapter. Modules named in `outside`, and what is in them, are left out.
    Raises TargetError for an entry that matches nothing, or only layers that cannot be adapted.
    """
    everything = [name for name, _ in model.named_modules() if not _is_in(name, outside)]
    wanted = default_targets(model, adapter) if targets is None else targets
    if isinstance(wanted, str):
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise ConfigError(f"targets {wanted!r} is not a regular expression: {error}") from None
        matched = {wanted: [name for name in everything if pattern.fullmatch(name)]}
    else:
        if not wanted:
            raise TargetError(f"targets is empty: name at least one layer; Linear layers end in {_endings(model)}")
        matched = {t: [n for n in everything if n == t or n.endswith("." + t)] for t in wanted}
    found: set[str] = set()
    for target, names in matched.items():
        layers = [n for n in names if is_linear(model.get_submodule(n))]
        # A default list covers several variants of an architecture, of which a model has some.
        if targets is None:
            layers = [n for n in layers if routable(model, n)]
        elif not layers:
            fused = next(
                (n for n, p in model.named_parameters() if p.dim() == 3 and f".{n}".endswith("." + target)), None
            )
            if fused is not None:
                raise TargetError(
                    f"target {target!r} is {fused!r}, a parameter that holds the weights of several experts, whose tokens are not "
                    f"the rows of the batch: {working_targets(model)}"
                )
            reason = f"matches {names[0]!r}, which is no Linear layer" if names else "matches no layer"
            raise TargetError(f"target {target!r} {reason}: {nearest(target, _linear_endings(model))}")
        found.update(layers)
    if not found:
        raise TargetError(f"targets {list(matched)} match no layer; Linear layers end in {_endings(model)}")
    return [name for name in everything if name in found]


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
    block = _first_list(model, parts)
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


def _first_list(model: nn.Module, parts: list[str]) -> int | None:
    """How many parts of the name lead to an element of the outermost ModuleList."""
    for i in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:i])), nn.ModuleList):
            return i + 1
    return None


def in_list(model: nn.Module, layer: str) -> bool:
    """Whether the layer is in a transformer block: in an element of a ModuleList."""
    return _first_list(model, layer.split(".")) is not None


def _is_in(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def _linear_endings(model: nn.Module) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_linear(module)})


def _endings(model: nn.Module) -> str:
    return ", ".join(_linear_endings(model)) or "(it has none)"
