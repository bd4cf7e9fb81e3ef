"""The page of the merging study, from scores that are easy to average by hand."""

from __future__ import annotations

from typing import Any

from mhr_benchmarks.studies.merging_page import page

TASKS = ["task1_alpha_classification", "task2_beta"]


def scores(alpha: dict[str, float], beta: dict[str, float]) -> dict[str, dict[str, Any]]:
    return {
        task: {seed: {"score": score, "majority": 0.5, "n": 100} for seed, score in own.items()}
        for task, own in zip(TASKS, (alpha, beta), strict=True)
    }


def test_rows_stand_in_their_sections() -> None:
    alone = scores({"1": 0.9, "2": 0.7}, {"1": 0.5, "2": 0.5})
    record = {
        "command": "python -m mhr_benchmarks.studies.merging",
        "machine": {"cpu": "a CPU", "threads": 1, "commit": "abc"},
        "seconds": {"all": 90.0},
        "plan": {
            "tasks": TASKS,
            "seeds": [1, 2],
            "n_train": 300,
            "steps": 1,
            "batch": 8,
            "precision": "bf16",
            "updates": [["AdaMix", [10, 0.002], [20, 0.001]]],
        },
        "scores": {
            "AdaMix, each task alone": alone,
            "AdaMix, each task alone: per token": scores({"1": 0.6, "2": 0.6}, {"1": 0.4, "2": 0.4}),
            "LoRA, each task alone": alone,
            "LoRA, all tasks at once": alone,
            "LoRA, soup-uniform of the seeds": scores({"None": 1.0}, {"None": 0.5}),
        },
        "runs": {
            "AdaMix, alone": {"parameters": {"trained": 4321}},
            "LoRA, alone": {"parameters": {"trained": 1234}},
            "LoRA, together": {"parameters": {"trained": 1234}},
        },
    }
    text = page(record)
    sections = {part.partition("\n")[0]: part.strip().splitlines()[4:] for part in text.split("\n## ")[1:]}
    alone_row = "each task alone | 80.0 ± 14.1 | 50.0 ± 0.0 | 65.0 ± 7.1"
    assert sections["Trained on each task alone"] == [
        f"| AdaMix, {alone_row} | 4,321 |",
        f"| LoRA, {alone_row} | 1,234 |",
    ]
    assert sections["AdaMix at inference"][1] == (
        "| AdaMix, each task alone: per token | 60.0 ± 0.0 | 40.0 ± 0.0 | 50.0 ± 0.0 |  |"
    )
    assert sections["Merging the seeds of each task"] == [
        f"| LoRA, {alone_row} | 1,234 |",
        "| LoRA, soup-uniform of the seeds | 100.0 | 50.0 | 75.0 |  |",
    ]
    assert "| | 1 alpha | 2 beta | mean | trained |" in text
    assert "50 on 1 alpha, 50 on 2 beta" in text
