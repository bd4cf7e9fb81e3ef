"""Every command on something tiny: what it prints, what it writes, and that --json is JSON and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.cli.running import invoke, refuse, spawn, succeed


def test_pretrain_writes_a_run(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "done"
    assert info["method"] == "mhr"
    assert info["config"]["adapter"]["n_heads"] == 4
    assert info["config"]["train"]["steps"] == 3
    assert (run / "adapter" / "mhr_adapter.safetensors").is_file()
    assert (run / "config.yaml").is_file()
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1] == 3


def test_a_run_that_is_done_is_not_trained_again(run: Path) -> None:
    before = (run / "adapter" / "mhr_adapter.safetensors").stat().st_mtime_ns
    assert json.loads(succeed("pretrain", "--output", run, "--resume", "--json").stdout)["status"] == "done"
    assert (run / "adapter" / "mhr_adapter.safetensors").stat().st_mtime_ns == before


def test_flags_win_over_set_and_set_over_the_file(tmp_path: Path, rows: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"preset: demo\ntasks: {rows}\ntrain: {{steps: 9, batch_size: 9, seed: 9}}\n")
    result = succeed(
        "pretrain", "--config", file, "--set", "train.batch_size=2", "--set", "train.steps=5", "--steps", "1", "--method",
        "lora", "--targets", "q,v", "--json", "--output", tmp_path / "run",
    )  # fmt: skip
    config = json.loads(result.stdout)["config"]
    assert (config["train"]["steps"], config["train"]["batch_size"], config["train"]["seed"]) == (1, 2, 9)
    assert config["method"] == "lora"
    assert config["adapter"]["targets"] == ["q", "v"]


def test_adapt_writes_one_run_per_task_and_seed_and_evaluate_reads_it(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "z"
    few = ("--steps", "1", "--shots", "4", "--seeds", "1,2")
    result = succeed("adapt", run, "--task", "rev-upper,min-box", "--mode", "z", *few, "--json", "--output", output)
    paths = [output / task / seed for task in ("rev-upper", "min-box") for seed in "12"]
    assert json.loads(result.stdout) == [str(path) for path in paths]
    judged = json.loads(succeed("evaluate", paths[-1], "--limit", "3", "--json").stdout)
    assert list(judged["tasks"]) == ["min-box"]
    assert judged["tasks"]["min-box"]["n"] == 3
    for command in (("evaluate", output), ("evaluate", output, "--tasks", "builtin:skills")):
        assert f"{output} holds adaptations, not a run: name one of them, such as {paths[0]}" in refuse(*command)


def test_evaluate_prints_a_table_and_writes_scores_and_answers(run: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    result = succeed("evaluate", run, "--tasks", rows, "--limit", "2", "--output", output)
    for word in ("task", "accuracy", "even", "odd", "mean over tasks"):
        assert word in result.stdout
    scores = json.loads((output / "evaluation.json").read_text())
    assert scores["tasks"]["odd"]["n"] == 2
    answers = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [answer["task"] for answer in answers] == ["even", "even", "odd", "odd"]
    assert all(answer["answer"] in ("yes", "no") for answer in answers)
    assert "is not empty" in refuse("evaluate", run, "--tasks", rows, "--output", output)
    succeed("evaluate", run, "--tasks", rows, "--limit", "1", "--output", output, "--overwrite")


def test_evaluate_chooses_tasks_splits_and_routing(run: Path) -> None:
    def tasks(*arguments: str) -> list[str]:
        return list(json.loads(succeed("evaluate", run, "--limit", "1", "--json", *arguments).stdout)["tasks"])

    held_out = tasks()
    training = tasks("--part", "training", "--split", "train")
    assert held_out
    assert not set(held_out) & set(training)
    assert set(training) == set(json.loads((run / "run.json").read_text())["tasks"])
    assert tasks("--task", "rev-upper", "--route-as", training[0]) == ["rev-upper"]
    assert "did you mean 'held-out'?" in refuse("evaluate", run, "--part", "heldout")
    assert "no task collection is given" in refuse("evaluate", "builtin:t5-tiny")


@pytest.mark.parametrize("form", ["mhr", "peft-lora", "model"])
def test_merge_writes_what_evaluate_reads(run: Path, tmp_path: Path, form: str) -> None:
    output = tmp_path / form
    task = json.loads((run / "run.json").read_text())["tasks"][0]
    result = succeed("merge", run, "--method", "task", "--task", task, "--to", form, "--json", "--output", output)
    told = json.loads(result.stdout)
    assert (told["output"], told["method"], told["to"]) == (str(output), "task", form)
    few = ("--tasks", "builtin:skills", "--task", task, "--limit", "8", "--metrics", "rouge_l", "--json")
    merged = json.loads(succeed("evaluate", output, *few).stdout)
    routed = json.loads(succeed("evaluate", run, *few).stdout)
    assert merged["tasks"] == routed["tasks"]


def test_merge_by_weights(run: Path, tmp_path: Path) -> None:
    succeed("merge", run, "--method", "weighted", "--weights", "asc-box=3,rev-box=1", "--output", tmp_path / "tasks")
    succeed("merge", run, "--method", "weighted", "--weights", "1,0", "--output", tmp_path / "skills")
    output = ("--output", tmp_path / "none")
    assert "--weights" in refuse("merge", run, "--method", "weighted", "--weights", "asc-box=x", *output)
    assert "2 skills" in refuse("merge", run, "--method", "weighted", "--weights", "1,0,0", *output)
    assert "did you mean 'task'" in refuse("merge", run, "--method", "tsak", *output)
    assert not (tmp_path / "none").exists()


def test_merge_of_several_inputs_shows_its_report(run: Path, tmp_path: Path) -> None:
    seeds = ("--mode", "mu", "--steps", "1", "--shots", "4", "--seeds", "1,2", "--lr", "0.1")
    succeed("adapt", run, "--task", "rev-upper", *seeds, "--output", tmp_path / "mu")
    inputs = [tmp_path / "mu" / "rev-upper" / seed for seed in "12"]
    shown = succeed(
        "merge", tmp_path / "mu" / "rev-upper", "--space", "delta", "--rank", "1", "--evaluate", "--limit", "2", "--output",
        tmp_path / "delta",
    ).stdout  # fmt: skip
    for word in (
        "uniform, delta space",
        "score",
        "Distance between inputs",
        "Re-factored to rank 1: relative error",
        "0.500",
    ):
        assert word in shown
    told = json.loads((tmp_path / "delta" / "merge_report.json").read_text())
    assert [i["name"] for i in told["inputs"]] == [str(path) for path in inputs]
    assert set(told["scores"]) == {*map(str, inputs), "merged"}
    one, two = inputs
    result = succeed("merge", two, one, "--method", "ties", "--density", "0.5", "--json", "--output", tmp_path / "ties")
    report = json.loads(result.stdout)
    assert (report["method"], report["settings"], report["rank"]) == ("ties", {"density": 0.5}, [2])
    assert report["distance"][0][1] == pytest.approx(told["distance"][0][1])
    shown = succeed("merge", *inputs, "--method", "soup-greedy", "--limit", "2", "--output", tmp_path / "greedy").stdout
    assert "kept" in shown
    weights = ("--method", "weighted", "--weights", "1,2,3", "--output", tmp_path / "none")
    assert "got 3 weights for 2 inputs" in refuse("merge", *inputs, *weights)
    assert not (tmp_path / "none").exists()


def test_inspect_shows_routing_and_draws_it(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "plots"
    shown = succeed("inspect", run, "--output", output).stdout
    tasks = json.loads((run / "run.json").read_text())["tasks"]
    for word in ("routing of one more task", "entropy", tasks[0], tasks[-1]):
        assert word in shown
    names = {file.name for file in output.iterdir()}
    assert {"routing.png", "routing.svg", "similarity.png", "entropy.svg", "inspection.json"} <= names
    told = json.loads(succeed("inspect", run, "--json").stdout)
    assert told["tasks"] == tasks
    assert told["n_heads"] == 4


def test_inspect_of_one_adapter_for_all_tasks_says_that_nothing_is_routed(run: Path, tmp_path: Path) -> None:
    succeed("merge", run, "--output", tmp_path / "mu")
    assert "routed alike" in succeed("inspect", tmp_path / "mu").stdout


def test_data_check_summarises(rows: Path) -> None:
    shown = succeed("data", "check", rows).stdout
    assert "even" in shown
    assert "2 tasks (2 to train on, 0 held out), 16 training and 8 evaluation examples, 0 errors" in shown
    told = json.loads(succeed("data", "check", rows, "--json").stdout)
    assert told["totals"]["tasks"] == 2


def test_doctor_finds_versions_ops_and_threads() -> None:
    found = json.loads(succeed("doctor", "--json").stdout)
    assert found["sections"]["Versions"]["torch"] == torch.__version__
    assert "mix" in found["sections"]["Native ops"]
    assert str(torch.get_num_threads()) in found["sections"]["Processor"]["threads"]
    assert "Versions" in succeed("doctor").stdout


def test_doctor_says_how_to_fix_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    version = metadata.version

    def absent(name: str) -> str:
        if name == "datasets":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "safetensors" else version(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr("mhr.doctor.build_info", dict)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "pip install 'datasets>=" in result.stdout
    assert "safetensors 0.1 is too old" in result.stdout
    assert f"pip install --no-deps --editable {Path(__file__).parents[2]}" in " ".join(result.stdout.split())


def test_json_alone_is_on_stdout(run: Path) -> None:
    process = spawn("evaluate", run, "--task", "rev-upper", "--limit", "2", "--json")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["tasks"]["rev-upper"]["n"] == 2


def test_demo_prints_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mhr.demo import METHOD_AND_MODE, DemoResult

    asked: dict[str, Any] = {}

    def run_demo(output: Path, **settings: Any) -> DemoResult:
        asked.update(settings)
        scores = {"a-b": dict.fromkeys(METHOD_AND_MODE, 0.25), "c-d": dict.fromkeys(METHOD_AND_MODE, 0.5)}
        return DemoResult(output, 32, scores, dict.fromkeys(scores, 0.125), dict.fromkeys(METHOD_AND_MODE, 1536))

    monkeypatch.setattr("mhr.demo.run_demo", run_demo)
    result = succeed("demo", "--output", tmp_path, "--resume", "--max-tasks", "2", "--set", "train.steps=3")
    for word in ("a-b", "25", "50", "37.5", "12", "1,536", "adaptation", "MHR-mu"):
        assert word in result.stdout
    assert str(tmp_path) in result.stderr
    assert asked["resume"]
    assert asked["max_tasks"] == 2
    assert asked["overrides"] == ("train.steps=3",)
    assert json.loads(succeed("demo", "--output", tmp_path, "--json").stdout)["mean"]["MHR"] == 0.375


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A benchmark that takes no time, in the place of `ops`."""
    result = {
        "benchmark": "ops",
        "machine": {"cpu": "test", "commit": "abc"},
        "tables": [{"title": "Layer", "columns": ["shape", "ratio"], "rows": [["1x1", 0.25], ["1x2", "no agreement"]]}],
    }
    module = ModuleType("mhr_benchmarks.ops")
    module.run = lambda quick, **more: result | {"quick": quick} | more  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mhr_benchmarks.ops", module)
    return result


