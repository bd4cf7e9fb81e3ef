"""`mhr pretrain RUN`: a run goes on from another, by the settings of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhr.adapters import read_adapter
from tests.cli.running import SMALL, refuse, succeed


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mhr"
    succeed("pretrain", *SMALL, "--steps", "3", "--switch-to-mu-at", "2", "--output", folder.parent / "switched")
    succeed("pretrain", *SMALL, "--steps", "3", "--output", folder)
    return folder


def test_a_phase_and_its_control_take_the_settings_of_the_run(bank: Path, tmp_path: Path) -> None:
    more = ("--steps", "2", "--lr", "1e-4")
    succeed("pretrain", bank, "--continue-as-mu", *more, "--output", tmp_path / "mu")
    succeed("pretrain", bank, *more, "--output", tmp_path / "control")
    for name, method, how in (("mu", "shared", "mu"), ("control", "mhr", "bank")):
        info = json.loads((tmp_path / name / "run.json").read_text())
        assert (info["steps"], info["config"]["train"]["lr"], info["config"]["train"]["batch_size"]) == (2, 1e-4, 4)
        assert (info["config"]["continue_from"], info["config"]["continue_as"]) == (str(bank), how)
        assert read_adapter(tmp_path / name / "adapter").config.method == method
    # The same command with --resume finds it done; so does one that names the output alone.
    for again in ((bank, "--continue-as-mu", *more), ()):
        succeed("pretrain", *again, "--output", tmp_path / "mu", "--resume")
    line = refuse("pretrain", bank.parent / "switched", *more, "--output", tmp_path / "mu", "--resume")
    assert "was started with continue_from" in line


def test_what_an_earlier_end_asked_for_is_not_asked_again(bank: Path, tmp_path: Path) -> None:
    switched = bank.parent / "switched"
    succeed("pretrain", switched, "--continue-as-mu", "--steps", "1", "--output", tmp_path / "mu")
    assert json.loads((tmp_path / "mu" / "run.json").read_text())["config"]["train"]["switch_to_mu_at"] is None
    line = refuse("pretrain", switched, "--steps", "1", "--output", tmp_path / "bank")
    assert "go on with that, by --continue-as-mu" in line


def test_uses_that_are_refused(bank: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out")
    assert "was trained for 3 steps, and it is not said for how many it goes on" in refuse("pretrain", bank, *output)
    steps = ("--steps", "2")
    line = refuse("pretrain", "--preset", "demo", "--continue-as-mu", *steps, *output)
    assert "--continue-as-mu: continue_as is 'mu', but no run is named" in line
    assert "leave --config and --preset out" in refuse("pretrain", bank, "--preset", "demo", *steps, *output)
    assert "no run at" in refuse("pretrain", tmp_path, *steps, *output)
    assert "holds the input" in refuse("pretrain", bank, *steps, "--output", bank)
    assert "is not empty" in refuse("pretrain", bank, *steps, "--output", bank.parent / "switched")
    line = refuse("pretrain", bank, "--continue-as-mu", "--router-lr", "0.5", *steps, *output)
    assert "--router-lr: train.router_lr has no effect on one adapter for all tasks" in line
    assert "adapter.rank is 3, but run" in refuse("pretrain", bank, "--rank", "3", *steps, *output)
    line = refuse("pretrain", bank, "--continue-as-mu", "--switch-to-mu-at", "1", *steps, *output)
    assert "which begins as the average: leave switch_to_mu_at and anneal_to_mu out" in line
    assert not (tmp_path / "out").exists()
