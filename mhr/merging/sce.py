"""SCE (arXiv 2408.07990): select by variance, calculate weights by squares, erase what has the minority's sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import Combination, combines


@combines("sce")
def combine_sce(sources: Sequence[PlainAdapter], weights: list[float], *, density: float) -> Combination:
    """`x = sum_{k in S} eta_k s_k / sum_{k in S} eta_k`, elementwise, tensor by tensor.

        select     s_k = x_k where Var_k(x_k) is among the share `density` of the largest that are not 0, otherwise 0; all of it at 1
        calculate  eta_k = sum(s_k^2) / sum_j sum(s_j^2)
        erase      S holds the inputs whose s_k has the sign of sum_j s_j (plus where that is 0) and is not 0

    Dividing by the weights of what is left is the authors' code; S is empty: 0.
    """
    if len(sources) == 1:
        return Combination(weights)

    def merge(name: str, tensors: Sequence[Tensor]) -> Tensor:
        variance = _variance(tensors)
        chosen = variance >= (_limit(variance, density) if density < 1 else 0.0)
        total, squares = torch.zeros_like(variance), []
        for selected in _selected(tensors, chosen):
            total.add_(selected)
            squares.append(float(selected.double().square().sum()))
        whole = sum(squares)
        plus = total >= 0
        top, bottom = torch.zeros_like(variance), torch.zeros_like(variance)
        for selected, square in zip(_selected(tensors, chosen), squares, strict=True):
            share = square / whole if whole > 0 else 0.0
            agreed = torch.where((selected > 0) == plus, selected, 0.0)
            top.add_(agreed, alpha=share)
            bottom.add_(agreed != 0, alpha=share)
        return torch.where(bottom > 0, top / bottom, 0.0)

    return Combination(weights, tensors=merge, notes={"density": density})


def _selected(tensors: Sequence[Tensor], chosen: Tensor) -> Iterator[Tensor]:
    return (torch.where(chosen, tensor, 0.0) for tensor in tensors)


def _variance(tensors: Sequence[Tensor]) -> Tensor:
    """The variance of each element over the inputs, in two passes."""
    mean: Tensor | None = None
    for tensor in tensors:
        mean = tensor.clone() if mean is None else mean.add_(tensor)
    assert mean is not None
    mean /= len(tensors)
    total = torch.zeros_like(mean)
    for tensor in tensors:
        total.add_((tensor - mean).square_())
    return total / len(tensors)


def _limit(variance: Tensor, density: float) -> float:
    """The least variance that is selected, above 0, at least one element's; infinite where none is above 0."""
    above = variance[variance > 0]
    kept = max(1, int(density * len(above)))
    return float(above.kthvalue(len(above) - kept + 1).values) if len(above) else float("inf")
