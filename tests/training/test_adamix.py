"""AdaMix runs: the same draws everywhere, two passes a step, resumable, in several processes, and adapted from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.adapters import load_checkpoint, read_adapter
from mhr.data import Example, Task, TaskCollection
from mhr.errors import ConfigError
from mhr.few_shot import adapt
from mhr.runs import RunFolder, load_config
from mhr.runs.settings import RunConfig
from mhr.training import pretrain
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from tests.forked import pretrained_by_two
from tests.training.test_trainer import trainer_for

Make = Callable[..., RunConfig]


def numbers(run: RunFolder) -> list[tuple[float, float | None]]:
    return [(record["loss"], record["consistency"]) for record in run.metrics()]


@pytest.mark.parametrize("method", ["adamix", "adamix-lora"])
def test_a_step_has_two_passes_with_different_draws(method: str, settings: Make, tmp_path: Path) -> None:
    steps = 5
    trainer = trainer_for(settings(method=method, steps=steps, batch_size=4, accumulation=2), tmp_path)
    drawn: list[list[int]] = []
    bank = trainer.bank
    make = bank.for_batch

    def for_batch(*args: Any, **kwargs: Any) -> Any:
        batch = make(*args, **kwargs)
        drawn.append(batch.draws.flatten().tolist())
        return batch

    bank.for_batch = for_batch  # type: ignore[method-assign]
    trainer.fit()
    assert len(drawn) == steps * 2 * 2
    by_step = [drawn[i : i + 4] for i in range(0, steps * 4, 4)]
    for first, second, again, once_more in by_step:
        assert first != second
        assert (again, once_more) == (first, second)  # the other batch of the same update
    assert len({str(s) for s in by_step}) == steps
    records = trainer.run.metrics()
    assert all(record["consistency"] >= 0 for record in records)
    # LoRAs begin as copies of one, so the passes of the first step agree. With B shared they do for two steps more: the warm-up
    # begins at rate 0, and while B is 0 it alone has a gradient.
    agree = [record["consistency"] < 1e-9 for record in records]
    assert agree == [method == "adamix-lora"] * 3 + [False] * 2
    assert trainer.run.info["consistency"] == {"weight": 100.0, "squared_difference": []}


def test_the_loss_is_the_task_s_and_the_weighed_divergence(settings: Make, tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 7.0):
        config = settings(method="adamix", steps=1, lr=1e-9, consistency=weight)
        trainer = trainer_for(config, tmp_path / str(weight))
        trainer.fit()
        (found[weight],) = trainer.run.metrics()
    assert found[0.0]["consistency"] is None
    assert found[7.0]["tasks"] == pytest.approx(found[0.0]["tasks"])
    expected = found[0.0]["loss"] + 7.0 * found[7.0]["consistency"]
    assert found[7.0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_how_a_global_batch_is_split_changes_nothing(settings: Make, tmp_path: Path) -> None:
    runs = []
    for size, accumulation in ((8, 1), (2, 4)):
        config = settings(method="adamix", batch_size=size, accumulation=accumulation, steps=4)
        trainer = trainer_for(config, tmp_path / str(size))
        trainer.fit()
        runs.append(trainer.run.metrics())
    for a, b in zip(*runs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["consistency"] == pytest.approx(b["consistency"], rel=1e-3)


def test_two_processes_give_the_losses_of_one(settings: Make, tmp_path: Path) -> None:
    two = settings(method="adamix", share="up", steps=4, batch_size=4, accumulation=2, save_every=4)
    both = pretrained_by_two(two, tmp_path / "two")
    one = settings(method="adamix", share="up", steps=4, batch_size=16, save_every=4)
    alone = pretrain(one, str(tmp_path / "one"), progress=False)
    for a, b in zip(both.metrics(), alone.metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["consistency"] == pytest.approx(b["consistency"], rel=1e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_a_resumed_run_is_the_uninterrupted_one(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = {"dropout_rate": 0.1}
    config = settings(model_config=dropout, method="adamix", steps=6, save_every=2, gradient_checkpointing=True)
    whole = pretrain(config, str(tmp_path / "whole"), progress=False)
    with monkeypatch.context() as patch:
        step = RoutedTrainer.training_step

        def interrupted(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2:
                self.stop.asked = True
            return step(self, *args, **kwargs)

        patch.setattr(RoutedTrainer, "training_step", interrupted)
        with pytest.raises(Interrupted, match="after step 3 of 6"):
            pretrain(config, str(tmp_path / "cut"), progress=False)
    again = pretrain(config, str(tmp_path / "cut"), resume=True, progress=False)
    assert again.info["resumed_from"] == "checkpoint-3"
    assert numbers(again) == numbers(whole)
    a, b = read_adapter(again.adapter).tensors, read_adapter(whole.adapter).tensors
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["adamix", "adamix-lora"])
def test_gradient_checkpointing_gives_the_same_losses(method: str, settings: Make, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        config = settings(method=method, steps=3, gradient_checkpointing=checkpointing)
        trainer = trainer_for(config, tmp_path / str(checkpointing))
        trainer.fit()
        found.append(numbers(trainer.run))
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-7)


def test_an_encoder_compares_choices_and_says_where_it_compares_single_logits(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files with one choice are refused; a collection made in Python may hold such examples."""

    def task(name: str, target: str, choices: tuple[str, ...]) -> Task:
        return Task(name, train=[Example(name, f"text {i}", (target,), choices, f"{name}-{i}") for i in range(8)])

    collection = TaskCollection([task("agree", "yes", ("no", "yes")), task("alone", "on", ("on",))])
    monkeypatch.setattr("mhr.runs.tasks.read_tasks", lambda path, data: collection)
    run = pretrain(settings("bert", method="adamix", steps=3, head="rank"), str(tmp_path / "run"), progress=False)
    assert run.info["consistency"] == {"weight": 1.0, "squared_difference": ["alone"]}
    assert all(record["consistency"] > 0 for record in run.metrics())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"method": "adamix", "n_skills": 1},
            "adapter.n_skills is 1, .*: use at least 2, or set train.consistency to 0",
        ),
        ({"method": "adamix", "n_skills": 1, "consistency": 2}, "adapter.n_skills is 1, and the passes"),
        ({"method": "adamix", "consistency": -1}, "train.consistency is -1.0, expected a number of at least 0"),
        ({"method": "mhr", "consistency": 1}, "train.consistency is 1.0, but method 'mhr' draws no skills"),
        ({"method": "full", "consistency": 1}, "train.consistency is 1.0, but method 'full' draws no skills"),
        ({"method": "adamix", "adapter": "lora"}, "adapter.adapter is 'lora', but method 'adamix' trains 'bottleneck'"),
        ({"method": "mhr", "adapter": "bottlneck"}, "adapter.adapter is 'bottlneck', .*did you mean 'bottleneck'"),
        ({"method": "poly", "share": "up"}, "adapter.share is 'up', but poly routes lora as a whole"),
    ],
)
def test_settings_that_do_not_go_together(flags: dict[str, Any], said: str, settings: Make) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        settings(**flags)
    assert "\n" not in str(caught.value)


