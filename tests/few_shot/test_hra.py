"""HRA in runs: what adaptations train of it and keep, what one more task costs, and what a run of it may end as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mhr.adapters import read_adapter
from mhr.analysis.costs import cost_of
from mhr.analysis.inspection import inspect_run
from mhr.errors import ConfigError
from mhr.few_shot import adapt
from mhr.runs import RunConfig, RunFolder
from mhr.training import pretrain
from tests.models import WIDTH

NEW = ["next-first", "swap-last"]
RANK, STACKS = 4, 2
HEAD, CONTROLLER = STACKS * RANK * WIDTH, STACKS * RANK * (WIDTH + 2)


def layers(run: RunFolder) -> dict[str, Tensor]:
    return {name: t for name, t in read_adapter(run.adapter).tensors.items() if name.startswith("layers.")}


@pytest.mark.parametrize("mode", ["head", "mhr"])
def test_an_adaptation_of_each_task_begins_with_the_run_s_controller(
    mode: str, source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    run = source("hra")
    first = layers(run)
    made = adapt(
        str(run.path),
        NEW,
        mode=mode,
        output=str(tmp_path / "a"),
        progress=False,
        grid={"lr": [1e-3, 1e-1]},
        dev_shots=4,
    )
    (alone,) = adapt(
        str(run.path),
        NEW[1:],
        mode=mode,
        output=str(tmp_path / "b"),
        progress=False,
        grid={"lr": [1e-3, 1e-1]},
        dev_shots=4,
    )
    for one in made:
        found = layers(one)
        assert found.keys() == first.keys()
        changed = {name.rpartition(".")[2] for name in found if not torch.equal(found[name], first[name][:, :1])}
        assert ("bank_a" in changed) == (mode == "mhr")
        assert "bank_b" in changed
        assert len(one.info["selection"]["trials"]) == 2
        inspected = inspect_run(one.path)
        assert inspected.trained == HEAD + (mode == "mhr") * CONTROLLER
        assert cost_of(inspected).another == inspected.trained
    assert all(torch.equal(t, layers(alone)[name]) for name, t in layers(made[1]).items())


def test_one_more_task_costs_a_head(source: Callable[[str], RunFolder]) -> None:
    found = inspect_run(source("hra").path)
    assert found.per_skill == found.to_json()["skill_parameters_per_task"] == HEAD
    assert found.parameters["skills"]["trained"] == 3 * HEAD + CONTROLLER
    cost = cost_of(found)
    assert cost.another == HEAD
    assert cost.another_bytes == 4 * HEAD
    assert cost_of(inspect_run(source("private").path)).another == inspect_run(source("private").path).per_skill > 0
    assert inspect_run(source("mhr").path).per_skill == 0


def test_it_may_end_as_the_mean_of_its_heads(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    run = pretrain(settings(method="hra", steps=4, switch_to_mu_at=2), str(tmp_path / "run"), progress=False)
    assert {t.shape[:2] for t in layers(run).values()} == {(1, 1)}
    with pytest.raises(ConfigError, match="mode is 'head', .* it ended as the average of its skills"):
        adapt(str(run.path), NEW[:1], mode="head", output=str(tmp_path / "a"), progress=False)
    (found,) = adapt(str(run.path), NEW[:1], mode="mu", output=str(tmp_path / "b"), progress=False)
    assert inspect_run(found.path).trained == HEAD + CONTROLLER


def test_what_a_mode_does_not_train_has_no_rate(source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    run = str(source("hra").path)
    with pytest.raises(ConfigError, match="router_lr is 0.1, but mode 'head' does not train routing: leave it out"):
        adapt(run, NEW[:1], mode="head", router_lr=0.1, output=str(tmp_path / "a"), progress=False)
    with pytest.raises(ConfigError, match="mode is 'z', but run .* has method 'hra': .* use mode 'head'"):
        adapt(run, NEW[:1], mode="z", output=str(tmp_path / "a"), progress=False)
    with pytest.raises(
        ConfigError, match="start is 'nearest', but a run of method 'hra' in mode 'head' begins with no row"
    ):
        adapt(run, NEW[:1], mode="head", start="nearest", output=str(tmp_path / "a"), progress=False)
    assert not list(tmp_path.iterdir())
