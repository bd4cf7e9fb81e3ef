"""Metrics against cases worked out by hand."""

from __future__ import annotations

import pytest

from mhr.data import Example
from mhr.evaluation.metrics import exact_match, majority_answer, majority_baseline, normalize, rouge_l


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Cat.\n", "the cat"),
        ("an apple", "an apple"),  # articles stay
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("[]", "[]"),  # nothing but punctuation stays as it is
        (" + ", "+"),
        ("", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("prediction", "targets", "expected"),
    [
        ("yes.", ("Yes",), 1.0),
        ("yes", ("no", "YES!"), 1.0),
        ("yes it is", ("yes",), 0.0),
        ("", ("[]",), 0.0),
        ("-", ("+",), 0.0),
        ("the cat", ("cat",), 0.0),
    ],
)
def test_exact_match(prediction: str, targets: tuple[str, ...], expected: float) -> None:
    assert exact_match(prediction, targets) == expected


@pytest.mark.parametrize(
    ("prediction", "targets", "expected"),
    [
        # Longest common subsequence "the sat" of 3 and 4 words: precision 2/3, recall 2/4.
        ("the dog sat", ("the cat sat down",), 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        ("the dog sat", ("zebra", "the dog sat"), 1.0),
        ("running dogs", ("run dog",), 1.0),  # stemmed
        ("[]", ("[]",), 1.0),
        ("", ("word",), 0.0),
    ],
)
def test_rouge_l(prediction: str, targets: tuple[str, ...], expected: float) -> None:
    assert rouge_l(prediction, targets) == pytest.approx(expected)


def test_majority_is_learnt_from_training_examples_and_measured_elsewhere() -> None:
    train = [Example("t", "", (answer,)) for answer in ("b", "a", "a", "b", "c")]
    assert majority_answer(train) == "b"  # the earliest of equals
    assert majority_baseline(train, [("b", "z"), ("a",), ("B.",), ("c",)]) == 0.5
    assert majority_baseline([], [("b",)]) is None
