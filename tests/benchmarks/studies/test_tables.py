"""The table of the study, from scores that are easy to average by hand."""

from __future__ import annotations

from typing import Any

from mhr_benchmarks.studies.tables import study_table


def scores(category: str, majority: float, **by_seed: float) -> dict[str, dict[str, Any]]:
    return {
        seed.removeprefix("s"): {"category": category, "score": value, "majority": majority}
        for seed, value in by_seed.items()
    }


def test_means_over_categories_and_spread_over_seeds() -> None:
    adapted = {
        "one": scores("words", 0.5, s1=0.9, s2=0.7),
        "two": scores("words", 0.3, s1=0.5, s2=0.5),
        "three": scores("numbers", 0.2, s1=0.1, s2=0.3),
    }
    zero = {
        "one": scores("words", 0.5, sNone=0.4),
        "two": scores("words", 0.3, sNone=0.2),
        "three": scores("numbers", 0.2, sNone=0.0),
    }
    record = {
        "backbone": "t5-tiny",
        "command": "python -m mhr_benchmarks.studies.real_tasks",
        "machine": {"cpu": "a CPU", "threads": 1, "commit": "abc"},
        "seconds": {"all": 90.0},
        "plan": {"seeds": [1, 2]},
        "scores": {"32-shot mhr-z": adapted, "zero-shot mhr": zero},
        "runs": {"adapted mhr-z": {"parameters": {"trained": 12}}, "pretrained mhr": {"parameters": {"trained": 99}}},
    }
    lines = study_table(record).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| category"))
    assert lines[start:] == [
        "| category (tasks) | majority | zero-shot mhr | 32-shot mhr-z |",
        "|---|---|---|---|",
        # The spread is that of two numbers: their difference / sqrt(2).
        "| numbers (1) | 20.0 | 0.0 | 20.0 ± 14.1 |",
        "| words (2) | 40.0 | 30.0 | 65.0 ± 7.1 |",
        "| mean over categories (3) | 30.0 | 15.0 | 42.5 ± 3.5 |",
        "| trained parameters |  | 99 | 12 |",
    ]
    assert "2 minutes" in lines[4]
