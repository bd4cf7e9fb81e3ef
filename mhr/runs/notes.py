"""What runs are told by, in words: warnings in run.json and adapt.json that a reader has to see, and how many shots adaptations had."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any


def notes_of(described: Mapping[str, Any]) -> list[str]:
    """One line for each reason for which tasks could not be used, with their number and the first of them, one for modules that
    began at random, and one for each damaged checkpoint that a resumed run went past."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for task, reason in (described.get("left_out") or {}).items():
        tasks[reason].append(repr(task))
    notes = [_left_out(names, reason) for reason, names in tasks.items()]
    drawn = described.get("new_modules") or []
    if drawn:
        notes.append(
            f"drawn at random, as the base model's checkpoint lacks them, and trained with the rest: {', '.join(drawn)}"
        )
    return [*notes, *(described.get("skipped") or [])]


def best_line(info: Mapping[str, Any]) -> str | None:
    """What a run says of its validations: which was the best, and whose weights it kept; None where there were none."""
    best = info.get("best")
    if not best:
        return None
    score = "" if best["score"] is None else f", score {100 * best['score']:.1f} %"
    asked = (info.get("config") or {}).get("train", {}).get("steps", info["steps"])
    ended = f" of {asked}, where it stopped early" if info["steps"] < asked else ""
    result = "which is the result" if best["kept"] else f"the result is step {info['steps']}{ended}"
    end = f"; training ended after step {info['steps']}{ended}" if best["kept"] and ended else ""
    return f"best validation: step {best['step']} (loss {best['loss']:.4f}{score}), {result}{end}"


def shots_in_words(numbers: Iterable[int]) -> str:
    """How many shots several adaptations had: "32 shots", or "8 to 50 shots"; "" for none."""
    known = sorted({number for number in numbers if number})
    return f"{' to '.join(map(str, dict.fromkeys([known[0], known[-1]])))} shots" if known else ""


def _left_out(names: list[str], reason: str) -> str:
    if len(names) == 1:
        return f"task {names[0]} was left out: {reason}"
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} tasks were left out ({', '.join(names[:4])}{rest}): {reason}"
