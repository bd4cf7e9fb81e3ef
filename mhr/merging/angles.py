"""Merges by the angles between updates: SLERP and model stock. Weighted sums whose weights are a layer's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mhr.adapters.layer import AdapterLayer
from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import Combination, combines
from mhr.merging.report import Gram

PARALLEL = 0.9995
"""Cosine, of either sign, beyond which two updates are interpolated on the line between them."""


@combines("slerp")
def combine_slerp(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`sin(w_1 theta) / sin(theta) D_1 + sin(w_2 theta) / sin(theta) D_2` of two updates at the angle theta, layer by layer.

    Spherical interpolation (Shoemake 1985): where both have one norm, the merge has it too, while their average is shorter. Updates that
    are 0 or nearly parallel (|cos theta| > PARALLEL) are averaged, `w_1 D_1 + w_2 D_2`.
    """

    def by_layer(name: str, layers: Sequence[AdapterLayer]) -> list[float]:
        if len(layers) == 1:  # the other one weighs nothing
            return [1.0]
        cosine = _cosines(layers)[0][1]
        if abs(cosine) > PARALLEL or _is_nothing(layers):
            return weights
        angle = math.acos(cosine)
        return [math.sin(w * angle) / math.sin(angle) for w in weights]

    return Combination(weights, by_layer=by_layer if len(sources) > 1 else None)


@combines("model_stock")
def combine_model_stock(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`D = t mean_k D_k`, `t = K cos / (1 + (K - 1) cos)`, layer by layer (model stock, arXiv 2403.19522).

    cos is the mean cosine over pairs of updates, and the base model, whose update is 0, is the paper's anchor w_0 in
    `t w_avg + (1 - t) w_0`: of updates in one direction all is kept, of unrelated ones nothing. The ratio of updates that point away
    from one another, which the paper does not have, is 0.
    """
    ratios: dict[str, Any] = {}
    n = len(sources)

    def by_layer(name: str, layers: Sequence[AdapterLayer]) -> list[float]:
        table = _cosines(layers)
        cosine = math.fsum(table[i][j] for i in range(n) for j in range(i)) / (n * (n - 1) / 2)
        ratios[name] = n * cosine / (1 + (n - 1) * cosine) if cosine > 0 else 0.0
        return [ratios[name] * w for w in weights]

    if n == 1:
        return Combination(weights)
    return Combination(weights, by_layer=by_layer, notes={"ratios": ratios})


def _gram(layers: Sequence[AdapterLayer]) -> Gram:
    gram = Gram(len(layers))
    gram.add(layers)
    return gram


def _cosines(layers: Sequence[AdapterLayer]) -> list[list[float]]:
    return [[max(-1.0, min(1.0, cosine)) for cosine in row] for row in _gram(layers).cosine]


def _is_nothing(layers: Sequence[AdapterLayer]) -> bool:
    return not bool(_gram(layers).products.diagonal().all())
