"""Which tasks a run can use, and which shots a seed draws."""

from __future__ import annotations

import pytest
from transformers import ByT5Tokenizer

from mhr.data import Example, Task, TaskCollection
from mhr.errors import DataError
from mhr.few_shot.shots import draw_shots
from mhr.objectives.usable import usable_tasks
from mhr.runs.data_settings import DataConfig


def task(name: str, choices: tuple[str, ...] = (), length: int = 4, n: int = 3) -> Task:
    target = choices[0] if choices else "a"
    examples = [Example(name, f"{i}" * length, (target,), choices, f"{name}-{i}") for i in range(n)]
    return Task(name, examples, examples[:1], choices=choices)


TASKS = TaskCollection(
    [
        task("few", ("a", "b")),
        task("many", tuple("abcdef")),
        task("free"),
        task("long", ("a", "b"), 50),
        task("none", n=0),
    ]
)


def test_an_encoder_takes_tasks_with_choices_up_to_the_limit() -> None:
    kept, left_out = usable_tasks(TASKS, "encoder", ByT5Tokenizer(), DataConfig(max_choices=5))
    assert list(kept) == ["few", "long"]
    assert left_out["many"] == "it has 6 answer choices, more than max_choices 5"
    assert "no choices" in left_out["free"]
    assert "no training examples" in left_out["none"]


def test_fit_leaves_out_what_is_too_long_and_free_generation_passes_the_limit_of_choices() -> None:
    kept, left_out = usable_tasks(
        TASKS, "seq2seq", ByT5Tokenizer(), DataConfig(max_input_length=20, fit=True, max_choices=2)
    )
    assert list(kept) == ["few", "free"]
    assert "51 tokens, more than 20" in left_out["long"]


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(DataError, match="none of its 1 tasks can be used, as 'free': it has no choices"):
        usable_tasks(TASKS.select(["free"]), "encoder", ByT5Tokenizer(), DataConfig())


def test_shots_depend_on_the_seed_alone() -> None:
    many = task("many", n=40)
    assert draw_shots(many, 8, 1) == draw_shots(many, 8, 1) != draw_shots(many, 8, 2)
    assert draw_shots(many, 8, 1) == draw_shots(many, 16, 1)[:8]
    with pytest.raises(DataError, match="40 training examples, fewer than the 64 shots"):
        draw_shots(many, 64, 1)
