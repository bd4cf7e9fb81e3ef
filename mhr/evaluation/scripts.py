"""Words of a text in any script, for Rouge-L.

rouge-score's own tokenizer knows the letters a-z and digits, and takes every other character for a gap. Its tokens of Latin text
stay as they are, so that figures can be compared; letters of other scripts become tokens beside them.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import regex

# Scripts that put no spaces between words, and Hangul, whose words carry their particles: one token a character, with its marks.
BY_CHARACTER = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\u30fc"
)

# Letters of one script and digits; those of Latin text, and letters that belong to no script (the micro sign), are rouge-score's.
_LETTER = r"[[\p{L}\p{Nd}]--[\p{Latin}0-9]--[\p{L}&&\p{Common}]]"
# Joiners inside a word (Persian, the scripts of India) are no gaps.
_MARK = r"[\p{M}\u200c\u200d]"
_TOKENS = regex.compile(
    rf"[[{BY_CHARACTER}]&&[\p{{L}}\p{{N}}\u30fc]]{_MARK}*"
    rf"|[{_LETTER}--[{BY_CHARACTER}]](?:[{_LETTER}--[{BY_CHARACTER}]]|{_MARK})*",
    flags=regex.VERSION1,
)


class ScriptTokenizer:
    """The tokenizer that a `RougeScorer` takes: stemmed tokens of rouge-score for what is written in Latin letters and digits, single
    characters for scripts without spaces (Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese, Tibetan), and whole words, in lower
    case, for all others. A text with any such letter is brought to the normal form NFC first.
    """

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, in their order."""
        latin = _latin()
        if _TOKENS.search(text) is None:
            return latin.tokenize(text)
        text = unicodedata.normalize("NFC", text).lower()
        tokens: list[str] = []
        end = 0
        for found in _TOKENS.finditer(text):
            tokens += [*latin.tokenize(text[end : found.start()]), found.group()]
            end = found.end()
        return tokens + latin.tokenize(text[end:])


@cache
def _latin() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)
