"""How good one answer is: exact match and Rouge-L as fractions from 0 to 1; and the majority baseline.

Texts are compared as the evaluation of Super-NaturalInstructions does (Tk-Instruct, `compute_metrics`), which is SQuAD 1.1's
normalisation without the removal of articles: lower case, no ASCII punctuation, single spaces.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from mhr.data.example import Example
from mhr.evaluation.scripts import ScriptTokenizer

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """The text in lower case, without ASCII punctuation, words parted by single spaces.

    A text that is nothing but punctuation ("[]", "+") stays as it is, stripped: otherwise all of them would be equal. There
    the original differs.
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split()) or text.strip()


def exact_match(prediction: str, targets: Sequence[str]) -> float:
    """1 where the normalised prediction equals a normalised target, otherwise 0."""
    answer = normalize(prediction)
    return float(any(answer == normalize(target) for target in targets))


def rouge_l(prediction: str, targets: Sequence[str]) -> float:
    """The greatest Rouge-L F-measure over the targets (package rouge-score), in any script: see `ScriptTokenizer`.

    On text in Latin letters it is rouge-score's own figure with Porter stemming, whose tokens are of the letters a-z and digits. Texts
    without a letter or digit score 0 unless they are identical.
    """
    if prediction in targets:
        return 1.0
    scorer = _rouge_scorer()
    return max(scorer.score(target, prediction)["rougeL"].fmeasure for target in targets)


def majority_answer(train: Sequence[Example]) -> str | None:
    """The answer that most training examples have first among their targets, the earliest of equals; None without any."""
    counts = Counter(example.targets[0] for example in train)
    return max(counts, key=counts.__getitem__) if counts else None


def majority_baseline(train: Sequence[Example], targets: Sequence[Sequence[str]]) -> float | None:
    """The exact match with `targets` of always giving the majority answer of `train`; None without training examples."""
    answer = majority_answer(train)
    return None if answer is None else mean([exact_match(answer, accepted) for accepted in targets])


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


@cache
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=ScriptTokenizer())
