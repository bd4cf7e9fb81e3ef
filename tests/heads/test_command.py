"""The commands on a run with heads: pretrain, evaluate, adapt, merge, and evaluate what was merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.running import refuse, succeed
from tests.heads.conftest import Recipe

QUICK = ("--steps", "3", "--batch-size", "8", "--n-heads", "2", "--n-skills", "2", "--rank", "2")


def scored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())["tasks"]


def test_from_training_to_a_folder_for_transformers(
    backbone: Callable[..., str], write_tasks: Callable[..., str], small_and_quick: None, tmp_path: Path
) -> None:
    tasks = write_tasks("two", "number", held=("three",))
    run, adapted = tmp_path / "run", tmp_path / "adapted"
    succeed("pretrain", "--model", backbone("bert-encoder"), "--tasks", tasks, *QUICK, "--output", run)
    succeed("evaluate", run, "--part", "training", "--output", tmp_path / "training")
    assert set(scored(tmp_path / "training")) == {"two", "number"}
    assert "no head for it: adapt the model to it" in refuse("evaluate", run)

    succeed("adapt", run, "--mode", "mhr", "--shots", "8", "--steps", "2", "--seeds", "13", "--output", adapted)
    one = adapted / "three" / "13"
    succeed("evaluate", one, "--output", tmp_path / "before")
    for to in ("model", "peft-lora", "mhr"):
        succeed("merge", one, "--to", to, "--output", tmp_path / to)
        succeed("evaluate", tmp_path / to, "--tasks", tasks, "--task", "three", "--output", tmp_path / f"{to}-scored")
        assert scored(tmp_path / f"{to}-scored")["three"] == scored(tmp_path / "before")["three"]
    said = json.loads((tmp_path / "model" / "config.json").read_text())
    assert said["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert json.loads((tmp_path / "peft-lora" / "head" / "config.json").read_text())["label2id"] == said["label2id"]


def test_an_exported_model_is_a_base_like_any_other(recipe: Recipe, tmp_path: Path) -> None:
    from mhr.adapters import read_adapter
    from mhr.evaluation import score
    from mhr.merging import merge
    from mhr.training import pretrain

    run = pretrain(recipe("two", "three"), str(tmp_path / "run"), progress=False)
    model = merge(run.path, method="task", task="three", to="model", output=tmp_path / "model")
    for head, heads in (("auto", 2), ("rank", None)):
        config = recipe("two", "number" if head == "auto" else "pick", head=head)
        config.model = str(model)
        again = pretrain(config, str(tmp_path / head), progress=False)
        found = read_adapter(again.adapter).heads
        assert (None if found is None else len(found.heads)) == heads
        assert len(score(again.path, progress=False).tasks) == 2
