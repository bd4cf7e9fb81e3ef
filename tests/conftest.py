"""Tiny models and tasks on disk, as a user would name them."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from mhr.data.skills import choices_of, define, draw_examples
from mhr.runs import RunConfig, RunFolder, load_config
from mhr.training import pretrain
from tests.models import tiny_model

os.environ["MHR_POISON"] = "1"  # read when the first kernel runs: memory that it is to write holds NaN before

BYTES = 384  # ids of the byte-level tokenizer

TRAINING = ("rev-first", "next-last", "rev-last")
HELD_OUT = ("next-first", "swap-last")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The processes that share a run of the tests must know each by the same name, which no address in memory is part of."""
    assert not [item.nodeid for item in items if " at 0x" in item.nodeid], "give these parameters ids"


def pytest_collection_finish() -> None:
    """What is there by now stays, and tests make many objects that no cycle holds: to look through all of them often takes time."""
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_disks() -> Iterator[None]:
    """What tests write need not outlive a power failure, and to wait for it took a sixth of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def python_handles_ctrl_c() -> Iterator[None]:
    """Python's own handler, also where the tests were started with SIGINT ignored (a job in the background of a shell)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small_and_quick() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # every Trainer collects garbage, and the libraries' own objects make that a second


@pytest.fixture(scope="session")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small tasks with choices, two of them held out, each with 24 training and 4 test examples."""
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for name in TRAINING + HELD_OUT:
            skills = tuple(name.split("-"))
            for i, example in zip(range(28), draw_examples(skills), strict=False):
                row = {
                    "task": name,
                    "input": example.input.rpartition(" ")[2],
                    "targets": example.targets[0],
                    "choices": list(choices_of(skills)),
                    "split": "train" if i < 24 else "test",
                    "held_out": name in HELD_OUT,
                    "definition": define(skills),
                }
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Folders of tiny models with a byte-level tokenizer: `backbone("t5", dropout_rate=0.1)`."""
    made: dict[str, str] = {}

    def make(name: str, **config: Any) -> str:
        key = f"{name} {config}"
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            tiny_model(name, vocab_size=BYTES, **config).save_pretrained(folder)
            ByT5Tokenizer().save_pretrained(folder)
            made[key] = str(folder)
        return made[key]

    return make


@pytest.fixture
def settings(backbone: Callable[..., str], tasks_file: Path, small_and_quick: None) -> Callable[..., RunConfig]:
    """Settings of a tiny run; keywords are flags, `model` a name for `backbone`."""

    def make(model: str = "t5", model_config: dict[str, Any] | None = None, **flags: Any) -> RunConfig:
        defaults: dict[str, Any] = {
            "tasks": str(tasks_file),
            "steps": 8,
            "batch_size": 8,
            "lr": 1e-2,
            "log_every": 1,
            "save_every": 4,
            "max_input_length": 32,
            "max_target_length": 8,
            "adapt.steps": 4,
            "adapt.shots": 8,
            "adapt.seeds": [13],
            "adapt.lr": 1e-2,
        }
        return load_config(model=backbone(model, **(model_config or {})), **{**defaults, **flags})

    return make


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Runs by method, filled by `source`."""
    return {}


@pytest.fixture
def source(
    pretrained: dict[str, RunFolder], settings: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], RunFolder]:
    """A pretrained run of a method, made once."""

    def make(method: str) -> RunFolder:
        if method not in pretrained:
            folder = tmp_path_factory.mktemp(method) / "run"
            pretrained[method] = pretrain(settings(method=method, steps=6, save_every=6), str(folder), progress=False)
        return pretrained[method]

    return make
