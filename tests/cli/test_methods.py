"""Methods beyond MHR through every command, from a run to a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mhr.runs import load_config
from tests.cli.running import refuse, succeed

SMALL = ("--batch-size", "4", "--steps", "2", "--lr", "1e-2", "--max-target-length", "4")
NEW = ("--shots", "4", "--steps", "1", "--seeds", "13")

METHODS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "mtl-lora": ("z", "mhr", ("--n-skills", "2", "--rank", "2")),
    "shared-heads": ("z", "mhr", ("--n-heads", "4", "--n-skills", "2", "--rank", "2")),
    "bitfit": ("lora", "mu", ()),
    "houlsby": ("lora", "mu", ("--rank", "2")),
    "prompt-tuning": ("lora", "mu", ("--virtual-tokens", "4")),
    "prefix-tuning": ("lora", "random", ("--virtual-tokens", "4")),
    "unipelt": ("lora", "mu", ("--virtual-tokens", "4", "--rank", "2", "--width", "3")),
    "film": ("random", "mu", ()),
    "hra": ("head", "mhr", ("--rank", "4")),
    "hyperformer": ("z", "mhr", ("--n-skills", "8", "--rank", "2")),
    "hyperformer++": ("mhr", "random", ("--n-skills", "8", "--set", "adapter.router.context=definition")),
    "pha": ("z", "mhr", ("--n-skills", "8", "--set", "adapter.router.shots=4")),
    "hyper-lora": ("random", "z", ("--n-skills", "8", "--targets", "attention")),
}
"""Method -> modes to adapt and to sweep in, and settings."""


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Two tasks of rows with a definition each; a third one lies beside them, in new.jsonl."""
    lines: list[dict[str, Any]] = [
        {"task": task, "definition": f"Say whether a number is {task}.", "input": f"{task} {i}"}
        | {"targets": ["yes" if i % 2 else "no"], "choices": ["yes", "no"], "split": split}
        for task in ("even", "prime", "odd")
        for split, n in (("train", 8), ("test", 2))
        for i in range(n)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines if line["task"] != "odd"))
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line["task"] == "odd"))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_through_every_command(
    method: str, collection: Path, backbone: Callable[..., str], tmp_path: Path
) -> None:
    run, new = tmp_path / "run", collection.with_name("new.jsonl")
    mode, swept, settings = METHODS[method]
    succeed(
        "pretrain",
        "--model",
        backbone("bart" if method == "bitfit" else "t5"),  # a T5 has no biases
        *SMALL,
        "--method",
        method,
        *settings,
        "--tasks",
        collection,
        "--output",
        run,
    )
    told = json.loads(succeed("evaluate", run, "--json", "--part", "all").stdout)
    assert set(told["tasks"]) == {"even", "prime"}
    succeed("evaluate", run, "--tasks", new, "--part", "all")
    assert json.loads(succeed("inspect", run, "--json").stdout)["method"]
    asked = ("--tasks", new, "--task", "odd", *NEW)
    succeed("adapt", run, "--mode", mode, *asked, "--output", tmp_path / "adapted")
    succeed("sweep", run, "--modes", swept, *asked, "--output", tmp_path / "sweep")
    merged = tmp_path / "merged"
    succeed("merge", run, "--method", "task", "--task", "prime", "--output", merged)
    scores = [
        json.loads(succeed("evaluate", one, "--tasks", collection, "--task", "prime", "--json").stdout)["tasks"][
            "prime"
        ]
        for one in (run, merged)
    ]
    assert scores[0] == scores[1]
    for_each = ("merge", run, "--each-task", "--output", tmp_path / "each")
    if load_config(run / "config.yaml").adapter.routing.needs_tasks:
        succeed(*for_each)
    else:
        assert "it is one adapter: leave --each-task out" in refuse(*for_each)
    succeed("merge", tmp_path / "adapted", "--output", tmp_path / "of-adapted")
    succeed("report", run, tmp_path / "adapted", tmp_path / "sweep", "--output", tmp_path / "page")
    assert (tmp_path / "page" / "report.html").is_file()
