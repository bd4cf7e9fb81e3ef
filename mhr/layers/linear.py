"""Which modules are Linear layers or layer norms, and their sizes."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether a layer can be adapted: nn.Linear, its quantised relatives, or GPT-2's Conv1D."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    return all(isinstance(getattr(module, a, None), int) for a in ("in_features", "out_features"))


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a layer norm over one axis: nn.LayerNorm, or a class that is called so."""
    weight = getattr(module, "weight", None)
    called_so = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("LayerNorm")
    return called_so and isinstance(weight, nn.Parameter) and weight.dim() == 1


def is_adaptable(module: nn.Module) -> bool:
    """Whether an adapter of some kind can be beside a layer."""
    return is_linear(module) or is_norm(module) or isinstance(module, nn.Embedding)


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) features of a Linear-like layer, or of a layer norm; of embeddings their number and their features."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if is_norm(module):
        return (module.weight.shape[0],) * 2  # type: ignore[index, return-value]
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
