"""The page of the AdaMix study, from scores that are easy to average by hand."""

from __future__ import annotations

from typing import Any

from mhr_benchmarks.studies.adamix_page import page

TASKS = ["task1_alpha_classification", "task2_beta"]


def scores(alpha: dict[str, float], beta: dict[str, float]) -> dict[str, dict[str, Any]]:
    return {
        task: {seed: {"accuracy": score, "majority": 0.5, "n": 235} for seed, score in own.items()}
        for task, own in zip(TASKS, (alpha, beta), strict=True)
    }


def record() -> dict[str, Any]:
    one = scores({"1": 0.9, "2": 0.7}, {"1": 0.5, "2": 0.5})
    return {
        "command": "python -m mhr_benchmarks.studies.adamix",
        "machine": {"cpu": "a CPU", "threads": 1, "commit": "abc"},
        "seconds": {
            "one bottleneck runs-10/a": 20.0,
            "one bottleneck runs-10/b": 40.0,
            "one bottleneck runs-30/a": 90.0,
            "one bottleneck, twice the steps runs-10/a": 60.0,
            "AdaMix runs-10/a": 80.0,
            "not sharing runs-10/a": 80.0,
        },
        "plan": {
            "tasks": TASKS,
            "long_tasks": TASKS[1:],
            "trial_tasks": ["task9"],
            "trial_seed": 7,
            "trial_steps": 5,
            "seeds": [1, 2, 3],
            "n_train": 200,
            "steps": 10,
            "long_steps": 30,
            "batch": 8,
            "precision": "bf16",
        },
        "methods": {
            "one bottleneck": {"trials": {"0.001": 0.5, "0.002": 0.75}, "rate": "0.002", "longer": 1, "passes": 1,
                               "served_as": "one bottleneck", "once": False},
            "AdaMix": {"trials": {"0.001": 0.5, "0.002": 0.25}, "rate": "0.001", "longer": 1, "passes": 2,
                       "served_as": "one bottleneck", "once": False},
            "not sharing": {"trials": {"0.001": 0.5, "0.002": 0.25}, "rate": "0.001", "longer": 1, "passes": 2,
                            "served_as": "one bottleneck", "once": True},
        },
        "scores": {
            "trial one bottleneck at 0.001": {"task9": {"7": {"accuracy": 0.5}}},
            "one bottleneck": one,
            # Of the third seed one task is still to come.
            "AdaMix": scores({"1": 0.8, "2": 0.8, "3": 0.1}, {"1": 0.6, "2": 0.6}),
            "not sharing": scores({"1": 0.6}, {"1": 0.6}),
            "AdaMix: per sentence": scores({"1": 0.6, "2": 0.6}, {"1": 0.4, "2": 0.4}),
        },
        "runs": {
            "one bottleneck": {"parameters": {"trained": 1234}},
            "AdaMix": {"parameters": {"trained": 4321}},
            "not sharing": {"parameters": {"trained": 9999}},
        },
    }  # fmt: skip


def test_rows_average_the_seeds_that_are_whole() -> None:
    text = page(record())
    assert "2 of 3 seeds" in text
    assert "235 to 235 test examples" in text
    assert "training answer: 50.0." in text
    assert "| one bottleneck | 2 | 65.0 ± 7.1 |  | 0.002 | 10 | 10 | 1,234 | 1,234 | 30 |" in text
    assert "| AdaMix | 2 | 70.0 ± 0.0 | +5.0 ± 7.1 | 0.001 | 10 | 20 | 4,321 | 1,234 | 80 |" in text
    assert "| not sharing | 1 | 60.0 | -10.0 | 0.001 | 10 | 20 | 9,999 | 1,234 | 80 |" in text
    assert "| AdaMix: average | 70.0 ± 0.0 |\n| AdaMix: per sentence | 50.0 ± 0.0 |" in text
    assert "| | 1 alpha | 2 beta |" in text
    assert "| AdaMix | 80.0 ± 0.0 | 60.0 ± 0.0 |" in text
    assert "| one bottleneck | 50.0 | **75.0** |" in text
    assert "| AdaMix | **50.0** | 25.0 |" in text
    assert "After 30 steps" not in text


def test_longer_runs_have_a_table_once_they_are_done() -> None:
    known = record()
    for name in ("one bottleneck", "AdaMix", "not sharing"):
        known["scores"][f"{name}, 30 steps"] = {"task2_beta": {"1": {"accuracy": 0.75}}}
    text = page(known)
    assert "## After 30 steps\n\nSeed 1." in text
    assert "| AdaMix | 75.0 | 75.0 |" in text