def test_what_belongs_to_another_method_or_adapter_leaves_with_it() -> None:
    lora = load_config(preset="glue-adamix", method="lora")
    assert (lora.adapter.n_skills, lora.adapter.rank, lora.train.consistency) == (1, 16, None)
    other = load_config(preset="e2e-adamix", method="adamix").adapter
    assert (other.targets, other.parts, other.dropout, other.n_skills) == (None, None, 0.0, 4)
    plain = load_config(preset="e2e-adamix", method="lora").adapter
    assert (plain.targets, plain.parts) == (["attn.c_attn"], ["q", "v"])
    assert load_config(preset="superni", adapter="bottleneck").adapter.targets is None
    assert load_config(preset="superni", adapter="bottleneck", targets=["wo"]).adapter.targets == ["wo"]
    assert load_config(preset="superni", method="lora").adapter.targets == ["q", "k", "v", "o"]


def test_one_skill_trains_without_consistency(settings: Make, tmp_path: Path) -> None:
    run = pretrain(settings(method="adamix", n_skills=1, consistency=0, steps=2), str(tmp_path / "run"), progress=False)
    assert run.status == "done"
    assert run.metrics()[-1]["consistency"] is None
    assert "consistency" not in run.info


def test_any_routing_method_takes_bottlenecks(settings: Make, tmp_path: Path) -> None:
    for method in ("mhr", "private"):
        config = settings(method=method, adapter="bottleneck", steps=2)
        run = pretrain(config, str(tmp_path / method), progress=False)
        assert read_adapter(run.adapter).config.adapter == "bottleneck"
        model, _ = load_checkpoint(run.adapter)
        assert all(name.endswith("wo") for name in model.mhr.layers)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.mark.parametrize("mode", ["mhr", "mu", "lora", "random", "full"])
def test_it_is_adapted_in_every_mode_but_z(
    mode: str, settings: Make, source: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    if not source:
        source["run"] = tmp_path_factory.mktemp("source") / "run"
        pretrain(settings(method="adamix", steps=2, consistency=3), str(source["run"]), progress=False)
    (run,) = adapt(str(source["run"]), ["next-first"], mode=mode, output=str(tmp_path / "out"), steps=2, progress=False)
    drawn = mode in ("mhr", "random")
    assert all((record["consistency"] is not None) == drawn for record in run.metrics())
    if mode == "full":
        return
    config = read_adapter(run.adapter).config
    assert (config.method, config.n_skills) == (("adamix", 4) if drawn else ("shared", 1))
    assert config.adapter == "bottleneck"
    with pytest.raises(ConfigError, match="mode is 'z', .*its routing is not learned"):
        adapt(str(source["run"]), ["next-first"], mode="z", output=str(tmp_path / "z"), progress=False)
