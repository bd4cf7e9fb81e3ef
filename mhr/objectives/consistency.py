"""AdaMix's consistency (arXiv 2205.12410): two passes that draw different skills are asked to predict alike.

    d(p, q) = 0.5 * (KL(p || q) + KL(q || p))      p, q the two passes' distributions at one position, float32

Either divergence moves only its second argument; the first is its target. With one logit there is no distribution, the
divergence would be 0 and teach nothing: there it is the squared difference of the two logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mhr.layers import AdapterBank
from mhr.objectives.chunks import in_chunks
from mhr.objectives.objective import Distributions, Objective, PassLosses, precise, sums_of


def consistency_weight(objective: Objective, bank: AdapterBank | None) -> float:
    """The weight that the settings of training ask for, or the published one; 0 where no skills are drawn, so that two passes are the same."""
    if bank is None or not bank.draws:
        return 0.0
    asked = objective.train.consistency
    return objective.consistency if asked is None else asked


def example_divergences(first: PassLosses, second: PassLosses) -> Tensor:
    """What consistency regularisation adds to the losses of two passes over one batch, before its weight: [B], summed over as many items as
    the losses are. Where a loss counts an example once, it is the mean over the example's positions."""
    assert first.predicted is not None
    assert second.predicted is not None
    lengths = first.predicted.lengths
    sums = sums_of(divergences(first.predicted, second.predicted), lengths)
    return sums * first.counts / lengths.clamp(min=1)


def divergences(first: Distributions, second: Distributions) -> Tensor:
    """d(p, q), or the squared difference of the only logit, at each position [N]; float32 (float64 for float64). Logits exist
    for a run of positions at a time."""
    of, to = first.states, second.states
    if first.classes is None:
        return in_chunks(lambda a, b: _everywhere(of.logits(a), to.logits(b)), of.width, of.values, to.values)
    return _among(of.logits(of.values), to.logits(to.values), first.classes)


def _everywhere(a: Tensor, b: Tensor) -> Tensor:
    a, b = precise(a), precise(b)
    return (a - b).square().squeeze(-1) if a.shape[-1] == 1 else _symmetric(a.log_softmax(-1), b.log_softmax(-1))


def _among(a: Tensor, b: Tensor, classes: Tensor) -> Tensor:
    a, b = precise(a), precise(b)
    a, b, p, q = (t.masked_fill(~classes, 0.0) for t in (a, b, a.log_softmax(-1), b.log_softmax(-1)))
    return torch.where(classes.sum(-1) == 1, (a - b).square().sum(-1), _symmetric(p, q))


def _symmetric(p: Tensor, q: Tensor) -> Tensor:
    """0.5 * (KL(p || q) + KL(q || p)) = 0.5 * sum (p - q) (log p - log q) over the last axis, from log-probabilities.

    The gradient is the one with targets, 0.5 (q - p) for q's logits; it is 0 where the passes agree, not its rounding error, of
    which Adam would make steps of full size.
    """
    return 0.5 * ((p.exp() - q.exp()).detach() * (p - q)).sum(-1)
