"""Whether values are numbers: nan and infinity, which a training that diverged or a damaged file leaves, spoil all that is made of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mhr.errors import CheckpointError


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError for the first of these tensors of `what` that holds a value that is not finite."""
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"tensor {key!r} of {what} holds nan or infinity: train it again, at a lower learning rate, or leave it out"
            )
