"""How many rows a call of a model has, and whether there is a task id for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mhr.errors import TaskError
from mhr.routing import RoutingBatch

MULTIPLE_CHOICE = ("ForMultipleChoice", "DoubleHeadsModel")
"""Parts of the names of models whose input_ids are [B, C, L], and whose layers get B * C rows."""

INPUTS = ("input_ids", "inputs_embeds", "encoder_outputs", "decoder_input_ids", "decoder_inputs_embeds", "inputs")


def check_rows(model: nn.Module, batch: RoutingBatch, args: Sequence[Any], kwargs: Mapping[str, Any]) -> RoutingBatch:
    """The routing of a call with these arguments: `batch`, for as many rows an example as the call declares (choices of a
    multiple-choice model, input_ids [B, C, L]). Raises TaskError where the call's rows are not those of the batch's examples.
    """
    n = batch.examples
    if n is None:
        return batch
    given = {name: kwargs[name] for name in INPUTS if kwargs.get(name) is not None}
    if args and args[0] is not None:
        given[getattr(model, "main_input_name", "input")] = args[0]
    choices = 1
    for name, value in given.items():
        tensor = value if isinstance(value, Tensor) else _first(value)
        if tensor is None:
            continue
        if batch.shape is not None:
            if tuple(tensor.shape[:2]) != batch.shape:
                raise TaskError(
                    f"{name} is {list(tensor.shape)}, expected the packed rows {list(batch.shape)} of its {n} documents"
                )
            continue
        if name in ("input_ids", "inputs_embeds") and any(part in type(model).__name__ for part in MULTIPLE_CHOICE):
            choices = tensor.shape[1]
        if not batch.fits(tensor.shape[0], n):
            several = "" if batch.multiples == (1,) else f" of {' or '.join(map(str, batch.multiples))} rows each"
            raise TaskError(
                f"{n} task ids{several} for {name} with {tensor.shape[0]} rows: expected one task id per row, in their order"
            )
    return batch if choices == 1 else batch.over(choices)


def _first(value: Any) -> Tensor | None:
    """The tensor that leads an encoder's outputs, however they are packed."""
    found = value.get("last_hidden_state") if isinstance(value, Mapping) else None
    if found is None and isinstance(value, Sequence) and not isinstance(value, str) and value:
        found = value[0]
    return found if isinstance(found, Tensor) else None
