"""Published presets train: with a tiny model of their kind, for a step or an epoch, through to what they ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mhr.adapters import collapse, load_checkpoint, read_adapter
from mhr.evaluation import choice_scorer
from mhr.few_shot import adapt
from mhr.merging import merge
from mhr.runs import RunFolder, load_config
from mhr.runs.tasks import read_tasks
from mhr.training import pretrain

SHORT: dict[str, Any] = {"data.max_input_length": 24, "data.max_target_length": 8, "batch_size": 8, "log_every": 1}


@pytest.fixture
def run_of(
    backbone: Callable[..., str], tasks_file: Path, small_and_quick: None, tmp_path: Path
) -> Callable[..., RunFolder]:
    def run(preset: str, model: str, **settings: Any) -> RunFolder:
        given = {"tasks": str(tasks_file), "model": backbone(model), **SHORT, **settings}
        config = load_config(preset=preset, **given)
        return pretrain(config, str(tmp_path / preset), progress=False, scorer=choice_scorer)

    return run


def test_glue_validates_after_every_epoch_and_keeps_the_best(run_of: Callable[..., RunFolder]) -> None:
    run = run_of("glue-adamix", "bert", epochs=2, **{"adapter.rank": 4})
    # Of 24 examples of each of three tasks a fifth is held out: 60 are left, which 8 steps of 8 go through once.
    assert run.info["validation"] == {"rev-first": 4, "next-last": 4, "rev-last": 4}
    assert sorted(run.validations()) == [8, 15]
    assert (run.info["steps"], run.info["best"]["by"], run.info["best"]["kept"]) == (15, "score", True)
    stored = read_adapter(run.adapter)
    assert stored.config.share == "up"
    assert {t.shape[1] for key, t in stored.tensors.items() if key.endswith("bank_b")} == {1}


@pytest.mark.parametrize("preset", ["e2e-adamix", "dart-adamix", "webnlg-adamix"])
def test_gpt2_adapts_q_and_v_and_ships_one_lora(preset: str, run_of: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = run_of(preset, "gpt2", steps=3, warmup=1, consistency=1)
    merge(run.path, output=str(tmp_path / "lora"), to="peft-lora")
    ours, _ = load_checkpoint(run.adapter)
    base = AutoModelForCausalLM.from_pretrained(run.info["base"])
    size = base.config.n_embd
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval()
    ids = torch.randint(0, 300, (2, 7))
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    deltas = [m.get_delta_weight("default").view(size, 3, size) for m in theirs.modules() if hasattr(m, "lora_A")]
    assert deltas
    for delta in deltas:
        assert (delta.abs().sum((0, 2)) > 0).tolist() == [True, False, True]


def test_a_task_is_read_up_to_its_published_number_of_examples(run_of: Callable[..., RunFolder]) -> None:
    run = run_of("crossfit", "bart", steps=1, **{"data.max_train": 5})
    assert run.info["examples"] == 3 * 5


def test_a_seed_draws_the_examples_and_leaves_those_for_evaluation(tasks_file: Path) -> None:
    """Five draws of 30 examples are five training sets, judged on one test set."""
    read = {}
    for seed in (0, 13, 21, 13):
        data = load_config(
            preset="few-shot-adamix", prompt="{input} {mask}", **{"data.train_seed": seed, "data.max_train": 12}
        ).data
        read[seed] = read_tasks(str(tasks_file), data)
    for task in read[0].values():
        trained = {seed: tuple(e.id for e in tasks[task.name].train) for seed, tasks in read.items()}
        assert {len(ids) for ids in trained.values()} == {12}
        assert len(set(trained.values())) == 3
        assert {tuple(e.id for e in tasks[task.name].test) for tasks in read.values()} == {
            tuple(e.id for e in task.test)
        }


@pytest.mark.parametrize("mode", ["mhr", "mu", "random"])
def test_adapting_leaves_k_alone_too(mode: str, run_of: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = run_of("e2e-adamix", "gpt2", steps=1, consistency=1)
    few: dict[str, Any] = {"shots": 8, "seeds": [13], "steps": 3, "lr": 1e-2}
    (done,) = adapt(str(run.path), ["next-first"], mode=mode, output=str(tmp_path / mode), progress=False, **few)
    assert read_adapter(done.adapter).config.parts == ["q", "v"]
    for layer in collapse(read_adapter(done.adapter), None).layers.values():
        moved = (layer.a @ layer.b).view(layer.a.shape[0], 3, -1).abs().sum((0, 2)) > 0
        assert moved.tolist() == [True, False, True]
