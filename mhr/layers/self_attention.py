"""Where the parts of a gated adapter stand: at q, k and v of each block's self-attention, and behind its feed-forward part."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mhr.errors import TargetError
from mhr.layers.siblings import CROSS, QUERY_KEY_VALUE
from mhr.layers.structure import block_parts, structure_of


def gated_places(model: nn.Module, outside: Sequence[str] = ()) -> list[str]:
    """The layers of a gated adapter, in no order. Raises TargetError, naming the block, for a model of which one has not one self-attention
    with q, k and v of its own and one feed-forward part."""
    structure = structure_of(model, outside)
    usable = {*structure.attention, *structure.outputs}
    found: dict[str, list[str]] = {}
    for name in (*structure.attention, *structure.mixers, *structure.feed_forward):
        found.setdefault(_block(model, name), [])
    for name in structure.outputs:
        found[_block(model, name)].append(name)
    for block, names in found.items():
        attentions = _self_attentions(model, block)
        for attention in attentions:
            names += [f"{attention}.{child}" for child in _family(model.get_submodule(attention)) or ()]
        if len(attentions) != 1 or len(names) != 4 or not usable.issuperset(names):
            raise TargetError(
                f"block {block!r} has not one self-attention with layers q, k and v and one feed-forward part, which the parts of a gated "
                "adapter stand in: choose another kind of adapter"
            )
    if not found:
        raise TargetError("the model has no transformer blocks, which a gated adapter stands in: choose another kind")
    return [name for names in found.values() for name in names]


def gated_part(name: str) -> str:
    """What stands at a layer of a gated adapter: the lora of q or v, the prefix of k, or the bottleneck behind a feed-forward part."""
    child = name.rpartition(".")[2]
    parts = {
        part
        for family in QUERY_KEY_VALUE
        for part, own in zip(("lora", "prefix", "lora"), family, strict=True)
        if own == child
    }
    return parts.pop() if parts else "bottleneck"


def self_attention_beside(model: nn.Module, layer: str) -> str:
    """The self-attention in the block of a layer that `gated_places` has found."""
    return _self_attentions(model, _block(model, layer))[0]


def value_layer(attention: nn.Module) -> nn.Module:
    """The layer v of a self-attention that `gated_places` has found."""
    family = _family(attention)
    assert family is not None
    return attention.get_submodule(family[2])


def _block(model: nn.Module, layer: str) -> str:
    return ".".join(layer.split(".")[: block_parts(model, layer)])


def _self_attentions(model: nn.Module, block: str) -> list[str]:
    modules = model.get_submodule(block).named_modules(prefix=block)
    return [name for name, module in modules if _family(module) and not CROSS.search(name)]


def _family(module: nn.Module) -> tuple[str, ...] | None:
    """What a module calls its q, k and v, where it has all of them."""
    return next((family for family in QUERY_KEY_VALUE if all(child in module._modules for child in family)), None)
