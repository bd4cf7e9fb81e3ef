"""Which biases of a model can be trained: those of Linear layers and of layer norms, outside its output layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mhr.errors import TargetError
from mhr.layers.linear import is_linear, is_norm
from mhr.layers.structure import is_within, reason_against, tied_parameters


class Biases(NamedTuple):
    """layers: names of the layers whose biases are trained, in the model's order; left_out: other biases -> why they are not."""

    layers: list[str]
    left_out: dict[str, str]


def has_bias(module: nn.Module) -> bool:
    """Whether a layer is one whose bias can be trained."""
    return (is_linear(module) or is_norm(module)) and isinstance(getattr(module, "bias", None), Tensor)


def find_biases(model: nn.Module, outside: Sequence[str] = ()) -> Biases:
    """The biases of a model, without those of the modules named in `outside` and of what is in them. Raises TargetError where it
    has none."""
    found = Biases([], {})
    tied = tied_parameters(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        if parameter.dim() != 1 or not (last == "bias" or last.endswith("_bias")) or is_within(owner, outside):
            continue
        layer = model.get_submodule(owner)
        if last != "bias" or not has_bias(layer):
            why: str | None = "is no bias of a Linear layer or layer norm"
        elif layer is head or parameter is getattr(head, "bias", None):
            why = "is of the output layer"
        else:
            why = reason_against(model, owner, tied)
        if why is None:
            found.layers.append(owner)
        else:
            found.left_out[name] = why
    if not found.layers:
        what = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        left_out = next((f": {name} {why}" for name, why in found.left_out.items()), "")
        raise TargetError(f"{what!r} has no biases that could be trained{left_out}; choose another kind of adapter")
    return found
