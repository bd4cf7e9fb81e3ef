"""Rouge-L in every script: rouge-score's own figures on Latin text, and figures that mean something on all others."""

from __future__ import annotations

import unicodedata

import pytest
from rouge_score.rouge_scorer import RougeScorer

from mhr.evaluation.metrics import exact_match, rouge_l
from mhr.evaluation.scripts import ScriptTokenizer

LATIN = [
    ("The quick brown foxes were running", "A quick brown fox runs"),
    ("COVID-19, in 2020!", "covid 19 of 2020"),
    ("Die schöne Straße", "Die schönen Straßen"),
    ("le café est fermé", "le cafe est ferme"),
    (unicodedata.normalize("NFD", "où est le café"), "où est le café"),
    ("İstanbul'da ılık", "istanbul da ilik"),
    ("x_1 = y² + ½", "x 1 = y + 1"),
    ("tiếng Việt", "tieng Viet"),
    ("", "a"),
    ("!?", "..."),
    ("ﬁne ａｂｃ", "fine abc"),
]

TOKENS = [
    ("今天天气很好", list("今天天气很好")),
    ("東京タワーへ行く。", list("東京タワーへ行く")),
    ("한국어 문장", list("한국어문장")),
    ("ไปตลาด", ["ไ", "ป", "ต", "ล", "า", "ด"]),
    ("आज मौसम अच्छा है।", ["आज", "मौसम", "अच्छा", "है"]),
    ("الطقس جميل، اليوم", ["الطقس", "جميل", "اليوم"]),
    ("می‌روم خانه", ["می‌روم", "خانه"]),
    ("Сегодня ХОРОШАЯ погода", ["сегодня", "хорошая", "погода"]),
    ("καλή μέρα", ["καλή", "μέρα"]),
    ("שלום עולם", ["שלום", "עולם"]),
    ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
    ("COVID-19疫情 in 2020年", ["covid", "19", "疫", "情", "in", "2020", "年"]),
    ("५ किताबें", ["५", "किताबें"]),
    ("🙂 да", ["да"]),
]


@pytest.mark.parametrize(("answer", "target"), LATIN)
def test_latin_text_has_the_figures_of_rouge_score(answer: str, target: str) -> None:
    published = RougeScorer(["rougeL"], use_stemmer=True).score(target, answer)["rougeL"].fmeasure
    assert rouge_l(answer, [target]) == published


@pytest.mark.parametrize(("text", "tokens"), TOKENS)
def test_tokens_of_every_script(text: str, tokens: list[str]) -> None:
    assert ScriptTokenizer().tokenize(text) == tokens
    assert ScriptTokenizer().tokenize(unicodedata.normalize("NFD", text)) == tokens


def test_an_answer_that_shares_words_scores_between_nothing_and_all() -> None:
    assert rouge_l("今天天气很好我们去公园", ["今天天气很好我们去公园吧"]) == pytest.approx(2 * 11 / (11 + 12))
    assert rouge_l("आज मौसम अच्छा है", ["आज मौसम बहुत अच्छा है"]) == pytest.approx(2 * 4 / (4 + 5))
    assert rouge_l("сегодня дождь", ["завтра снег", "сегодня снег"]) == pytest.approx(0.5)
    assert rouge_l("明日", ["今天"]) == 0


def test_exact_match_is_what_it_was() -> None:
    assert exact_match("今天。", ["今天"]) == 0.0
    assert exact_match("Да!", ["да"]) == 1.0
