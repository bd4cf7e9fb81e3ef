"""Functions of rows that are wide in between: computed run by run, and again in the backward pass, so that one run's memory is all they take."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LARGEST = 2**25
"""Logits that exist at once: 128 MiB in float32."""


def in_chunks(function: Callable[..., Tensor], width: int, *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, one result [N, ...] for the N rows of each tensor, by runs of at most LARGEST / width rows.

    function must treat rows apart from each other; width is how many numbers it makes of one. A single run is not computed
    twice.
    """
    rows = max(1, LARGEST // max(width, 1))
    if tensors[0].shape[0] <= rows:
        return function(*tensors)
    runs = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    # Without re-entering, a parameter gets its gradient once, as distributed training expects.
    return torch.cat([checkpoint(function, *run, use_reentrant=False, preserve_rng_state=False) for run in runs])
