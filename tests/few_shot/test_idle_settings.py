"""A setting of an adaptation that is given changes what comes out, or is refused: each in each mode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mhr.adapters import read_adapter
from mhr.errors import ConfigError
from mhr.few_shot import adapt
from mhr.methods import MODES
from mhr.runs import RunConfig, RunFolder
from mhr.runs.adapt_settings import AdaptConfig
from mhr.sweeps import sweep
from mhr.training import pretrain

Source = Callable[[str], RunFolder]
TASK = "next-first"
USED = {
    "mhr": "mhr",
    "z": "mhr",
    "head": "hra",
    "mu": "mhr",
    "lora": "lora",
    "lorahub": "mhr",
    "full": "mhr",
    "random": "mhr",
}
"""Mode -> a method whose runs allow it."""
VALUES: dict[str, Any] = {
    "steps": 2,
    "lr": 0.3,
    "router_lr": 0.7,
    "full_lr": 0.2,
    "warmup": 0.9,
    "scheduler": "constant",
    "scale_parameter": True,
    "length_norm": 0.5,
    "mc_loss": 3.0,
    "unlikely_loss": 3.0,
    "shots": 5,
    "shots_for": {TASK: 5},
    "start": "average",
    "similarity": "shots",
    "encoder": "nowhere/at-all",
    "candidates": 2,
    "experts": "skills",
    "seeds": [7],
    "grid": {"lr": [0.3], "warmup": [0.9], "router_lr": [0.7]},
    "protocol": "paper",
    "select": "best",
    "eval_every": 1,
    "patience": 1,
    "dev": "nowhere.jsonl",
    "dev_shots": 2,
}
"""Another value of each setting of an adaptation but `batch_size`, which a search (lorahub) may have for want of memory."""


def test_every_setting_is_looked_at() -> None:
    assert VALUES.keys() | {"batch_size"} == AdaptConfig().to_dict().keys()
    assert USED.keys() == MODES.keys()


def outcome(run: RunFolder) -> tuple[Any, ...]:
    """What decides answers, and what is told of how it came about."""
    tensors = read_adapter(run.adapter).tensors if run.adapter.is_dir() else {}
    weights = {name: tensor.double().sum().item() for name, tensor in tensors.items()}
    log = [(record["loss"], record.get("lr"), record.get("weights")) for record in run.metrics()]
    return weights, log, run.info["shots"], run.info["seed"], run.info["selection"], run.config().train.length_norm


@pytest.fixture(scope="session")
def plain() -> dict[str, tuple[Any, ...]]:
    """Mode -> what comes out with the settings of the run."""
    return {}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("mode", USED)
def test_a_setting_changes_something_or_is_refused(
    mode: str, name: str, source: Source, plain: dict[str, tuple[Any, ...]], tmp_path: Path
) -> None:
    run = str(source(USED[mode]).path)
    common: dict[str, Any] = {"mode": mode, "progress": False}
    if mode not in plain:
        (found,) = adapt(run, [TASK], output=str(tmp_path / "plain"), **common)
        plain[mode] = outcome(found)
    refused = ""
    try:
        (found,) = adapt(run, [TASK], output=str(tmp_path / "out"), **common, **{name: VALUES[name]})
    except ConfigError as error:
        refused = str(error)
    if refused:
        assert name in refused
        assert "\n" not in refused
        assert not (tmp_path / "out").exists()
    else:
        assert outcome(found) != plain[mode]


@pytest.mark.parametrize(
    ("mode", "few", "said"),
    [
        ("z", {"full_lr": 0.1}, "full_lr is 0.1, but mode 'z' does not train all weights: leave it out"),
        ("mhr", {"scale_parameter": True}, "scale_parameter has no effect with train.optimizer adamw: leave it out"),
        ("mhr", {"similarity": "definition"}, "similarity has no effect with adapt.start fresh: leave it out"),
        ("lorahub", {"warmup": 0.5}, "warmup is 0.5, but mode 'lorahub' does not take gradient steps: leave it out"),
        ("lorahub", {"scheduler": "cosine"}, "scheduler is cosine, but mode 'lorahub' does not take gradient steps"),
        (
            "lorahub",
            {"grid": {"warmup": [0.1, 0.2]}},
            r"grid has warmup \[0.1, 0.2\], but mode 'lorahub' does not take",
        ),
        ("mhr", {"protocol": "paper", "select": "last"}, "protocol is paper, but nothing is chosen: add grid"),
        (
            "z",
            {"protocol": "paper", "select": "last", "grid": {"router_lr": [0.1]}},
            "protocol is paper, but nothing is",
        ),
        (
            "mhr",
            {"steps": 0, "lr": 0.1},
            "lr is 0.1, but steps is 0, so that nothing is trained: leave one of the two out",
        ),
        ("mhr", {"steps": 0, "mc_loss": 1.0}, "mc_loss is 1.0, but steps is 0"),
    ],
)
def test_what_changes_nothing_is_refused_by_both_commands(
    mode: str, few: dict[str, Any], said: str, source: Source, tmp_path: Path
) -> None:
    run = str(source(USED[mode]).path)
    for act in (
        lambda: adapt(run, [TASK], mode=mode, output=str(tmp_path / "out"), progress=False, **few),
        lambda: sweep([run], [TASK], modes=[mode], output=str(tmp_path / "out"), progress=False, **few),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            act()
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_sweep_takes_what_one_of_its_runs_uses(
    source: Source, settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = pretrain(settings(steps=1, **{"train.optimizer": "adafactor"}), str(tmp_path / "other"), progress=False)
    planned: list[Any] = []

    class Planned(Exception):
        pass

    def launch(study: Any, adaptations: Any) -> Any:
        planned.extend(adaptations)
        raise Planned

    monkeypatch.setattr("mhr.sweeps.sweeping.launchers", {"here": lambda workers: launch})
    how: dict[str, Any] = {"modes": ["mhr"], "launcher": "here", "seeds": [1], "scale_parameter": True}
    with pytest.raises(Planned):
        sweep([str(source("mhr").path), str(other.path)], [TASK], output=str(tmp_path / "out"), progress=False, **how)
    assert len(planned) == 2


def test_nothing_is_said_to_be_chosen_where_nothing_was(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    """By a recipe that says how published results were chosen, of which the user takes the last step."""
    run = pretrain(settings(steps=1, **{"adapt.protocol": "paper"}), str(tmp_path / "run"), progress=False)
    for select, protocol in (("last", "held-out"), ("best", "paper")):
        output = tmp_path / select
        (found,) = adapt(str(run.path), [TASK], mode="z", output=str(output), select=select, progress=False)
        assert json.loads((found.path / "run.json").read_text())["protocol"] == protocol
