"""Tiny random models that answer, with a bank for three tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mhr.data.reading import ReadOptions
from mhr.prediction import Predictor
from tests.evaluation.conftest import Ask, ask

__all__ = ["ask"]

Predict = Callable[..., Predictor]


@pytest.fixture
def predictor(ask: Ask) -> Predict:
    """predictor(name, routed=True): what answers with the model of that name."""

    def make(name: str, routed: bool = True) -> Predictor:
        return Predictor(ask(name, routed), ReadOptions())

    return make