def test_benchmark_prints_tables_and_keeps_the_numbers(stand_in: dict[str, Any], tmp_path: Path) -> None:
    shown = succeed("benchmark", "ops", "--quick", "--output", tmp_path).stdout
    for word in ("commit: abc", "Layer", "0.25", "no agreement"):
        assert word in shown
    kept = json.loads((tmp_path / "ops.json").read_text())
    assert kept == stand_in | {"quick": True, "command": "mhr benchmark ops --quick"}
    page = (tmp_path / "ops.md").read_text()
    for line in ("`mhr benchmark ops --quick`", "cpu test; commit abc", "## Layer", "| 1x1 | 0.25 |"):
        assert line in page.splitlines()
    assert "is there already" in refuse("benchmark", "ops", "--output", tmp_path)
    assert (
        json.loads(succeed("benchmark", "ops", "--json", "--output", tmp_path, "--overwrite").stdout)["quick"] is False
    )
    assert json.loads(succeed("benchmark", "ops", "--minutes", "1.5", "--json").stdout)["minutes"] == 1.5
    assert "--minutes is for ops" in refuse("benchmark", "train", "--minutes", "1")
    assert "did you mean 'merge'" in refuse("benchmark", "merg")


def test_evaluate_with_shots_and_stops(run: Path, rows: Path, tmp_path: Path) -> None:
    asked = ("evaluate", run, "--tasks", rows, "--limit", "2", "--metrics", "exact_match")
    shown = succeed(
        *asked, "--shots", "2", "--seed", "3", "--stop", "\\n", "--stop", "a,b", "--output", tmp_path / "out"
    )
    assert r"2 shots by seed 3, stop at '\n' or 'a,b'" in " ".join(shown.stdout.split())
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert kept["settings"]["stop"] == ["\n", "a,b"]
    assert (kept["settings"]["shots"], kept["settings"]["seed"], kept["settings"]["template"]) == (2, 3, None)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert kept["shots"]["of"] == 2 * len(lines) > 0
    assert sum(len(json.loads(line)["shots"]) for line in lines) == kept["shots"]["of"] - kept["shots"]["dropped"]
    assert "other ones than" in refuse(*asked, "--shots", "5000")
    assert "shots is -1, expected an integer of at least 0" in refuse(*asked, "--shots", "-1")
    assert "--stop is empty" in refuse(*asked, "--stop", "")
    assert "are for decoders" in refuse(*asked, "--chat-template", "chatml")
    assert "are for decoders" in refuse(*asked, "--system", "Be short.")
