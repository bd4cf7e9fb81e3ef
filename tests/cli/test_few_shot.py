"""The few-shot protocol from the command line: several values after one flag, one line for what cannot be, one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhr.errors import ConfigError
from mhr.runs.config import Said
from mhr_cli.frame.few_shot import few_shot_settings
from mhr_cli.frame.settings import Given
from mhr_cli.sweep import title_of
from tests.cli.running import invoke, refuse, succeed

QUICK = ("--steps", "2", "--shots", "4", "--seeds", "1")


def chosen(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run.json").read_text())["selection"]


def test_a_grid_is_several_values_after_one_flag(run: Path, tmp_path: Path) -> None:
    for name, grid in {
        "row": ("--grid", "lr=1e-2,1e-3", "router_lr=0.5"),
        "flags": ("--grid", "lr=1e-2,1e-3", "--grid", "router-lr=0.5"),
    }.items():
        result = succeed("adapt", run, "--task", "min-box", *grid, *QUICK, "--output", tmp_path / name)
        assert "on a quarter of the shots" in result.stderr
        assert "(protocol held-out)" in result.stderr
        settings = [trial["settings"] for trial in chosen(tmp_path / name / "min-box" / "1")["trials"]]
        assert settings == [{"lr": 0.01, "router_lr": 0.5}, {"lr": 0.001, "router_lr": 0.5}]
    # What follows a grid and is no hyperparameter with values belongs to the command.
    result = succeed("adapt", "--grid", "lr=1e-2", run, "--task", "min-box", *QUICK, "--output", tmp_path / "before")
    assert chosen(tmp_path / "before" / "min-box" / "1") is None


def test_the_protocol_is_in_what_is_reported(run: Path, tmp_path: Path) -> None:
    paper = ("--protocol", "paper", "--eval-every", "1")
    succeed("adapt", run, "--task", "min-box", *paper, *QUICK, "--output", tmp_path / "paper")
    folder = tmp_path / "paper" / "min-box" / "1"
    assert chosen(folder)["on"] == "test"
    shown = succeed("evaluate", folder, "--limit", "2").stdout
    assert "test, protocol paper" in shown.replace("\n", " ")
    told = json.loads(succeed("evaluate", folder, "--limit", "2", "--json").stdout)
    assert told["settings"]["protocol"] == "paper"


def test_flags_become_settings() -> None:
    said = {"adapt.seeds": Said(["1", "2"], "--seeds"), "adapt.patience": Said("3", "--patience")}
    given = Given(("adapt.patience=4", "adapt.full_lr=1e-4"), said)
    found = few_shot_settings("32,boolq=50,*wino*=20", ["lr=1e-3,1e-4"], given)
    assert found == {
        "shots": 32,
        "shots_for": {"boolq": 50, "*wino*": 20},
        "seeds": [1, 2],
        "grid": {"lr": [1e-3, 1e-4]},
        "patience": 3,
        "full_lr": 1e-4,
    }
    nothing = Given((), {})
    assert few_shot_settings(None, None, nothing) == {}
    assert few_shot_settings("boolq=5", ["none"], nothing) == {"shots_for": {"boolq": 5}, "grid": {}}
    for shots, why in (("many", "'many' is no integer"), ("3,4", "two values for all tasks")):
        with pytest.raises(ConfigError, match=why):
            few_shot_settings(shots, None, nothing)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--grid", "lrr=1,2"), "grid has 'lrr', which is no hyperparameter of a grid: did you mean 'lr'"),
        (("--grid", "lr"), "--grid: 'lr' has no '='"),
        (("--grid", "lr=a,b"), "--grid: 'a,b' is no list of numbers"),
        (("--grid", "lr=1", "lr=2"), "--grid: lr is given twice"),
        (("--shots", "4000"), "fewer than the 4000 shots asked for: use --shots 400 or fewer"),
        (("--shots", "4,min-bxo=3"), "unknown task 'min-bxo'"),
        (("--seeds", "1,1"), "expected each seed once"),
        (("--seeds", "1,x"), "--seeds: adapt.seeds is ['1', 'x'], expected a list of integers"),
        (("--template", "gleu"), "no templates called 'gleu': did you mean 'glue'"),
        (("--protocol", "papper"), "did you mean 'paper'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("command", ["adapt", "sweep"])
def test_one_line_for_what_cannot_be(
    command: str, flags: tuple[str, ...], said: str, run: Path, tmp_path: Path
) -> None:
    assert said in refuse(command, run, "--task", "min-box", *flags, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("mode", "rate", "idle"), [("z", "lr", "the adapter"), ("mu", "router_lr", "routing")])
def test_a_grid_of_a_rate_that_nothing_is_trained_with(
    mode: str, rate: str, idle: str, run: Path, tmp_path: Path
) -> None:
    given = ("--grid", f"{rate}=0.1,0.01", "--task", "min-box", "--output", tmp_path / "out")
    line = f"grid has {rate} [0.1, 0.01], but mode '{mode}' does not train {idle}: leave it out"
    assert line in refuse("adapt", run, "--mode", mode, *given)
    assert line in refuse("sweep", run, "--modes", mode, *given)


def test_a_template_with_an_unknown_field(run: Path, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text('tasks: {even: {input: "{inptu} is it even?"}}\n')
    for command in ("adapt", "sweep"):
        line = refuse(command, run, "--tasks", rows, "--task", "even", "--template", file, "--output", tmp_path / "out")
        assert f"{file}, task 'even': unknown field {{inptu}} in input: did you mean 'input'?" in line
    file.write_text('input: "{input} is it even?"\nverbalizers: {"yes": sure, "no": never}\n')
    succeed("adapt", run, "--tasks", rows, "--task", "even", "--template", file, *QUICK, "--output", tmp_path / "out")
    told = succeed("evaluate", tmp_path / "out" / "even" / "1", "--output", tmp_path / "scores")
    assert "accuracy" in told.stdout
    read = [json.loads(line) for line in (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()]
    assert sorted(row["input"] for row in read) == [f"even {i} is it even?" for i in range(4)]
    assert all(row["choices"] == ["sure", "never"] for row in read)


@pytest.mark.slow
def test_a_sweep_prints_its_table_and_refuses_another_study(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    sweep = ("sweep", run, "--modes", "z,mu", "--task", "min-box,rev-first", "--limit", "3", "--output", output)
    shown = succeed(*sweep, "--steps", "1", "--shots", "4", "--seeds", "1,2", "--workers", "1")
    for word in ("protocol held-out", "min-box", "rev-first", "mean", "±"):
        assert word in shown.stdout
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    told = json.loads(succeed(*sweep, "--steps", "1", "--shots", "4", "--seeds", "1,2", "--resume", "--json").stdout)
    assert told["rows"] == rows
    line = refuse(*sweep, "--steps", "2", "--shots", "4", "--seeds", "1,2", "--resume")
    assert "holds the table of another sweep" in line
    assert "adapt.steps 1, not 2" in line
    assert "go on with --resume" in refuse(*sweep, "--steps", "1", "--shots", "4", "--seeds", "1,2")
    assert invoke(*sweep, "--launcher", "slurm").exit_code == 2


@pytest.mark.parametrize(
    ("shots", "protocols", "said"),
    [
        ([8, 8], ["held-out"] * 2, "after 8 shots, mean and standard deviation over seeds (protocol held-out)"),
        ([8, 50, 32], ["held-out"] * 3, "after 8 to 50 shots, mean"),
        (
            [50, 8],
            ["paper", "held-out"],
            "after 8 to 50 shots, mean and standard deviation over seeds (protocol paper and held-out)",
        ),
    ],
)
def test_the_title_of_a_sweep_is_true_of_all_its_rows(shots: list[int], protocols: list[str], said: str) -> None:
    rows = [{"shots": n, "protocol": protocol} for n, protocol in zip(shots, protocols, strict=True)]
    assert said in title_of(rows)


def test_pretraining_ends_as_the_average(tmp_path: Path) -> None:
    few = ("--preset", "demo", "--batch-size", "4", "--n-heads", "4", "--n-skills", "2", "--rank", "2", "--steps", "3")
    succeed("pretrain", *few, "--switch-to-mu-at", "1", "--output", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "adapter" / "mhr_config.json").read_text())["config"]
    assert (config["method"], config["n_skills"]) == ("shared", 1)
    line = refuse("pretrain", *few, "--anneal-to-mu", "4", "--output", tmp_path / "none")
    assert "anneal_to_mu is 4, but the run has 3 steps" in line
    assert "nothing to average" in refuse(
        "pretrain", "--preset", "demo", "--method", "lora", "--switch-to-mu-at", "1", "--output", tmp_path / "none"
    )
