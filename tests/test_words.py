"""The field's words: invented phrases are not used where machine learning has a term."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {
    r"trained numbers|trains? (\S+ )?(as many|fewer) numbers|(adapter|bank|model)'s numbers": "parameters, parameter-matched",
    r"updates? of the weights": "weight updates, or optimizer steps",
    r"optimis(er|ation)s?": "optimizer, optimization",
    r"we[ei]gh(s|ed|ing)? alike": "uniform weights",
    r"(greatest|largest) norm of (the|a|all) gradients?": "maximum gradient norm",
    r"(best|first|last) looks?|looks? out for|looks? for the best (step|score)": "evaluation, early-stopping patience",
    r"(chosen|chooses?|choosing) on\b(?! (the|its) way)": "validation examples",
    r"los(es?|t|ing) (its|their|the) ends?\b": "truncated",
    r"(is|are|was|were|be|being) cut\b(?! into)": "truncated",
    r"whole numbers?": "integer",
    r"(expected|hold|lacks) a text|texts? as a type": "string",
    r"(number by number|element by element)": "elementwise",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"faults? of ours": "bug",
    r"(every|no|the first|all) faults?\b": "error",
    r"(loss|level) of guessing": "chance-level loss",
    r"(be|are|is) told apart|cannot be told": "no significant difference, or distinguished",
    r"(not|are|is) surely": "significantly",
    r"\bknobs?\b": "hyperparameter",
    r"\banew\b": "again",
}
EXEMPT = {
    "tests/test_words.py",  # lists them
    "CHANGELOG.md",  # history
}
FOLDERS = ("mhr", "cli", "benchmarks", "docs", "examples", "tests", ".ci")


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        for ending in ("py", "md", "html", "yaml"):
            yield from (ROOT / folder).rglob(f"*.{ending}")
    for pattern in ("*.py", "*.md", "Makefile"):
        yield from ROOT.glob(pattern)


def texts() -> dict[str, str]:
    names = ((path.relative_to(ROOT).as_posix(), path) for path in sources())
    return {
        name: path.read_text("utf-8")
        for name, path in names
        if name not in EXEMPT and not name.startswith(("benchmarks/results/", "tests/artifacts/"))
    }


TEXTS = texts()


@pytest.mark.parametrize(("phrase", "term"), WORDS.items(), ids=list(WORDS.values()))
def test_a_phrase_is_not_used_where_there_is_a_term(phrase: str, term: str) -> None:
    pattern = re.compile(rf"\b(?:{phrase})", re.IGNORECASE)
    found = [
        f"{name}:{number}: {match[0]!r}: say {term}"
        for name, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in pattern.finditer(line)
    ]
    assert not found, "\n".join(found)


def test_the_source_is_read() -> None:
    assert {"README.md", "mhr/errors.py", "cli/main.py", "docs/data.md", "Makefile"} <= TEXTS.keys()
