"""Metrics of generated texts, against one or more references each."""

from __future__ import annotations

from typing import Any

from mhr.evaluation.metrics.answers import exact_match, mean, rouge_l
from mhr.evaluation.metrics.metric import TEXT, Judged, Undefined, measures

ORDERS = 5
"""Longest n-grams of NIST."""


@measures("exact_match", TEXT)
def share_of_exact_matches(judged: Judged) -> float:
    """The share of answers that equal a reference but for case, ASCII punctuation and spaces."""
    return mean([exact_match(a, t) for a, t in zip(judged.answers, judged.targets, strict=True)])


@measures("rouge_l", TEXT, package="rouge-score")
def mean_rouge_l(judged: Judged) -> float:
    """The mean over answers of the greatest Rouge-L F-measure over the references."""
    return mean([rouge_l(a, t) for a, t in zip(judged.answers, judged.targets, strict=True)])


@measures("bleu", TEXT, package="sacrebleu")
def bleu(judged: Judged) -> float:
    """BLEU of the whole task, 0 to 1 (Papineni et al. 2002): n-grams up to 4, clipped by the reference that has most of each, the
    brevity penalty by the nearest lengths. It is sacrebleu's, with its defaults (13a tokens, case kept, exponential smoothing)."""
    from sacrebleu.metrics import BLEU

    most = max(map(len, judged.targets))
    # One stream a reference; sentences with fewer have none in the later ones.
    streams: list[Any] = [[t[i] if i < len(t) else None for t in judged.targets] for i in range(most)]
    return float(BLEU().corpus_score(list(judged.answers), streams).score) / 100


@measures("nist", TEXT, scored=False, package="nltk")
def nist(judged: Judged) -> float:
    """NIST of the whole task, 0 and up (Doddington 2002), over n-grams up to 5 of 13a tokens in lower case. It is nltk's, which
    takes the best reference of each answer, where mteval-v13a.pl counts the n-grams of all of them: with several references, values
    compare with each other and not with that script's."""
    from nltk.translate.nist_score import corpus_nist
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokens = Tokenizer13a()
    answers = [tokens(answer.lower()).split() for answer in judged.answers]
    references = [[tokens(target.lower()).split() for target in targets] for targets in judged.targets]
    if not any(map(any, references)):
        raise Undefined("no reference has a word")
    # Orders that no answer is long enough for add nothing; nltk divides by their number of n-grams.
    orders = min(ORDERS, max(map(len, answers)))
    return float(corpus_nist(references, answers, orders)) if orders else 0.0
