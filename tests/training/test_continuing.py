"""A run that goes on from another: as the average of its skills (zero-shot MHR-mu as a phase of its own), or as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mhr.adapters import collapse, plain_checkpoint, read_adapter
from mhr.data import load_tasks
from mhr.errors import ConfigError, MhrError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt
from mhr.merging import merge
from mhr.runs import RunFolder, load_config
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import TrainConfig
from mhr.training import pretrain
from mhr.training.trainer import RoutedTrainer

Make = Callable[..., RunConfig]
WIDE: dict[str, Any] = {"dtype": "float64", "n_heads": 2, "n_skills": 3, "rank": 2, "clip": 0}


def run_of(config: RunConfig, folder: Path, **more: Any) -> RunFolder:
    return pretrain(config, str(folder), progress=False, **more)


def goes_on(run: RunFolder, how: str | None = None, **train: Any) -> RunConfig:
    """The settings of a run that goes on from `run` for some steps."""
    config = run.config()
    return replace(
        config, train=replace(config.train, **train), continue_from=str(run.path), continue_as=how, init_skills=None
    )


def tensors(run: RunFolder) -> dict[str, Tensor]:
    return dict(read_adapter(run.adapter).tensors)


def losses(run: RunFolder) -> list[float]:
    return [record["loss"] for record in run.metrics()]


@pytest.fixture
def wide(settings: Make, tmp_path: Path) -> RunFolder:
    """A bank in float64."""
    return run_of(settings(**WIDE, steps=3, router_lr=1.0), tmp_path / "wide")


def test_the_phase_is_averaging_the_bank_and_then_training(settings: Make, wide: RunFolder, tmp_path: Path) -> None:
    """By another way to the same: merge the bank into one LoRA, and train a LoRA that begins with that."""
    phase = run_of(goes_on(wide, "mu", steps=4), tmp_path / "phase")
    merge(wide.path, output=str(tmp_path / "merged"), method="uniform")
    plain = {name: WIDE[name] for name in ("dtype", "rank", "clip")}
    by_hand = run_of(
        settings(**plain, steps=4, method="lora", init_skills=[str(tmp_path / "merged")]), tmp_path / "by_hand"
    )
    assert losses(phase) == pytest.approx(losses(by_hand), rel=1e-12)
    found, expected = tensors(phase), tensors(by_hand)
    before = plain_checkpoint(collapse(read_adapter(wide.adapter), None)).tensors
    for name, tensor in found.items():
        if name.startswith("layers."):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-13)
            assert not torch.equal(tensor, before[name])


def test_all_skills_under_a_fixed_average_go_the_same_way(wide: RunFolder, tmp_path: Path) -> None:
    """Which is how it was published: with AdamW, whose steps do not depend on the scale of the gradient, and no clipping."""
    phase = run_of(goes_on(wide, "mu", steps=4), tmp_path / "phase")
    bank = run_of(goes_on(wide, steps=4, switch_to_mu_at=0), tmp_path / "bank")
    assert losses(phase) == pytest.approx(losses(bank), rel=1e-4)
    found, expected = tensors(phase), tensors(bank)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-4)


def test_optimizer_and_schedule_begin_anew(wide: RunFolder, tmp_path: Path) -> None:
    phase = run_of(goes_on(wide, "mu", steps=5, warmup=2, lr=0.1), tmp_path / "phase")
    assert [record["lr"] for record in phase.metrics()] == pytest.approx([0, 0.05, 0.1, 0.2 / 3, 0.1 / 3])


def test_what_goes_on_as_it_is_begins_where_the_run_ended(wide: RunFolder, tmp_path: Path) -> None:
    still = run_of(goes_on(wide, steps=2, lr=1e-15, router_lr=1e-15), tmp_path / "still")
    found, expected = tensors(still), tensors(wide)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-12)
    assert read_adapter(still.adapter).config.method == "mhr"
    assert still.info["notes"][-1] == f"begins with the adapter of {wide.path}"
    more = run_of(goes_on(wide, steps=2), tmp_path / "more")
    assert any(not torch.equal(tensors(more)[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("how", ["mu", "bank"])
def test_a_resumed_phase_is_the_uninterrupted_one(
    how: str, source: Callable[[str], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = goes_on(source("mhr"), how, steps=6, save_every=2)
    whole = run_of(config, tmp_path / "whole")
    step = RoutedTrainer.training_step

    def killed(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RoutedTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_of(config, tmp_path / "broken")
    broken = run_of(config, tmp_path / "broken", resume=True)
    assert broken.info["resumed_from"] == "checkpoint-2"
    assert losses(broken) == losses(whole)
    found, expected = tensors(broken), tensors(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_result_is_one_adapter_that_serves_every_task(
    source: Callable[[str], RunFolder], tmp_path: Path, tasks_file: Path
) -> None:
    bank = source("mhr")
    phase = run_of(goes_on(bank, "mu", steps=2), tmp_path / "phase")
    stored = read_adapter(phase.adapter)
    assert (stored.config.method, stored.config.n_skills, stored.config.n_heads) == ("shared", 1, 1)
    assert stored.info["average_of"] == read_adapter(bank.adapter).config.to_dict()
    assert phase.info["notes"][-1] == f"begins with the average of the skills of {bank.path}, S = 8"
    assert len(evaluate(load_model(phase.path), load_tasks(tasks_file).held_out(), progress=False).tasks) == 2
    (done,) = adapt(str(phase.path), ["next-first"], mode="lora", output=str(tmp_path / "lora"), progress=False)
    assert done.status == "done"
    with pytest.raises(ConfigError, match="it ended as the average of its skills"):
        adapt(str(phase.path), ["next-first"], mode="z", output=str(tmp_path / "z"), progress=False)
    again = run_of(goes_on(phase, "mu", steps=2), tmp_path / "again")
    assert again.status == "done"
    with pytest.raises(ConfigError, match="ended as the average of its skills: go on with that, by --continue-as-mu"):
        run_of(goes_on(phase, "bank", steps=2), tmp_path / "bank")


@pytest.mark.parametrize("method", ["poly", "private", "random", "poly-ia3"])
def test_every_bank_that_routes_tasks_has_an_average(method: str, settings: Make, tmp_path: Path) -> None:
    bank = run_of(settings(method=method, steps=1), tmp_path / "bank")
    phase = run_of(goes_on(bank, "mu", steps=2), tmp_path / "phase")
    assert read_adapter(phase.adapter).config.n_skills == 1


def test_what_cannot_go_on_is_refused(
    source: Callable[[str], RunFolder], settings: Make, tmp_path: Path, tasks_file: Path
) -> None:
    bank, output = source("mhr"), tmp_path / "out"
    config = goes_on(bank, "mu", steps=2)

    def refused(config: RunConfig, said: str, folder: Path = output) -> None:
        with pytest.raises(MhrError, match=said) as caught:
            run_of(config, folder)
        assert "\n" not in str(caught.value)
        assert not output.exists()

    refused(replace(config, continue_from=str(tmp_path / "nowhere")), "no run at .*nowhere: there is no such folder")
    refused(replace(config, method="poly", adapter=replace(config.adapter, method="poly", n_heads=1)), "has 'mhr'")
    wider = replace(config, adapter=replace(config.adapter, rank=3))
    refused(wider, r"adapter.rank is 3, but run .* has 4, and an adapter that goes on stays as it is")
    refused(replace(config, model=settings("t5", {"d_model": 24}).model), "base model")
    refused(config, "holds the input", bank.path)
    (adapted,) = adapt(str(bank.path), ["next-first"], mode="z", output=str(tmp_path / "adapted"), progress=False)
    refused(replace(config, continue_from=str(adapted.path)), "is an adaptation to a task")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    info = json.loads((bank.path / "run.json").read_text()) | {"status": "interrupted"}
    (unfinished / "run.json").write_text(json.dumps(info))
    refused(replace(config, continue_from=str(unfinished)), "is not done .status 'interrupted'.: finish it with")
    rows = [json.loads(line) for line in tasks_file.read_text().splitlines()]
    renamed = [json.dumps(row | {"task": f"new-{row['task']}"}) for row in rows]
    (tmp_path / "other.jsonl").write_text("\n".join(renamed))
    other = replace(config, tasks=str(tmp_path / "other.jsonl"))
    refused(replace(other, continue_as="bank"), "task 'new-rev-first' is not among the 3 tasks of run")
    assert run_of(other, tmp_path / "average of other tasks").status == "done"
    whole = source("full")
    refused(replace(goes_on(whole, "bank"), continue_from=str(whole.path)), "trained all weights and has no adapter")


@pytest.mark.parametrize("method", ["lora", "adamix", "uniform", "full"])
def test_only_a_bank_that_routes_tasks_has_an_average_to_go_on_as(method: str, settings: Make) -> None:
    with pytest.raises(ConfigError, match=f"continue_as 'mu' is given, but method '{method}' routes no skills by task"):
        replace(settings(method=method), continue_from="runs/any", continue_as="mu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"continue_as": "mu"}, "continue_as is 'mu', but no run is named: mhr pretrain RUN --continue-as-mu"),
        ({"continue_from": "a", "continue_as": "z"}, "continue_as is 'z', expected one of bank, mu"),
        ({"continue_from": "a", "init_skills": ["b"]}, "init_skills is given, but the run begins with the skills of"),
        (
            {"continue_from": "a", "continue_as": "mu", "train": TrainConfig(steps=9, anneal_to_mu=2)},
            "continue_as is 'mu', which begins as the average: leave switch_to_mu_at and anneal_to_mu out",
        ),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(load_config(), **changes)
