"""`mhr route`: LoRAs of a run and of folders, each token choosing among them; what the run answers to, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import mhr
import mhr.experts
from mhr import AdapterConfig
from mhr.adapters import collapse, read_adapter, read_bank, save_adapter
from mhr.adapters.collapse import collapse_task
from mhr.backbones import load_backbone
from mhr.evaluation import fold_bank, load_model
from mhr.training.signals import Interrupted
from tests.cli.running import invoke, refuse, succeed
from tests.models import randomise
from tests.routing.contexts import with_contexts

T5 = "builtin:t5-tiny"


NAMES = ["rev-last", "next-first", "rev-first"]


def bank(folder: Path, **settings: Any) -> Path:
    """A run of a bank in which everything has a value."""
    model, _ = load_backbone(T5)
    randomise(mhr.attach(model, AdapterConfig(rank=2, targets=["q", "v"], **settings), NAMES))
    save_adapter(model, folder / "bank", base=T5)
    succeed("import", folder / "bank", "--tasks", "builtin:skills", "--output", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bank(tmp_path_factory.mktemp("private"), method="private")


@pytest.fixture(scope="module")
def routed(private: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routed") / "run"
    shown = succeed("route", private, "--top-k", "3", "--output", folder)
    assert "arrow on builtin:t5-tiny, 3 LoRAs (rev-last, next-first, rev-first)" in shown.stdout
    return folder


def lora(folder: Path, seed: int, rank: int = 2) -> Path:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=rank, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    peft.get_peft_model(load_backbone(T5)[0], config).save_pretrained(folder)
    return folder


def test_a_run_of_one_lora_a_task_is_evaluated_and_answers_without_a_task(private: Path, routed: Path) -> None:
    judged = json.loads(succeed("evaluate", routed, "--task", "init-upper", "--limit", "2", "--json").stdout)
    assert judged["tasks"].keys() == {"init-upper"}  # a task that none of the LoRAs is for
    assert len(succeed("predict", routed, "init upper: bcdh").stdout.splitlines()) == 1
    assert len(mhr.load(routed).predict(["init upper: bcdh", "rev last: bcdh"])) == 2
    found, before = read_adapter(routed / "adapter"), read_adapter(private / "adapter")
    assert found.tasks == before.tasks
    assert found.config.router == {"top_k": 3, "temperature": 1.0}
    layer = next(iter(found.layers))
    assert torch.equal(found.tensors[f"layers.{layer}.bank_b"], before.tensors[f"layers.{layer}.bank_b"])
    assert found.tensors[f"routers.{layer}.directions"].shape == (3, found.layers[layer][0])
    held = json.loads(succeed("inspect", routed, "--json").stdout)
    assert (held["parameters"]["all"]["trained"], held["by_task"]) == (0, {})
    succeed("report", routed, "--output", routed.parent / "report")


def test_skills_and_tasks_of_a_bank_are_both_loras(tmp_path: Path) -> None:
    run = bank(tmp_path, n_heads=4, n_skills=2)
    succeed("route", run, "--output", tmp_path / "tasks")
    succeed("route", run, "--experts", "skills", "--output", tmp_path / "skills")
    assert len(read_adapter(tmp_path / "tasks" / "adapter").tasks) == 3
    assert read_adapter(tmp_path / "skills" / "adapter").tasks == ["skill 0", "skill 1"]


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "generative-adapter", "router": {"shots": 2, "size": 8}},
        {"method": "hyperformer++", "n_skills": 4},
        {"method": "mtl-lora", "n_skills": 2},
        {"method": "mhr", "n_heads": 1, "n_skills": 1},
    ],
    ids=lambda settings: settings["method"],
)
def test_each_task_of_a_bank_is_a_lora_whatever_makes_it(settings: dict[str, Any], tmp_path: Path) -> None:
    model, _ = load_backbone(T5)
    attached = mhr.attach(model, AdapterConfig(rank=2, targets=["q", "v"], **settings), NAMES)
    randomise(attached)
    with_contexts(attached)
    save_adapter(model, tmp_path / "bank", base=T5)
    one = mhr.experts.route_tokens(tmp_path / "bank", output=tmp_path / "run")
    assert one.info["tasks"] == NAMES
    held = read_adapter(one.adapter)
    layer = next(iter(held.layers))
    for row, task in enumerate(NAMES):
        own = collapse_task(read_adapter(tmp_path / "bank"), task).layers[layer].delta()
        a, b = (held.tensors[f"layers.{layer}.{name}"][0, row] for name in ("bank_a", "bank_b"))
        torch.testing.assert_close(held.config.scaling * a @ b, own)


def test_folders_of_peft_and_their_average(tmp_path: Path) -> None:
    folders = [lora(tmp_path / f"lora-{seed}", seed) for seed in range(3)]
    info = json.loads(succeed("route", *folders, "--model", T5, "--json", "--output", tmp_path / "run").stdout)
    assert info["tasks"] == ["lora-0", "lora-1", "lora-2"]
    assert info["routed"]["experts"] == list(map(str, folders))
    skills = ("--tasks", "builtin:skills", "--task", "init-upper", "--limit", "2")
    succeed("evaluate", tmp_path / "run", *skills)
    succeed("merge", tmp_path / "run", "--method", "uniform", "--output", tmp_path / "average")
    succeed(
        "merge", *folders, "--method", "uniform", "--space", "factor", "--model", T5, "--output", tmp_path / "merged"
    )
    one, two = (collapse(read_bank(tmp_path / name), None) for name in ("average", "merged"))
    for layer in one.layers:
        torch.testing.assert_close(one.layers[layer].delta(), two.layers[layer].delta())


def test_what_is_no_one_adapter_is_refused_with_the_way_that_works(routed: Path, tmp_path: Path) -> None:
    to = ("--output", tmp_path / "x")
    for arguments in (
        ("merge", routed),
        ("merge", routed, "--method", "task", "--task", "rev-last"),
        ("merge", routed, "--each-task"),
        ("merge", routed, routed),
        ("merge", routed, "--to", "peft-poly"),
    ):
        said = refuse(*arguments, *to)
        assert "routes each token by itself" in said or "has method 'arrow'" in said, said
    assert "--method uniform" in refuse("merge", routed, *to)
    assert "mhr merge RUN --each-task" in refuse("merge", routed, *to)
    few = ("--task", "init-upper", "--seeds", "0", "--shots", "4", "--steps", "2", *to)
    for mode in ("mhr", "z", "lora", "random"):
        assert "adapt the run that trained them, or use mode 'lorahub'" in refuse("adapt", routed, "--mode", mode, *few)
    assert "method 'arrow' trains no bank" in refuse("pretrain", "--preset", "demo", "--method", "arrow", *to)
    with pytest.raises(mhr.MhrError, match="no weights of a plain model do"):
        fold_bank(load_model(routed))
    assert not (tmp_path / "x").exists()
    succeed("adapt", routed, "--mode", "mu", *few)  # the average is a LoRA


def test_inspect_says_that_tokens_are_routed(routed: Path) -> None:
    assert "Each token is routed by itself: there are no weights of tasks to show." in succeed("inspect", routed).stdout


def test_ctrl_c_while_gates_are_trained_leaves_nothing_and_says_so(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(trainer: object) -> None:
        raise Interrupted("stopped; the same command with --resume goes on")

    monkeypatch.setattr("mhr.experts.gates.fit", stopped)
    result = invoke("route", private, "--method", "phatgoose", "--steps", "1", "--output", tmp_path / "run")
    assert result.exit_code == 130
    assert "stopped at gate 1 of 3; gates are trained in one go, so the same command begins again" in result.stderr
    assert "--resume" not in result.stderr
    assert not any(tmp_path.iterdir())


def test_bad_input_is_one_line_and_nothing_is_written(private: Path, tmp_path: Path) -> None:
    one, other = lora(tmp_path / "one", 0), lora(tmp_path / "other", 1, rank=4)
    full = peft.LoraConfig(r=2, target_modules=["q"], task_type="SEQ_2_SEQ_LM")
    peft.get_peft_model(load_backbone(T5)[0], full).save_pretrained(tmp_path / "q")
    vector = peft.IA3Config(target_modules=["q", "v"], feedforward_modules=[], task_type="SEQ_2_SEQ_LM")
    peft.get_peft_model(load_backbone(T5)[0], vector).save_pretrained(tmp_path / "ia3")
    to = ("--model", T5, "--output", tmp_path / "x")
    lines = {
        "top_k is 4, but 3 LoRAs are there to choose from": (private, "--top-k", "4"),
        "top_k is 2, but 1 LoRA is there": (one,),
        "top_k is 0": (private, "--top-k", "0"),
        "temperature is 0": (private, "--temperature", "0"),
        "has rank 2 in": (one, other),
        "does not adapt layer": (one, tmp_path / "q"),
        "is an IA3": (one, tmp_path / "ia3"),
        "no adapter at": (tmp_path / "nothing",),
        "method is 'mhr', expected one of arrow, phatgoose": (private, "--method", "mhr"),
        "experts is 'tasks', but no input is a bank": (one, one, "--experts", "tasks"),
    }
    before = sorted(entry.name for entry in tmp_path.iterdir())
    for expected, arguments in lines.items():
        assert expected in refuse("route", *to, *arguments)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    wrong = refuse("route", private, "--model", another(tmp_path), *to[2:])
    assert "belongs to another base model" in wrong
    fix = refuse("route", *to, one, other)
    assert "mhr merge INPUT --method uniform --space delta --rank 2" in fix
    succeed(
        "merge",
        other,
        "--method",
        "uniform",
        "--space",
        "delta",
        "--rank",
        "2",
        "--model",
        T5,
        "--output",
        tmp_path / "two",
    )
    succeed("route", one, tmp_path / "two", *to)


def test_adapters_that_know_no_tasks_are_trained_on_those_that_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    for seed, name in enumerate(NAMES[:2]):
        lora(folder / name, seed)
    to = ("--model", T5, "--steps", "1", "--batch-size", "2", "--output", tmp_path / "run")
    said = refuse("route", folder, "--method", "phatgoose", *to)
    assert "no input is a run, which would say where its tasks are, but adapters alone" in said
    assert (
        f"({folder}): add --tasks with a collection that calls the task of each adapter as its folder is called" in said
    )
    some = [folder / name for name in NAMES[:2]] * 2
    assert f"({some[0]}, {some[1]}, {some[0]} and 1 more): add" in refuse("route", *some, "--method", "phatgoose", *to)
    assert refuse("route", folder, "--method", "adapter-fusion", *to).rstrip().endswith("add --tasks with a collection")
    assert not (tmp_path / "run").exists()
    succeed("route", folder, "--method", "phatgoose", "--tasks", "builtin:skills", *to)


def another(folder: Path) -> Path:
    model, tokenizer = load_backbone(T5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    model.save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    return folder / "t5"


def test_bottlenecks_are_fused_evaluated_and_refused_as_loras(tmp_path: Path) -> None:
    run = bank(tmp_path, method="private", adapter="bottleneck")
    fused = tmp_path / "fused"
    asked = ("--method", "adapter-fusion", "--steps", "1", "--batch-size", "2")
    shown = succeed("route", run, *asked, "--output", fused)
    assert "adapter-fusion on builtin:t5-tiny, 3 bottlenecks (rev-last, next-first, rev-first)" in shown.stdout
    judged = json.loads(succeed("evaluate", fused, "--task", "init-upper", "--limit", "2", "--json").stdout)
    assert judged["tasks"].keys() == {"init-upper"}
    assert json.loads(succeed("inspect", fused, "--json").stdout)["method"] == "adapter-fusion"
    assert "is a bottleneck adapter: method 'arrow' chooses among LoRAs" in refuse(
        "route", run, "--output", tmp_path / "a"
    )
    assert "routes each token by itself" in refuse("merge", fused, "--to", "model", "--output", tmp_path / "m")
