"""The built-in suite: procedural tasks that compose a small set of known skills. Seeded, without files.

A task is a chain of two skills of different kinds, always in this order:

    transform  string -> string        rev next swap rotl rotr init tail sort
    readout    string -> short answer  first second last max min vow asc
    render     answer -> how it is written       upper twice place box

Its name joins the skills ("rev-last"), its input names them before a string of 3 to 6 letters of an alphabet of eight
("rev last: bcdh"), and its target is what the chain makes of the string ("b"). Since every skill is shared by many
training tasks, and held-out tasks only recombine seen skills, the suite can tell whether routing found the skills, and
whether a new composition is learnt from few examples.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import Literal

from mhr.data.example import Example, Task, TaskCollection
from mhr.errors import ConfigError, TaskError, nearest

ALPHABET = "abcdefgh"
LENGTHS = (3, 4, 5, 6)
N_STRINGS = sum(len(ALPHABET) ** n for n in LENGTHS)
VOWELS = "ae"

_LETTERS = tuple(ALPHABET)
_NUMBERS = tuple(str(n) for n in range(max(LENGTHS) + 1))
_YES_NO = ("no", "yes")


@dataclass(frozen=True, slots=True)
class Skill:
    """One step of a chain. `words` say what it does; `answers` is what a read-out can say, empty for the two other kinds."""

    name: str
    kind: Literal["transform", "readout", "render"]
    words: str
    apply: Callable[[str], str]
    answers: tuple[str, ...] = ()


def _shift(text: str, by: int) -> str:
    return "".join(ALPHABET[(ALPHABET.index(c) + by) % len(ALPHABET)] for c in text)


SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("rev", "transform", "reverse the letters", lambda s: s[::-1]),
        Skill("next", "transform", "replace each letter by the next one of the alphabet", lambda s: _shift(s, 1)),
        Skill("swap", "transform", "swap the first and the last letter", lambda s: s[-1] + s[1:-1] + s[0]),
        Skill("rotl", "transform", "move the first letter to the end", lambda s: s[1:] + s[0]),
        Skill("rotr", "transform", "move the last letter to the front", lambda s: s[-1] + s[:-1]),
        Skill("init", "transform", "leave out the last letter", lambda s: s[:-1]),
        Skill("tail", "transform", "leave out the first letter", lambda s: s[1:]),
        Skill("sort", "transform", "sort the letters", lambda s: "".join(sorted(s))),
        Skill("first", "readout", "give the first letter", lambda s: s[0], _LETTERS),
        Skill("second", "readout", "give the second letter", lambda s: s[1], _LETTERS),
        Skill("last", "readout", "give the last letter", lambda s: s[-1], _LETTERS),
        Skill("max", "readout", "give the greatest letter", lambda s: max(s), _LETTERS),
        Skill("min", "readout", "give the least letter", lambda s: min(s), _LETTERS),
        Skill("vow", "readout", "count the vowels", lambda s: str(sum(c in VOWELS for c in s)), _NUMBERS),
        Skill(
            "asc",
            "readout",
            "say whether the first letter comes before the last",
            lambda s: _YES_NO[s[0] < s[-1]],
            _YES_NO,
        ),
        Skill("upper", "render", "write it in capitals", lambda s: s.upper()),
        Skill("twice", "render", "write each letter twice", lambda s: "".join(c + c for c in s)),
        Skill(
            "place",
            "render",
            "write each letter as its place in the alphabet",
            lambda s: "".join(str(ALPHABET.index(c) + 1) for c in s),
        ),
        Skill("box", "render", "put it in brackets", lambda s: f"[{s}]"),
    )
}


def skills_of(task_name: str) -> tuple[str, ...]:
    """The skills that a task of the suite composes, in the order they apply: "rev-last" -> ("rev", "last").

    Raises TaskError where the name is no chain of known skills.
    """
    names = tuple(task_name.split("-"))
    for name in names:
        if name not in SKILLS:
            raise TaskError(
                f"{task_name!r} is no task of the skills suite: unknown skill {name!r}; {nearest(name, SKILLS)}"
            )
    return names


def solve(skills: tuple[str, ...], text: str) -> str:
    """What the chain of skills makes of `text`."""
    for name in skills:
        text = SKILLS[name].apply(text)
    return text


def choices_of(skills: tuple[str, ...]) -> tuple[str, ...]:
    """Every answer that the chain can give, as it is written; empty where it has no read-out (free generation)."""
    answers: tuple[str, ...] = ()
    for name in skills:
        answers = SKILLS[name].answers or tuple(SKILLS[name].apply(a) for a in answers)
    return answers


def define(skills: tuple[str, ...]) -> str:
    """What a chain asks for: ("rev", "last") -> "Of a string, reverse the letters, then give the last letter."."""
    return f"Of a string, {', then '.join(SKILLS[name].words for name in skills)}."


def draw_examples(skills: tuple[str, ...], seed: int = 0) -> Iterator[Example]:
    """Examples of one chain, always the same for a seed, no string twice, until all 299,520 are drawn.

    Of four random strings the one with the rarest answer so far is kept, so that no answer dominates.
    """
    task = "-".join(skills)
    choices = choices_of(skills)
    rng = random.Random(f"{task}/{seed}")
    seen: set[str] = set()
    given: Counter[str] = Counter()
    while len(seen) < N_STRINGS:
        drawn = ["".join(rng.choices(ALPHABET, k=rng.choice(LENGTHS))) for _ in range(4)]
        fresh = [s for s in drawn if s not in seen]
        if not fresh:
            continue
        text = min(fresh, key=lambda s: given[solve(skills, s)])
        answer = solve(skills, text)
        seen.add(text)
        given[answer] += 1
        yield Example(task, f"{' '.join(skills)}: {text}", (answer,), choices, f"{task}-{len(seen)}")


def _of_kind(kind: str) -> list[str]:
    return [s.name for s in SKILLS.values() if s.kind == kind]


def _fits(render: str, readout: str) -> bool:
    """Whether a rendering suits a read-out's answers: `place` and `twice` are for letters, `upper` not for digits."""
    answers = SKILLS[readout].answers
    if answers is _LETTERS or render == "box":
        return True
    return render == "upper" and answers is _YES_NO


