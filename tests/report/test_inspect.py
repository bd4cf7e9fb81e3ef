"""Looking at adapters: counts, routing, entropy, similarity, and the plots of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib.image
import pytest
import torch

from mhr import AdapterConfig, attach
from mhr.checkpoint import save_adapter
from mhr.errors import CheckpointError
from mhr.merging import merge
from mhr.report.inspect import inspect_run
from mhr.report.plots import save_plots
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
    assert (found.n_layers, found.n_heads, found.n_skills, found.rank) == (GROUPS, 4, 3, 2)
    skills, routing = GROUPS * 3 * 2 * (32 + 32), GROUPS * 4 * 4 * 3
    assert found.parameters == {
        "skills": {"stored": skills, "trained": skills},
        "routing": {"stored": routing, "trained": routing},
    }
    assert found.trained == found.stored == skills + routing
    assert found.per_task == GROUPS * 4 * 3
    assert found.matrix.shape == (4, GROUPS * 4 * 3)
    assert len(found.columns) == found.matrix.shape[1]
    group, head, skill = found.columns[17]
    assert torch.equal(found.matrix[:, 17], found.weights[group][:, head, skill])


def test_a_fixed_table_is_stored_but_not_trained(tmp_path):
    found = inspect_run(saved(tmp_path / "a", method="random", granularity="coarse", n_skills=5))
    assert found.parameters["routing"] == {"stored": 4 * 5, "trained": 0}
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
    assert found.parameters["modules"] == {"stored": 33, "trained": 33}
    assert not found.routed
    assert found.most_alike() == {}


def test_entropy(tmp_path):
    uniform = inspect_run(saved(tmp_path / "uniform", method="uniform", n_skills=4))
    assert list(uniform.entropy.values()) == pytest.approx([1.0] * GROUPS)
    assert list(inspect_run(saved(tmp_path / "private", method="private")).entropy.values()) == [0.0] * GROUPS
    assert set(inspect_run(saved(tmp_path / "shared", method="shared")).entropy.values()) == {0.0}
    # Two skills at 1/2 and two at 0: entropy log 2 of log 4.
    logits = torch.tensor([30.0, 30.0, -30.0, -30.0]).expand(4, 1, 4)
    half = inspect_run(saved(tmp_path / "half", method="poly", n_skills=4, logits=logits))
    assert list(half.entropy.values()) == pytest.approx([math.log(2) / math.log(4)] * GROUPS)


def test_similarity_and_the_most_alike(tmp_path):
    a, b = torch.tensor([3.0, -3.0, 0.0]), torch.tensor([-3.0, 3.0, 0.0])
    logits = torch.stack([a, b, 0.9 * a, torch.zeros(3)])[:, None]
    found = inspect_run(saved(tmp_path / "a", method="poly", n_skills=3, logits=logits))
    similarity = found.similarity
    assert torch.equal(similarity.diagonal(), torch.ones(4))
    torch.testing.assert_close(similarity, similarity.T)
    assert similarity[0, 2] > 0.99
    assert similarity[0, 1] < -0.9
    torch.testing.assert_close(similarity[3, :3], torch.zeros(3))  # uniform: like no other
    alike = found.most_alike(2)
    assert [alike[task][0][0] for task in ("boolq", "wic")] == ["wic", "boolq"]
    assert alike["boolq"][0][1] == pytest.approx(float(similarity[0, 2]))
    assert len(alike["boolq"]) == 2
    torch.testing.assert_close(found.by_skill[0], torch.sigmoid(a) / torch.sigmoid(a).sum())


def test_a_merged_adapter_and_a_peft_folder(tmp_path):
    run = saved(tmp_path / "a", method="poly")
    for to in ("mhr", "peft-lora"):
        found = inspect_run(merge(run, to=to, output=tmp_path / to))
        assert (found.method, found.n_skills, found.tasks) == ("shared", 1, ["merged"])
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


def test_plots(tmp_path):
    found = inspect_run(saved(tmp_path / "a", n_heads=2, n_skills=3))
    files = save_plots(found, tmp_path / "plots")
    names = ["entropy", "layers", "routing", "similarity"]
    assert sorted(p.name for p in files) == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for file in files:
        if file.suffix == ".png":
            picture = matplotlib.image.imread(file)
            assert min(picture.shape[:2]) > 200
            assert (picture[0, 0] == 1).all()  # a light background
        else:
            text = file.read_text()
            assert ("boolq" in text) == (file.stem != "entropy")
            assert "<dc:date>" not in text  # equal plots are equal files


def test_nothing_to_plot_where_tasks_share_all(tmp_path):
    found = inspect_run(saved(tmp_path / "a", method="shared"))
    assert save_plots(found, tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()
