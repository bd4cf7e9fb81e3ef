"""Zero-shot MHR-mu: a bank that goes on training as its average, by a switch or by degrees, also across a resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mhr
from mhr.adapters import checkpoint_of, read_adapter
from mhr.data import load_tasks
from mhr.errors import ConfigError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt
from mhr.merging import merge_uniform
from mhr.runs import RunFolder, load_config
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import TrainConfig
from mhr.training import pretrain
from mhr.training.averaging import share_of_average
from mhr.training.trainer import RoutedTrainer
from tests.models import random_batch, randomise, tiny_model

Make = Callable[..., RunConfig]


def test_the_share_of_the_average_over_a_run() -> None:
    switched = TrainConfig(steps=6, switch_to_mu_at=4)
    assert [share_of_average(switched, step) for step in range(6)] == [0, 0, 0, 0, 1, 1]
    annealed = TrainConfig(steps=6, anneal_to_mu=4)
    found = [share_of_average(annealed, step) for step in range(6)]
    expected = [0, 0, *((1 - math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3, 4))]
    assert found == pytest.approx(expected)
    assert found[-1] == 1
    assert share_of_average(TrainConfig(steps=6), 5) == 0
    published = TrainConfig(steps=8, anneal_to_mu=6, anneal_by="quarter")
    found = [share_of_average(published, step) for step in range(8)]
    by_hand = [0, 0, 0.03407417, 0.13397460, 0.29289322, 0.5, 0.74118095, 1]  # 1 - cos(15, 30, ... 90 degrees)
    assert found == pytest.approx(by_hand, abs=1e-8)
    assert found[-1] == 1


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("by", ["half", "quarter"])
def test_the_share_rises_to_the_average_and_stays_there(by: str, steps: int) -> None:
    """Also after the last step, where the result is validated."""
    ways: list[dict[str, Any]] = [{"anneal_to_mu": n, "anneal_by": by} for n in range(1, steps + 1)]
    for flags in [*ways, {"switch_to_mu_at": steps - 1}]:
        config = TrainConfig(steps=steps, **flags)
        found = [share_of_average(config, step) for step in range(steps + 1)]
        assert found == sorted(found)
        assert found[steps - 1] == found[steps] == 1, flags


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_routing_goes_to_uniform_and_so_do_its_gradients(share: float) -> None:
    model = tiny_model("t5").double()
    bank = mhr.attach(model, mhr.AdapterConfig(method="mhr", n_heads=2, n_skills=3, rank=2), ["a", "b"])
    randomise(bank)
    batch = random_batch(model)
    tasks = ["a", "b", "a", "b"]
    learned = [w.detach() for w in bank.weigh(bank.for_batch(tasks))]
    bank.toward_average = share
    blended = bank.weigh(bank.for_batch(tasks))
    for weights, before in zip(blended, learned, strict=True):
        torch.testing.assert_close(weights, (1 - share) * before + share / 3)
    model(**batch, task_ids=tasks).loss.backward()
    moved = sum(float(p.grad.abs().sum()) for p in bank.router_parameters())
    assert (moved == 0) == (share == 1)


def test_at_the_end_the_routed_model_is_its_average() -> None:
    model = tiny_model("t5").double()
    bank = mhr.attach(model, mhr.AdapterConfig(method="mhr", n_heads=2, n_skills=3, rank=2), ["a", "b"])
    randomise(bank)
    batch = random_batch(model)
    bank.toward_average = 1.0
    routed = model(**batch, task_ids=["a", "b", "a", "b"]).logits
    plain = merge_uniform(checkpoint_of(model, "tiny"))
    mhr.detach(model)
    mhr.adapters.attach_plain(model, plain)
    torch.testing.assert_close(routed, model(**batch).logits, rtol=1e-5, atol=1e-6)


def tensors(run: RunFolder) -> dict[str, Tensor]:
    return read_adapter(run.adapter).tensors


@pytest.mark.parametrize("flags", [{"switch_to_mu_at": 5}, {"anneal_to_mu": 4}])
@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_run_crosses_the_switch_as_an_unbroken_one(
    flags: dict[str, Any], stop: int, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(steps=8, save_every=2, **flags)
    whole = pretrain(config, str(tmp_path / "whole"), progress=False)
    step = RoutedTrainer.training_step

    def killed(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == stop:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RoutedTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, str(tmp_path / "broken"), progress=False)
    broken = pretrain(config, str(tmp_path / "broken"), resume=True, progress=False)
    assert broken.info["resumed_from"] == f"checkpoint-{stop - 1}"
    found, expected = tensors(broken), tensors(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # Before the switch nothing differs from a run without one.
    plain = pretrain(settings(steps=8, save_every=8), str(tmp_path / "plain"), progress=False)
    losses = [[record["loss"] for record in run.metrics()] for run in (whole, plain)]
    assert losses[0][:4] == losses[1][:4]
    assert losses[0][-1] != losses[1][-1]


def test_the_result_is_one_adapter_for_all_tasks(settings: Make, tmp_path: Path, tasks_file: Path) -> None:
    run = pretrain(settings(steps=4, switch_to_mu_at=2), str(tmp_path / "run"), progress=False)
    stored = read_adapter(run.adapter)
    assert (stored.config.method, stored.config.n_skills, stored.config.n_heads) == ("shared", 1, 1)
    assert stored.info["average_of"]["method"] == "mhr"
    scores = evaluate(load_model(run.path), load_tasks(tasks_file).held_out(), progress=False)
    assert len(scores.tasks) == 2
    for mode in ("lora", "mu"):
        (done,) = adapt(str(run.path), ["next-first"], mode=mode, output=str(tmp_path / mode), progress=False)
        assert done.status == "done"
    with pytest.raises(ConfigError, match="it ended as the average of its skills.*use mode 'lora' or 'mu'"):
        adapt(str(run.path), ["next-first"], mode="z", output=str(tmp_path / "z"), progress=False)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"switch_to_mu_at": 10, "steps": 10}, "switch_to_mu_at is 10, but the run has 10 steps"),
        ({"anneal_to_mu": 11, "steps": 10}, "anneal_to_mu is 11, but the run has 10 steps"),
        ({"anneal_to_mu": 0}, "anneal_to_mu is 0"),
        ({"anneal_by": "quarter"}, "anneal_by is 'quarter', but nothing is annealed: set anneal_to_mu"),
        ({"anneal_to_mu": 2, "switch_to_mu_at": 2}, "are both given"),
        ({"switch_to_mu_at": 2, "method": "lora"}, "method 'lora' routes no skills by task"),
        ({"anneal_to_mu": 2, "method": "full"}, "method 'full' routes no skills by task"),
    ],
)
def test_what_cannot_be_averaged_is_refused(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(**flags)
    assert "\n" not in str(caught.value)


def test_the_methods_that_are_named_instead_end_as_their_average() -> None:
    with pytest.raises(ConfigError, match="use it with ") as caught:
        load_config(anneal_to_mu=2, method="lora")
    named = str(caught.value).rpartition("use it with ")[2].replace(" or ", ", ").split(", ")
    assert {"mhr", "poly", "private", "hra", "mtl-lora"} <= set(named)
    for method in named:
        assert load_config(anneal_to_mu=2, method=method).ends_in_mu
