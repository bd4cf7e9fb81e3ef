"""Looking at adapters: what they hold, and what of it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mhr import AdapterConfig, attach
from mhr.adapters import save_adapter
from mhr.analysis.inspection import inspect_run
from mhr.errors import CheckpointError
from mhr.merging import merge
from tests.models import tiny_model

TASKS = ["boolq", "rte", "wic", "cb"]
GROUPS = 24  # query, key, value and output of 2 encoder and 4 decoder attentions


def saved(folder: Path, name: str = "t5", logits: torch.Tensor | None = None, **settings) -> Path:
    model = tiny_model(name)
    bank = attach(model, AdapterConfig(**settings), TASKS)
    for router in bank.groups.values():
        if logits is not None:
            router.logits.data.copy_(logits)
    return save_adapter(model, folder, base="tiny")


def test_counts_of_a_bank(tmp_path):
    found = inspect_run(saved(tmp_path / "a", n_heads=4, n_skills=3, rank=2))
    assert (found.method, found.adapter, found.base, found.tasks) == ("mhr", "lora", "tiny", TASKS)
    assert (found.n_layers, found.routing.n_heads, found.routing.n_skills, found.rank) == (GROUPS, 4, 3, 2)
    skills, routing = GROUPS * 3 * 2 * (32 + 32), GROUPS * 4 * 4 * 3
    assert found.parameters == {
        "skills": {"stored": skills, "trained": skills, "bytes": 4 * skills},
        "routing": {"stored": routing, "trained": routing, "bytes": 4 * routing},
    }
    assert found.trained == found.stored == skills + routing
    assert found.per_task == GROUPS * 4 * 3
    assert found.bytes == 4 * found.stored
    assert found.routing.matrix.shape == (4, GROUPS * 4 * 3)
    assert len(found.routing.columns) == found.routing.matrix.shape[1]
    group, head, skill = found.routing.columns[17]
    assert torch.equal(found.routing.matrix[:, 17], found.routing.weights[group][:, head, skill])


def test_a_fixed_table_is_stored_but_not_trained(tmp_path):
    found = inspect_run(saved(tmp_path / "a", method="random", granularity="coarse", n_skills=5))
    assert found.parameters["routing"] == {"stored": 4 * 5, "trained": 0, "bytes": 4 * 4 * 5}
    assert found.per_task == 0


def test_an_adaptation_of_the_routing_alone(tmp_path):
    saved(tmp_path / "run" / "adapter", method="poly")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"kind": "adapt", "mode": "z"}))
    found = inspect_run(tmp_path / "run")
    assert found.parameters["skills"]["trained"] == 0 < found.parameters["skills"]["stored"]
    assert found.trained == found.parameters["routing"]["trained"] == GROUPS * 4 * 8
    assert found.run["mode"] == "z"


def test_modules_are_counted(tmp_path):
    found = inspect_run(saved(tmp_path / "a", "bert", method="shared"))
    assert found.parameters["modules"] == {"stored": 33, "trained": 33, "bytes": 4 * 33}
    assert not found.routed
    assert found.routing.most_alike() == {}


def test_a_merged_adapter_and_a_peft_folder(tmp_path):
    run = saved(tmp_path / "a", method="poly")
    for to in ("mhr", "peft-lora"):
        found = inspect_run(merge(run, to=to, output=tmp_path / to))
        assert (found.method, found.routing.n_skills, found.tasks) == ("shared", 1, ["merged"])
        assert found.trained == found.parameters["skills"]["stored"] == GROUPS * 4 * (32 + 32)


def test_a_run_that_trained_all_weights(tmp_path):
    model = tiny_model("t5")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "run.json").write_text(json.dumps({"method": "full", "base": "tiny", "tasks": TASKS, "status": "done"}))
    found = inspect_run(tmp_path)
    assert (found.method, found.base, found.tasks, found.routed) == ("full", "tiny", TASKS, False)
    assert found.trained == sum(p.numel() for p in model.parameters())
    assert json.loads(json.dumps(found.to_json()))["parameters"]["all"]["trained"] == found.trained


def test_json(tmp_path):
    found = inspect_run(saved(tmp_path / "a", n_heads=2, n_skills=3)).to_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["agreement_with_shared_skills"] is None  # these are no tasks of the suite
    assert again["by_task"]["rte"]["effective_skills"] == pytest.approx(3, abs=1e-3)
    assert again["n_heads"] == 2
    assert again["by_skill"]["rte"] == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert again["most_alike"].keys() == set(TASKS)


def test_what_cannot_be_inspected(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        inspect_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="expected a run folder"):
        inspect_run(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "running"}')
    with pytest.raises(CheckpointError, match="has no adapter yet .status 'running'.: finish it with --resume"):
        inspect_run(tmp_path)


def test_a_bank_of_the_suite_is_compared_with_its_true_skills(tmp_path):
    model = tiny_model("t5")
    tasks = ["rev-last", "rev-first", "min-box", "max-box", "min-upper", "swap-last"]
    bank = attach(model, AdapterConfig(method="poly", granularity="coarse"), tasks)
    of = {name: i for i, name in enumerate(("rev", "swap", "last", "first", "min", "max", "box", "upper"))}
    (router,) = bank.groups.values()
    for row, task in enumerate(tasks):
        for skill in task.split("-"):
            router.logits.data[row, 0, of[skill]] = 3.0
    found = inspect_run(save_adapter(model, tmp_path / "a", base="tiny"))
    assert found.agreement is not None
    assert found.agreement.pairs == 15
    assert found.agreement.correlation > 0.4
    assert found.agreement.p < 0.1
