"""Parts of a fused projection that are adapted each by itself: GPT-2's c_attn computes q, k and v in one product.

P parts of a layer share a LoRA of rank R whose factor B is zero but for P blocks: rows p R/P to (p + 1) R/P of it reach the output
features of part p alone. That is P LoRAs of rank R / P, each with an A of its own, and it is one LoRA of rank R, so that it mixes,
merges and exports like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhr.errors import TargetError, nearest
from mhr.layers.layouts import classes
from mhr.layers.linear import features

FUSED = {("modeling_gpt2.GPT2Attention", "c_attn"): ("q", "k", "v")}
"""(class that holds the layer, its name there) -> its parts: output features in equal runs, in this order."""


def part_mask(model: nn.Module, name: str, parts: Sequence[str], rank: int) -> Tensor:
    """1 where factor B [R, O] of layer `name` may be other than 0, as bool. Raises TargetError for a layer that is not known to be
    fused, and for a part that it does not have."""
    holder, _, child = name.rpartition(".")
    module = model.get_submodule(holder)
    known = next((of for (cls, own), of in FUSED.items() if own == child and cls in classes(module)), ())
    if not known or getattr(module, "is_cross_attention", False):
        raise TargetError(
            f"parts is {list(parts)}, but layer {name!r} is not known to be a fused projection: leave parts out, or name such layers "
            f"alone, as in targets: [{next(own for _, own in FUSED)}] of GPT-2"
        )
    size, each = features(model.get_submodule(name))[1] // len(known), rank // len(parts)
    mask = torch.zeros(rank, size * len(known), dtype=torch.bool)
    for number, part in enumerate(parts):
        if part not in known:
            raise TargetError(f"parts has {part!r}, which layer {name!r} does not have: {nearest(part, known)}")
        place = known.index(part)
        mask[number * each : (number + 1) * each, place * size : (place + 1) * size] = True
    return mask
