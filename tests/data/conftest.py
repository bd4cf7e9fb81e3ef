"""Small made-up collections."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tokenizers import make_word_tokenizer

SuperNI = Callable[..., Path]


def instances(n: int, labels: tuple[str, ...] = ("yes", "no")) -> list[dict[str, Any]]:
    return [{"id": f"x-{i}", "input": f"question {i}", "output": [labels[i % len(labels)]]} for i in range(n)]


@pytest.fixture
def superni(tmp_path: Path) -> SuperNI:
    """Writes a folder in the layout of Super-NaturalInstructions: task name -> instances, and its split lists."""

    def write(tasks: dict[str, list[Any]], train: list[str] | None = None, test: list[str] | None = None) -> Path:
        root = tmp_path / "superni"
        (root / "tasks").mkdir(parents=True)
        (root / "splits" / "default").mkdir(parents=True)
        for name, content in tasks.items():
            task = {
                "Definition": [f"Answer {name}."],
                "Categories": ["Questions"],
                "Positive Examples": [{"input": "is it?", "output": "yes", "explanation": ""}],
                "Instances": content,
            }
            (root / "tasks" / f"{name}.json").write_text(json.dumps(task, indent=4))
        lists = {"train": list(tasks) if train is None else train, "test": test or []}
        for kind, names in lists.items():
            (root / "splits" / "default" / f"{kind}_tasks.txt").write_text("".join(f"{n}\n" for n in names))
        return root

    return write


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    return make_word_tokenizer()
