"""Zero-shot MHR-mu (arXiv 2211.03831): a run that goes on training its bank as the average of its skills.

While the weights of skill s are w[s], a step routes by (1 - u) w[s] + u / S. With u = 1 the S skills are one adapter, and
the routing logits get no gradient: every skill moves alike, which is how their average, one LoRA, would move. Since u
depends on the step alone, a resumed run finds itself where it was.
"""

from __future__ import annotations

import math

from mhr.runs.train_settings import TrainConfig


def share_of_average(config: TrainConfig, step: int) -> float:
    """u at optimizer step `step`, from 0, and after the last one: 1 from `switch_to_mu_at` on, or, over the last N = `anneal_to_mu` steps, the
    cosine of the k-th of them: (1 - cos(pi k / N)) / 2, or as published 1 - cos(pi k / 2N) (`anneal_by`: half, quarter)."""
    if config.switch_to_mu_at is not None:
        return float(step >= config.switch_to_mu_at)
    if config.anneal_to_mu is not None:
        k = min(max(step + 1 - (config.steps - config.anneal_to_mu), 0), config.anneal_to_mu)
        if config.anneal_by == "quarter":
            return 1.0 if k == config.anneal_to_mu else 1 - math.cos(math.pi * k / (2 * config.anneal_to_mu))
        return 0.5 - 0.5 * math.cos(math.pi * k / config.anneal_to_mu)
    return 0.0
