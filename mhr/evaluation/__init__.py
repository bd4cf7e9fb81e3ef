"""How good a model is on a task collection: ranking, generation, metrics, and loading whatever can be evaluated."""

from __future__ import annotations

from mhr.evaluation.choice_scores import choice_scorer
from mhr.evaluation.evaluate import evaluate
from mhr.evaluation.fold_bank import fold_bank
from mhr.evaluation.generation import Generated, generate_answers
from mhr.evaluation.inference import Inference
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.loading import load_model
from mhr.evaluation.ranked import Ranked
from mhr.evaluation.ranking import rank_choices
from mhr.evaluation.result import EvaluationResult, Prediction
from mhr.evaluation.score import score, score_in_harness
from mhr.runs.scoring import INFERENCE, METRICS

__all__ = [
    "INFERENCE",
    "METRICS",
    "EvaluationResult",
    "Generated",
    "Inference",
    "LoadedModel",
    "Prediction",
    "Ranked",
    "choice_scorer",
    "evaluate",
    "fold_bank",
    "generate_answers",
    "load_model",
    "rank_choices",
    "score",
    "score_in_harness",
]