@cache
def compositions() -> dict[tuple[str, ...], bool]:
    """Every chain of the suite, mapped to whether it is held out.

    A transform and a read-out make a chain where the transform changes at least a fifth of the answers (the greatest
    letter is the same in a reversed string) and no answer is nearly constant (a sorted string always ascends). Held
    out is about every fifth chain along the diagonals of each grid, which leaves every skill in many training tasks.
    """
    transforms, readouts, renders = _of_kind("transform"), _of_kind("readout"), _of_kind("render")
    rng = random.Random(0)
    probe = ["".join(rng.choices(ALPHABET, k=rng.choice(LENGTHS))) for _ in range(200)]

    def worthwhile(transform: str, readout: str) -> bool:
        answers = [solve((transform, readout), s) for s in probe]
        changed = sum(a != solve((readout,), s) for a, s in zip(answers, probe, strict=True))
        return changed >= len(probe) // 5 and max(Counter(answers).values()) <= len(probe) * 4 // 5

    found: dict[tuple[str, ...], bool] = {}
    for i, t in enumerate(transforms):
        for j, r in enumerate(readouts):
            if worthwhile(t, r):
                found[t, r] = (i + 2 * j) % 5 == 0
    for j, r in enumerate(readouts):
        for k, f in enumerate(renders):
            if _fits(f, r):
                found[r, f] = (j + 2 * k) % 5 == 0
    for i, t in enumerate(transforms):
        for k, f in enumerate(renders):
            found[t, f] = (i + 2 * k) % 5 == 0
    return found


def skills_suite(seed: int = 0, train_per_task: int = 400, test_per_task: int = 100) -> TaskCollection:
    """The suite as a collection: training compositions, then held-out compositions of the same skills.

    The strings of a task's "test" examples never occur among its "train" examples. Raises ConfigError for negative
    sizes.
    """
    if min(train_per_task, test_per_task) < 0:
        raise ConfigError(
            f"train_per_task and test_per_task must be 0 or more, got {train_per_task} and {test_per_task}"
        )
    made = _suite(seed, train_per_task, test_per_task)
    tasks = [dataclasses.replace(task, train=list(task.train), test=list(task.test)) for task in made]
    return TaskCollection(tasks, "builtin:skills")


@lru_cache(maxsize=2)
def _suite(seed: int, train_per_task: int, test_per_task: int) -> list[Task]:
    """The tasks, made once: a job of several stages reads the suite again and again, which takes half a second each time."""
    tasks = []
    for skills, held_out in sorted(compositions().items(), key=lambda item: item[1]):
        stream = draw_examples(skills, seed)
        test = list(islice(stream, test_per_task))
        train = list(islice(stream, train_per_task))
        name = "-".join(skills)
        category = "-".join(SKILLS[s].kind for s in skills)
        tasks.append(Task(name, train, test, held_out, category, choices_of(skills), definition=define(skills)))
    return tasks
