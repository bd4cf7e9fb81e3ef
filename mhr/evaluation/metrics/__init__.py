"""How good answers are: a registry of metrics over all answers to a task, and what they are made of."""

from __future__ import annotations

from mhr.evaluation.metrics import classification, generation, regression  # each registers its metrics
from mhr.evaluation.metrics.answers import exact_match, majority_answer, majority_baseline, mean, normalize, rouge_l
from mhr.evaluation.metrics.metric import Judged, Metric, Undefined, measures, metrics
