"""Adapting a run with heads: a new task gets a head of its own, in every mode, and is answered by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhr.adapters import read_adapter
from mhr.evaluation import load_model, score
from mhr.few_shot import adapt
from mhr.runs import RunFolder
from mhr.training import pretrain
from tests.heads.conftest import Recipe


@pytest.mark.parametrize("mode", ["mhr", "z", "mu", "random", "full"])
def test_a_new_task_gets_a_head_in_every_mode(mode: str, recipe: Recipe, tmp_path: Path) -> None:
    config = recipe("two", "number", held=("three", "number-new", "pick"))
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    made = adapt(str(run.path), mode=mode, output=str(tmp_path / "adapted"), progress=False)
    kinds = []
    for one in made:
        loaded = load_model(one.path)
        assert loaded.heads is not None
        (head,) = loaded.heads.heads
        kinds.append((one.info["tasks"][0], head.kind, head.size, loaded.model.classifier.out_features))
        (task,) = score(one.path, progress=False).tasks.values()
        assert task["n"] == 8
    assert kinds == [("three", "classify", 3, 3), ("number-new", "regress", 1, 1), ("pick", "rank", 1, 1)]


def test_the_head_trains_with_the_routing_row_alone_in_mode_z(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", held=("three",)), str(tmp_path / "run"), progress=False)
    heads = []
    for steps in (1, 4):
        (one,) = adapt(str(run.path), mode="z", output=str(tmp_path / str(steps)), steps=steps, progress=False)
        heads.append(read_adapter(one.adapter).tensors["modules.classifier.weight"])
        assert one.info["parameters"]["trained"] > 3 * 32  # the head and the row
    assert not torch.equal(*heads)


def test_an_adaptation_begins_alike_whichever_came_before(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", held=("three", "number-new")), str(tmp_path / "run"), progress=False)
    found = []
    for tasks in (["three", "number-new"], ["number-new", "three"]):
        made = adapt(str(run.path), tasks, mode="mhr", output=str(tmp_path / tasks[0]), progress=False)
        found.append({one.info["tasks"][0]: read_adapter(one.adapter).tensors for one in made})
    for task, tensors in found[0].items():
        assert all(torch.equal(tensor, found[1][task][name]) for name, tensor in tensors.items()), task


def test_a_shared_head_goes_on_with_its_values(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe("two", "two-more", "three", held=("two-new",), share_heads=True)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    before = read_adapter(run.adapter)
    assert before.heads is not None
    assert before.heads.tasks == {"two": 0, "two-more": 0, "three": 1}
    result = score(run.path, part="all", progress=False)
    assert set(result.tasks) == {"two", "two-more", "three", "two-new"}  # also the task that it has not seen
    (one,) = adapt(str(run.path), mode="mhr", output=str(tmp_path / "adapted"), steps=1, lr=1e-9, progress=False)
    head = read_adapter(one.adapter).tensors["modules.classifier.weight"]
    torch.testing.assert_close(head, before.tensors["modules.classifier.weight"][:2], rtol=0, atol=1e-6)


def test_a_run_that_ranks_is_adapted_by_ranking(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", held=("three",), head="rank"), str(tmp_path / "run"), progress=False)
    assert run.info["head"] == "rank"
    (one,) = adapt(str(run.path), mode="mhr", output=str(tmp_path / "adapted"), progress=False)
    assert one.info["head"] == "rank"
    assert read_adapter(one.adapter).heads is None
    assert {p.how for p in score(one.path, progress=False).predictions} == {"ranking"}


def test_the_best_step_is_chosen_by_the_head_s_score(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", held=("three", "number-new")), str(tmp_path / "run"), progress=False)
    made = adapt(
        str(run.path),
        mode="mhr",
        output=str(tmp_path / "adapted"),
        eval_every=2,
        select="best",
        grid={"lr": [1e-2, 1e-3]},
        progress=False,
    )
    for one in made:
        assert RunFolder.open(one.path).info["selection"]["trials"][0]["looks"]
