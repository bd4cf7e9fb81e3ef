"""One tiny trained run that many tests look at, and small collections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import SMALL, succeed


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "mhr"
    succeed("pretrain", *SMALL, "--steps", "3", "--output", folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A JSONL collection of two tasks with choices."""
    file = tmp_path / "rows.jsonl"
    lines = [
        {
            "task": task,
            "input": f"{task} {i}",
            "targets": ["yes" if i % 2 else "no"],
            "choices": ["yes", "no"],
            "split": split,
        }
        for task in ("even", "odd")
        for split, n in (("train", 8), ("test", 4))
        for i in range(n)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """An output folder that must not come into being."""
    folder = tmp_path / "output"
    yield folder
    assert not folder.exists()
