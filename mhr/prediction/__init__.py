"""Prediction: a model at a path, asked texts, the rows of a file, or in a chat. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhr.lazy import lazy

_HOME = {
    "Answer": "mhr.prediction.predictor",
    "Chat": "mhr.prediction.chat",
    "PredictConfig": "mhr.prediction.settings",
    "Predictor": "mhr.prediction.predictor",
    "answer_into": "mhr.prediction.files",
    "load": "mhr.prediction.predictor",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from mhr.prediction.chat import Chat
    from mhr.prediction.files import answer_into
    from mhr.prediction.predictor import Answer, Predictor, load
    from mhr.prediction.settings import PredictConfig

__getattr__ = lazy(__name__, _HOME)
