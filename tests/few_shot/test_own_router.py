"""A router with a network that all tasks share and settings of its own: what the library makes of it, from its two rows alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mhr.adapters import load_checkpoint, read_adapter
from mhr.analysis.costs import cost_of
from mhr.analysis.inspection import inspect_run
from mhr.errors import ConfigError
from mhr.evaluation import evaluate, load_model
from mhr.evaluation.scope import tasks_to_judge
from mhr.few_shot import adapt
from mhr.layers.parameter_groups import parameter_groups
from mhr.merging import merge
from mhr.report.material import label_of
from mhr.runs import RunConfig, RunFolder
from mhr.runs.config import load_config
from mhr.training import pretrain
from tests.routing.network import NAME, network_router

Make = Callable[..., RunConfig]
TASKS = ["next-first", "swap-last"]
WIDTH = 5

__all__ = ["network_router"]
pytestmark = pytest.mark.usefixtures("network_router")


@pytest.fixture
def run(settings: Make, tmp_path: Path) -> RunFolder:
    config = settings(method=NAME, steps=4, save_every=2, router_lr=0.5, router={"width": WIDTH, "network_lr": 0.25})
    return pretrain(config, str(tmp_path / "run"), progress=False)


def routing_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return {name: t for name, t in read_adapter(run.adapter).tensors.items() if name.startswith("routers.")}


def test_it_trains_at_its_own_rate_and_is_read_again(run: RunFolder, settings: Make) -> None:
    model, _ = load_checkpoint(run.adapter)
    model.mhr.requires_grad_(True)
    groups = {
        group.name: group for group in parameter_groups(model, lr=0.1, router_lr=0.5, weight_decay=0.0, decaying=set())
    }
    assert (groups["routing"].lr, groups["routing"].weight_decay) == (0.5, 0.0)
    assert (groups["network"].lr, groups["network"].weight_decay) == (0.25, 0.1)
    n_routers = len(model.mhr.groups)
    assert len(groups["routing"].parameters) == n_routers
    assert len(groups["network"].parameters) == 2 * n_routers
    assert sum(len(group.parameters) for group in groups.values()) == len(
        [p for p in model.parameters() if p.requires_grad]
    )
    assert model.mhr.config.router == {"width": WIDTH, "network_lr": 0.25}
    assert load_config(run.path / "config.yaml").adapter.router["width"] == WIDTH
    stored = routing_of(run)
    assert {name: t for name, t in model.mhr.tensors().items() if name in stored}.keys() == stored.keys()
    for name, tensor in model.mhr.tensors().items():
        if name in stored:
            assert torch.equal(tensor, stored[name])


def test_a_resumed_run_ends_where_one_without_a_break_does(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    config = run.config()
    pretrain(config, str(again), progress=False)
    for file in (again / "checkpoints").glob("checkpoint-4"):
        file.rename(tmp_path / "gone")
    info = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps(info | {"status": "interrupted"}))
    resumed = pretrain(config, str(again), resume=True, progress=False)
    assert resumed.info["resumed_from"] == "checkpoint-2"
    one, two = routing_of(run), routing_of(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("mode", ["mhr", "z", "random"])
def test_adaptations_do_not_depend_on_those_before_them(run: RunFolder, mode: str, tmp_path: Path) -> None:
    found = {}
    for order in (TASKS, TASKS[::-1]):
        output = tmp_path / order[0]
        for made in adapt(str(run.path), order, mode=mode, output=str(output), router_lr=0.5, progress=False):
            found[order[0], made.info["tasks"][0]] = read_adapter(made.adapter).tensors
    for task in TASKS:
        one, two = (found[first, task] for first in TASKS)
        assert all(torch.equal(one[name], two[name]) for name in one)
    network = [name for name in one if name.startswith("routers.") and "network" in name]
    before = routing_of(run)
    kept = all(torch.equal(one[name], before[name]) for name in network)
    assert kept == (mode == "z")  # in which the row alone is trained


def test_it_is_shown_as_trained(run: RunFolder, tmp_path: Path) -> None:
    found = inspect_run(run.path)
    routing = routing_of(run)
    rows = sum(t.numel() for name, t in routing.items() if name.endswith("vectors"))
    assert found.parameters["routing"]["trained"] == found.parameters["routing"]["stored"]
    assert found.per_task * 3 == rows == len(routing) // 3 * 3 * WIDTH
    assert cost_of(found).another == found.per_task
    assert found.routing.n_heads == 2
    (made,) = adapt(str(run.path), TASKS[:1], mode="z", output=str(tmp_path / "z"), progress=False)
    assert inspect_run(made.path).trained == found.per_task == made.info["parameters"]["trained"]
    assert label_of(made.info) == "Network-z, 8 shots"


def test_it_is_merged_and_evaluated(run: RunFolder, tmp_path: Path) -> None:
    (made,) = adapt(str(run.path), TASKS[:1], mode="mhr", output=str(tmp_path / "m"), progress=False)
    collection = tasks_to_judge(made.path, tasks=None, names=None, part=None)
    merged = merge(made.path, method="task", task=TASKS[0], output=tmp_path / "merged")
    one, two = (evaluate(load_model(path), collection, progress=False).tasks[TASKS[0]] for path in (made.path, merged))
    assert one == two


def test_its_settings_are_checked(settings: Make) -> None:
    with pytest.raises(ConfigError, match="unknown setting of method 'network' 'widht': did you mean 'width'"):
        settings(method=NAME, router={"widht": 3})
    with pytest.raises(ConfigError, match=r"router\.width is 0, expected an integer of at least 1"):
        settings(method=NAME, router={"width": 0})
    with pytest.raises(ConfigError, match="noise is 'per_task', but method 'network' has no logits in its routing"):
        settings(method=NAME, noise="per_task")
