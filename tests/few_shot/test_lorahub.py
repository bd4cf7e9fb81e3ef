"""LoraHub: the search, the sum of LoRAs that it weighs, and adaptations that it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mhr.adapters import collapse, collapse_task, load_checkpoint, read_adapter, write_adapter
from mhr.errors import ConfigError
from mhr.evaluation import load_model
from mhr.experts import route_tokens
from mhr.few_shot import adapt
from mhr.few_shot.lorahub import Hub
from mhr.few_shot.shots import draw_shots
from mhr.merging import merge
from mhr.runs import RunFolder
from mhr.runs.tasks import read_tasks

Source = Callable[[str], RunFolder]
TASK = "next-first"


@pytest.fixture
def trained(source: Source, tmp_path: Path) -> RunFolder:
    """A run of three LoRAs that differ, as after more than a few steps."""
    run = source("private")
    bank = read_adapter(run.adapter)
    if not bank.info.get("spread"):
        generator = torch.Generator().manual_seed(0)
        for name, tensor in bank.tensors.items():
            if name.endswith("bank_b"):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        bank.info["spread"] = True
        write_adapter(bank, run.adapter)
    return run


def searched(run: RunFolder, output: Path, **few: Any) -> RunFolder:
    few = {"seeds": [3], "shots": 8, "steps": 12, **few}
    return adapt(str(run.path), [TASK], mode="lorahub", output=str(output), progress=False, **few)[0]


def test_what_comes_out_is_the_weighted_sum_of_factors_and_its_objective_is_that_of_the_equation(
    trained: RunFolder, tmp_path: Path
) -> None:
    run = searched(trained, tmp_path / "out")
    bank = read_adapter(trained.adapter)
    weights = run.info["found"]["weights"]
    assert list(weights) == bank.tasks
    assert any(weights.values())
    plain, parts = collapse(read_adapter(run.adapter), None), {t: collapse_task(bank, t) for t in bank.tasks}
    for name, layer in plain.layers.items():
        for factor in ("a", "b"):
            stated = sum(w * getattr(parts[task].layers[name], factor).double() for task, w in weights.items())
            torch.testing.assert_close(getattr(layer, factor).double(), stated, rtol=1e-5, atol=1e-6)
    model, tokenizer = load_checkpoint(run.result())
    task = read_tasks(run.config().tasks, run.config().data)[TASK]
    total = count = 0.0
    for example in draw_shots(task, 8, 3):
        given = tokenizer(example.input, return_tensors="pt")
        labels = tokenizer(text_target=example.targets[0], return_tensors="pt").input_ids
        logits = model.double()(**given, labels=labels, task_ids=[TASK]).logits
        total += F.cross_entropy(logits[0], labels[0], reduction="sum").item()
        count += labels.shape[1]
    penalty = 0.05 * sum(map(abs, weights.values())) / len(weights)
    assert run.info["found"]["objective"] == pytest.approx(total / count + penalty, rel=1e-4)


def test_the_log_tells_every_candidate_and_the_best_only_falls(trained: RunFolder, tmp_path: Path) -> None:
    run = searched(trained, tmp_path / "out")
    records = run.metrics()
    assert [record["step"] for record in records] == list(range(1, 13))
    best = [record["objective"] for record in records]
    assert best == sorted(best, reverse=True)
    assert best[-1] < best[0]
    assert not any(records[0]["weights"].values())  # the base model
    again = searched(trained, tmp_path / "again")
    assert again.info["found"] == run.info["found"]
    assert (run.info["mode"], run.info["steps"], run.status) == ("lorahub", 12, "done")
    load_model(run.path)
    merge(run.path, to="peft-lora", output=tmp_path / "lora", base=str(run.info["base"]))
    assert (tmp_path / "lora" / "adapter_config.json").is_file()


def test_few_candidates_are_drawn_by_the_seed(source: Source) -> None:
    run = source("private")
    drawn = [Hub.draw(run, None, 2, seed).names for seed in range(6)]
    assert all(len(names) == 2 for names in drawn)
    assert len({tuple(names) for names in drawn}) > 1
    assert Hub.draw(run, None, 2, 0).names == drawn[0]
    skills = Hub.draw(source("mhr"), "skills", 20, 0)
    assert skills.names[0] == "skill 0"


def test_folders_are_weighed_once_tokens_chose_among_them(trained: RunFolder, tmp_path: Path) -> None:
    routed = route_tokens(trained.path, output=tmp_path / "routed")
    run, direct = searched(routed, tmp_path / "out"), searched(trained, tmp_path / "direct")
    assert run.info["found"] == direct.info["found"]


@pytest.mark.parametrize(
    "few",
    [{"eval_every": 4}, {"grid": {"steps": [3, 6]}, "steps": None, "dev_shots": 4}, {"patience": 1, "eval_every": 2}],
)
def test_protocols_choose_among_its_steps(few: dict[str, Any], trained: RunFolder, tmp_path: Path) -> None:
    run = searched(trained, tmp_path / "out", **few)
    selection = run.info["selection"]
    assert selection["trials"][selection["chosen"]]["step"] == run.info["steps"]
    hub, plain = Hub.draw(trained, None, 20, 3), collapse(read_adapter(run.adapter), None)
    weights = torch.tensor(list(run.info["found"]["weights"].values()))
    for name, layer in plain.layers.items():
        stated = torch.einsum("k,kpq->pq", weights, hub.layers[name]["bank_b"])
        torch.testing.assert_close(layer.b, stated, rtol=1e-5, atol=1e-6)
    assert run.status == "done"


@pytest.mark.parametrize(
    ("method", "few", "said"),
    [
        ("lora", {}, "it has one adapter, which leaves nothing to weigh: use mode 'lora'"),
        ("poly-ia3", {}, "has adapters of kind 'ia3', and what is weighed are LoRAs: use mode 'mu'"),
        ("private", {"lr": 0.1}, "lr is 0.1, but mode 'lorahub' does not train the adapter"),
        ("private", {"candidates": 1}, "candidates is 1, expected"),
        ("private", {"experts": "rows"}, "experts is 'rows', expected one of tasks, skills"),
    ],
)
def test_what_cannot_be_weighed_is_refused(
    method: str, few: dict[str, Any], said: str, source: Source, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        searched(source(method), tmp_path / "out", **few)
    assert not (tmp_path / "out").exists()


def test_one_lora_alone_is_refused_before_anything_is_written(source: Source, tmp_path: Path) -> None:
    one = merge(source("private").path, method="task", task="rev-last", output=tmp_path / "lora")
    routed = route_tokens(one, output=tmp_path / "routed", top_k=1)
    with pytest.raises(ConfigError, match="has one LoRA, which leaves nothing to weigh"):
        searched(routed, tmp_path / "out", tasks_path=source("private").config().tasks)
    assert not (tmp_path / "out").exists()


def test_its_settings_are_of_no_other_mode(source: Source, tmp_path: Path) -> None:
    for name, value in (("candidates", 5), ("experts", "skills")):
        with pytest.raises(
            ConfigError, match=f"{name} is {value!r}, but mode 'mu' weighs no LoRAs: use mode 'lorahub'"
        ):
            adapt(
                str(source("mhr").path),
                [TASK],
                mode="mu",
                output=str(tmp_path / "out"),
                progress=False,
                **{name: value},
            )
