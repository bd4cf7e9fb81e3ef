"""Names of splits as people write them: train_r1, validation_matched, TASK_test, train-00000-of-00004."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

SPLITS = {
    "train": ("train", "training", "trn", "trainset"),
    "validation": (
        "validation",
        "valid",
        "val",
        "validate",
        "dev",
        "devel",
        "development",
        "eval",
        "evaluation",
        "devset",
    ),
    "test": ("test", "tests", "testing", "tst", "heldout", "testset"),
}
"""What a split is for, and the words that say so."""

_WORDS = {word: split for split, words in SPLITS.items() for word in words}

_QUALIFIER = re.compile(
    r"\d+|[rv]\d+|sft|gen|prefs|matched|mismatched|final|all|full|small|mini|large|clean|new|set|split|splits|data|file|"
    r"public|private|labell?ed|part|shard|chunk"
)
"""Words beside a split's that do not name a task."""

_SHARD = re.compile(r"[-_.]?(?:\d+-of-\d+(?:-[0-9a-f]{8,})?|(?:part|shard|chunk)[-_.]?\d+|(?<=[-_.])0\d{3,}|^\d+)$")
"""The number of a file among those that hold one split together."""


@dataclass(frozen=True, slots=True)
class Named:
    """The parts of a file's name: the task ("" where it names none), the split ("" likewise), the words that qualify the split."""

    task: str
    split: str
    leading: bool = False


@lru_cache  # rows name the same few
def split_of(name: str) -> str | None:
    """ "train", "validation" or "test" for a name of a split; None for one that says none of them, or several."""
    found = {_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def part_of(*names: str) -> str:
    """ "matched" or "mismatched", the parts of MNLI's splits, in the first of the names that has one of the words; otherwise ""."""
    found = (re.search(r"(?<![a-z])(?:mis)?matched(?![a-z])", name.lower()) for name in names)
    return next((word.group() for word in found if word), "")


def read_name(stem: str) -> Named:
    """The task and split in a file's name, without its ending.

    Raises ValueError where it holds the words of several splits ("train_val").
    """
    whole = _SHARD.sub("", stem)
    words = list(re.finditer(r"[^-_. ]+", whole))
    which = [(i, _WORDS[w.group().lower()]) for i, w in enumerate(words) if w.group().lower() in _WORDS]
    if len({split for _, split in which}) > 1:
        raise ValueError(stem)
    if not which:
        return Named(whole, "")
    at, split = which[0]
    before = whole[: words[at].start()].strip("-_. ")
    rest = [w for w in words[at + 1 :] if w.group().lower() not in _WORDS]
    after = [w for w in rest if not _QUALIFIER.fullmatch(w.group().lower())]
    behind = whole[after[0].start() : after[-1].end()] if after else ""
    return Named("_".join(filter(None, [before, behind])), split, leading=not before)
