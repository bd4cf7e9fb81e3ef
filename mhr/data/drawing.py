"""Which examples of a task a seed picks: for evaluation, each label by its share, and as shots."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence

from mhr.data.example import Example


def draw_order(examples: Sequence[Example], task: str, seed: int) -> list[Example]:
    """The examples in an order any beginning of which is a fair sample.

    Example i of the n that share a first target, in random order, stands at (i + u) / n, with u uniform in [0, 1) and drawn
    once for each target. So the first m of N hold every label by its share, up to one (systematic stratified sampling,
    proportional, so that accuracy on them estimates that on all); where all targets differ this is a plain shuffle. Parts of a
    split have shares of their own.
    The order depends on the task's name, the seed and the examples alone.
    """
    by_target: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        by_target[example.targets[0], example.part].append(example)
    rng = random.Random(f"{task}/{seed}/test")
    placed: list[tuple[float, int, Example]] = []
    for same in by_target.values():
        rng.shuffle(same)
        u = rng.random()
        placed += [((i + u) / len(same), len(placed) + i, e) for i, e in enumerate(same)]
    return [e for _, _, e in sorted(placed, key=lambda p: p[:2])]


def shot_order(examples: Sequence[Example], task: str, seed: int) -> list[Example]:
    """The examples in the order in which a seed draws shots: by SHA-256("seed/task/id/input"), whatever order they came in."""

    def rank(example: Example) -> bytes:
        return hashlib.sha256(f"{seed}/{task}/{example.id}/{example.input}".encode()).digest()

    return sorted(examples, key=rank)


def hold_out(examples: Sequence[Example], n: int, task: str, seed: int) -> tuple[list[Example], list[Example]]:
    """(the others in their own order, at most n drawn ones). Examples with the same input stay on one side, unless so many repeat
    that less than half of n could be drawn: then each is drawn by itself."""
    same: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        same[example.input].append(example)
    order = draw_order(examples, task, seed)
    drawn: list[Example] = []
    taken: set[str] = set()
    for example in order:
        if example.input not in taken and len(drawn) + len(same[example.input]) <= n:
            drawn += same[example.input]
            taken.add(example.input)
    if 2 * len(drawn) < n:
        drawn = order[:n]
    out = set(map(id, drawn))
    return [e for e in examples if id(e) not in out], drawn
