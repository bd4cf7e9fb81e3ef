"""Whether a model keeps packed documents apart, found by asking it, and the collator that packs them for it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from mhr.data.collators import CausalCollator, Collator
from mhr.data.packing import PackedCollator
from mhr.errors import ConfigError
from mhr.objectives.objective import Objective

# Units of rounding, relative to the largest logit, by which a document's logits may differ: as its neighbour changes (experts
# that get other batches), and from those of the document alone.
NEIGHBOUR, ALONE = 4, 64

FIRST, OTHER, SECOND = [1, 2, 3], [4, 3, 1], [4, 5, 6, 7]
"""Documents, the first two of one length."""


def packed_collator(model: Any, objective: Objective, collator: Collator) -> PackedCollator:
    """`collator`, with the documents of a batch packed, for a model that has no bank yet. Raises ConfigError for a model that cannot keep them apart, and for an
    objective that ranks choices."""
    kind = model.config.model_type
    if objective.kind != "causal":
        raise ConfigError(
            f"data.packing is on, but this {kind} is used as kind {objective.kind!r}: only rows of decoders are packed; leave "
            "packing out"
        )
    if objective.ranks:
        raise ConfigError(
            "data.packing is on, and so is a ranking loss, whose answers stand in rows of their own: leave packing out, or "
            "set mc_loss and unlikely_loss to 0"
        )
    one_row = "flash" in (model.config._attn_implementation or "")
    fault = _fault(model, one_row)
    if fault:
        raise ConfigError(
            f"data.packing is on, but this {kind} cannot keep documents in one row apart ({fault}): leave packing out"
        )
    assert isinstance(collator, CausalCollator)
    return PackedCollator(collator, one_row)


@torch.no_grad()
def _fault(model: Any, one_row: bool) -> str | None:
    """Why documents in one row are not as they are alone, or None."""
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return "it takes no position_ids"
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return _leak(model, one_row)
    finally:
        for module, mode in training.items():
            module.training = mode


def _leak(model: Any, one_row: bool) -> str | None:
    rows = [[FIRST, SECOND]] if one_row else [[FIRST, SECOND], [SECOND, OTHER]]
    start = len(FIRST)
    behind = _packed(model, rows)[0, start:]
    changed = _packed(model, [[OTHER, SECOND], *rows[1:]])[0, start:]
    alone = _packed(model, [[SECOND]])[0]
    size = alone.abs().max()
    unit = torch.finfo(alone.dtype).eps * size
    if (behind - changed).abs().max() > NEIGHBOUR * unit:
        return "the logits of one change with the one before it"
    if (behind - alone).abs().max() > min(ALONE * unit, 0.05 * size):
        return "the logits of one are not those that it has alone"
    return None


def _packed(model: Any, rows: list[list[list[int]]]) -> Tensor:
    """Logits of rows of documents."""
    device = next(model.parameters()).device
    ids = torch.tensor([[token for document in row for token in document] for row in rows], device=device)
    positions = torch.tensor([[i for document in row for i in range(len(document))] for row in rows], device=device)
    return model(input_ids=ids, position_ids=positions, use_cache=False).logits
