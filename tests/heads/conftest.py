"""Tasks for models with heads: two and three classes, a number, and choices that vary."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from mhr.runs import RunConfig, load_config
from tests.architectures import build

Recipe = Callable[..., RunConfig]

WORDS = ("red", "blue", "green", "black")


def rows_of(task: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a task: "two" and "three" have classes, "number" a number, "pick" choices that vary by example."""
    draw = random.Random(f"{task} {seed}")
    rows = []
    for i in range(n):
        word = draw.choice(WORDS)
        place = WORDS.index(word)
        row: dict[str, Any] = {"task": task, "input": f"{word} {i}"}
        if task.startswith("two"):
            row |= {"targets": ("no", "yes")[place % 2], "choices": ["no", "yes"]}
        elif task.startswith("three"):
            row |= {"targets": "abc"[place % 3], "choices": list("abc")}
        elif task.startswith("number"):
            row |= {"targets": str(place / 2 + i / 64)}
        else:
            other = WORDS[(place + 1 + i % 3) % 4]
            row |= {"targets": word, "choices": sorted([word, other])}
        rows.append(row)
    return rows


@pytest.fixture
def write_tasks(tmp_path: Path) -> Callable[..., str]:
    """A file of tasks: 24 training and 8 test rows each; `held` ones are held out."""

    def write(*tasks: str, held: tuple[str, ...] = (), name: str = "tasks.jsonl") -> str:
        path = tmp_path / name
        with open(path, "w", encoding="utf-8") as file:
            for task in (*tasks, *held):
                for i, row in enumerate(rows_of(task, 32)):
                    file.write(
                        json.dumps({**row, "split": "train" if i < 24 else "test", "held_out": task in held}) + "\n"
                    )
        return str(path)

    return write


@pytest.fixture
def recipe(
    backbone: Callable[..., str], write_tasks: Callable[..., str], small_and_quick: None
) -> Callable[..., RunConfig]:
    """Settings of a tiny run of an encoder on tasks."""

    def make(*tasks: str, held: tuple[str, ...] = (), model: str = "bert", **flags: Any) -> RunConfig:
        defaults: dict[str, Any] = {
            "steps": 4,
            "batch_size": 8,
            "lr": 1e-2,
            "n_heads": 2,
            "n_skills": 2,
            "rank": 2,
            "log_every": 1,
            "save_every": 100,
            "max_input_length": 24,
            "max_target_length": 8,
            "adapt.steps": 4,
            "adapt.shots": 8,
            "adapt.seeds": [13],
            "adapt.lr": 1e-2,
        }
        if flags.get("method") in ("full", "adamix", "lora"):
            defaults = {key: value for key, value in defaults.items() if key not in ("n_heads", "n_skills", "rank")}
        return load_config(model=backbone(model), tasks=write_tasks(*tasks, held=held), **{**defaults, **flags})

    return make


@pytest.fixture
def recipe_for(write_tasks: Callable[..., str], tmp_path: Path, small_and_quick: None) -> Callable[[str], RunConfig]:
    """Settings of a run on an architecture, whose folder holds the encoder or decoder without a head."""

    def make(name: str, **flags: object) -> RunConfig:
        folder = tmp_path / name
        kind = "causal" if name in ("llama", "gpt2") else "classifier"
        model = build(kind, name)
        model.resize_token_embeddings(384, mean_resizing=False)
        (model.base_model if kind == "classifier" else model).save_pretrained(folder)
        ByT5Tokenizer().save_pretrained(folder)
        return load_config(
            model=str(folder),
            tasks=write_tasks("two", "three", held=("number",)),
            **{
                "steps": 3,
                "batch_size": 8,
                "lr": 1e-2,
                "n_heads": 2,
                "n_skills": 2,
                "rank": 2,
                "max_input_length": 24,
                "adapt.steps": 2,
                "adapt.shots": 8,
                "adapt.seeds": [13],
                "log_every": 1,
                **flags,
            },
        )

    return make
