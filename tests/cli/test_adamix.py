"""AdaMix from the command line: pretrain, inspect, merge, evaluate, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhr.adapters import read_adapter
from tests.cli.running import refuse, succeed

SMALL = ("--preset", "demo", "--batch-size", "4", "--n-skills", "2", "--rank", "2", "--steps", "2")
FEW = ("--tasks", "builtin:skills", "--task", "rev-upper", "--limit", "8", "--metrics", "rouge_l", "--json")


@pytest.fixture(scope="module", params=["adamix", "adamix-lora"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / request.param
    succeed("pretrain", *SMALL, "--method", request.param, "--consistency", "5", "--output", folder)
    return folder


def test_a_run_is_told_by_inspect_and_merges_to_the_average(run: Path, tmp_path: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    assert info["config"]["adapter"]["share"] == "up"
    assert info["consistency"]["weight"] == 5.0
    told = json.loads(succeed("inspect", run, "--json").stdout)
    assert (told["method"], told["n_skills"], told["most_alike"]) == ("adamix", 2, {})
    assert "adamix" in succeed("inspect", run).stdout
    succeed("merge", run, "--output", tmp_path / "merged")
    config = read_adapter(tmp_path / "merged").config
    assert (config.method, config.n_skills, config.adapter) == ("shared", 1, told["adapter"])
    scores = [json.loads(succeed("evaluate", path, *FEW).stdout)["tasks"] for path in (run, tmp_path / "merged")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("how", [("--share-none",), ("--set", "adapter.share=none")])
def test_sharing_nothing_has_to_be_asked_for_and_is_kept(how: tuple[str, ...], tmp_path: Path) -> None:
    succeed("pretrain", *SMALL, "--method", "adamix-lora", *how, "--output", tmp_path / "run")
    succeed("pretrain", "--config", tmp_path / "run" / "config.yaml", "--output", tmp_path / "again")
    for name in ("run", "again"):
        read = read_adapter(tmp_path / name / "adapter")
        assert read.config.share == "none"
        assert {t.shape[1] for key, t in read.tensors.items() if "bank_" in key} == {2}


def test_modules_may_be_drawn_to_compare(run: Path, tmp_path: Path) -> None:
    told = json.loads(succeed("evaluate", run, *FEW, "--inference", "ensemble", "--draws", "2", "--seed", "3").stdout)
    assert {key: told["settings"][key] for key in ("inference", "draws", "seed")} == {
        "inference": "ensemble",
        "draws": 2,
        "seed": 3,
    }
    succeed("adapt", run, "--task", "rev-upper", "--mode", "mhr", "--steps", "1", "--output", tmp_path / "adapted")
    succeed("evaluate", tmp_path / "adapted" / "rev-upper" / "13", *FEW, "--inference", "token")
    succeed("merge", run, "--output", tmp_path / "merged")
    assert "has no modules that are drawn" in refuse("evaluate", tmp_path / "merged", *FEW, "--inference", "token")


@pytest.mark.parametrize("form", ["peft-lora", "model"])
def test_only_a_lora_becomes_a_peft_folder_or_a_model(run: Path, tmp_path: Path, form: str) -> None:
    output = tmp_path / form
    if run.name == "adamix":
        assert "bottleneck" in refuse("merge", run, "--to", form, "--output", output)
        assert not output.exists()
        return
    succeed("merge", run, "--to", form, "--output", output)
    scores = [json.loads(succeed("evaluate", path, *FEW).stdout)["tasks"] for path in (run, output)]
    assert scores[0] == scores[1]


def test_poly_routes_bottlenecks(tmp_path: Path) -> None:
    succeed("pretrain", *SMALL, "--method", "poly", "--adapter", "bottleneck", "--output", tmp_path / "run")
    config = read_adapter(tmp_path / "run" / "adapter").config
    assert (config.method, config.adapter) == ("poly", "bottleneck")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "adamix", "--share-up", "--share-down"), "--share-up and --share-down are both given"),
        (("--method", "adamix", "--n-skills", "1"), "adapter.n_skills is 1"),
        (("--method", "mhr", "--share-up"), "--share-up: adapter.share is 'up', but mhr routes lora as a whole"),
        (
            ("--method", "mhr", "--share-none"),
            "--share-none: adapter.share has no effect with method 'mhr': leave it out, or use method hydra, mtl-lora, adamix or adamix-lora",
        ),
        (("--method", "mhr", "--consistency", "1"), "train.consistency is 1.0, but method 'mhr' draws no skills"),
        (("--method", "adamix", "--consistency", "nan"), "--consistency: train.consistency is nan"),
        (
            ("--method", "adamix", "--adapter", "lora"),
            "--adapter: adapter.adapter is 'lora', but method 'adamix' trains",
        ),
        (("--method", "adamx"), "did you mean 'adamix'"),
    ],
)
def test_settings_that_do_not_go_together_leave_nothing_behind(
    flags: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    assert said in refuse("pretrain", "--preset", "demo", *flags, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()
