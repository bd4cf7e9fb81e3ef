"""Settings that cannot be, end to end: one clear line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.running import last_line, refuse, spawn, succeed


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--targets", "quary"), "'quary'"),
        (("--n-heads", "7"), "encoder.block.0.layer.0.SelfAttention.q"),
        (("--rank", "0"), "--rank: adapter.rank is 0, expected an integer of at least 1"),
        (("--lr", "-0.1"), "--lr: train.lr is -0.1, expected a number above 0"),
        (("--router-lr", "-1"), "--router-lr: train.router_lr is -1.0"),
        (("--set", "train.stesp=3"), "--set: unknown key 'train.stesp': in section 'train', did you mean 'steps'"),
        (("--set", "train.steps"), "has no '='"),
        (("--set", "adapter=8"), "--set: 'adapter' is a section of settings: set one of them, as in adapter.adapter"),
        (("--preset", "dmeo"), "unknown preset 'dmeo': did you mean 'demo' or 'demo-llm'?"),
        (("--method", "mrh"), "did you mean 'mhr'"),
        (("--model", "builtin:t5-tinny"), "did you mean 'builtin:t5-tiny' or "),
        (("--config", "absent.yaml"), "no configuration file at absent.yaml"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_be(output: Path, flags: tuple[str, ...], expected: str) -> None:
    assert expected in refuse("pretrain", *flags, "--output", output)


@pytest.mark.parametrize("nested", ["[" * 3000 + "]" * 3000, "a: " + "9" * 5000])
def test_a_file_of_settings_that_no_parser_takes(output: Path, tmp_path: Path, nested: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(nested)
    assert f"{file}: " in refuse("pretrain", "--config", file, "--output", output)
    file.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    assert f"{file}: is no text file (byte 0 is not UTF-8)" in refuse("pretrain", "--config", file, "--output", output)
    file.write_bytes(b"a: \x00")
    assert f"{file}: not YAML" in refuse("pretrain", "--config", file, "--output", output)


def test_what_is_empty_given_twice_or_no_text(output: Path, run: Path, rows: Path, tmp_path: Path) -> None:
    for flags in (("--tasks", ""), ("--tasks=",), ("--config", ""), ("--targets", "")):
        name = flags[0].rstrip("=")
        assert f"{name} is empty ('')" in refuse("pretrain", *flags, "--output", output)
    assert "--modes is empty" in refuse("sweep", run, "--modes", "", "--output", output)
    assert "--task is empty" in refuse("adapt", run, "--task", "", "--output", output)
    assert "'a,,b' has an empty name" in refuse("adapt", run, "--task", "a,,b", "--output", output)
    assert "an argument is empty" in refuse("evaluate", "")
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text("{}")
    twice = ("--config", tmp_path / "one.yaml", "--config", tmp_path / "two.yaml")
    assert "--config is given twice" in refuse("pretrain", *twice, "--output", output)
    assert "--seeds is given twice" in refuse("adapt", run, "--seeds", "1", "--seeds", "2", "--output", output)
    assert "has bytes that are no UTF-8" in refuse("pretrain", "--tasks", "caf\udce9", "--output", output)
    assert "has bytes that are no UTF-8" in refuse("evaluate", "\ud800")


def test_values_of_a_list_that_blanks_separate_are_not_taken_for_arguments(output: Path, run: Path) -> None:
    line = refuse("sweep", run, "--modes", "z", "mu", "--output", output)
    assert "'mu' behind --modes z would be read as an argument of its own" in line
    assert "--modes z,mu" in line
    assert "--seeds 13,42" in refuse("sweep", "--seeds", "13", "42", run, "--output", output)


def test_settings_that_a_command_does_not_use_are_refused(output: Path, run: Path, rows: Path) -> None:
    for setting in ("train.steps=3", "adapter.rank=2", "data.sampler=uniform", "model=x"):
        line = refuse("evaluate", run, "--set", setting)
        assert f"--set: {setting.partition('=')[0]} has no effect on this command, which uses data.definitions" in line
    assert "has no effect" in refuse("adapt", run, "--set", "train.lr=1", "--output", output)
    assert "has no effect" in refuse("sweep", run, "--set", "adapter.rank=1", "--output", output)
    assert "has no effect" in refuse("demo", "--set", "method=poly", "--output", output)
    assert "unknown key 'adapt.stesp'" in refuse("evaluate", run, "--set", "adapt.stesp=3")
    assert "No such option: --rank" in refuse("adapt", run, "--rank", "3", "--output", output)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("--weights rw=2", "data.weights names 'rw', which is no training task: did you mean 'row'"),
        ("--weights row=0", "--weights: data.weights 'row' is 0.0, expected a number above 0"),
        ("--weights row=-1", "--weights: data.weights 'row' is -1.0, expected a number above 0"),
        ("--weights row", "--weights: data.weights is 'row', expected a mapping of names to numbers"),
        ("--epochs 0", "--epochs: train.epochs is 0.0, expected a number above 0"),
        ("--epochs 2 --steps 3", "train.epochs is 2 and train.steps is 3: give one of them"),
        ("--set train.epochs=2 --steps 3", "train.epochs is 2 and train.steps is 3: give one of them"),
        ("--workers -1", "--workers: data.workers is -1, expected an integer of at least 0 and at most 1024"),
        ("--set data.cache=maybe", "data.cache is 'maybe', expected true or false or none"),
        (
            "--cache --set train.mc_loss=1",
            "data.cache is true, but rows of answer choices are encoded as they are drawn",
        ),
    ],
)
def test_how_examples_are_fed(output: Path, tmp_path: Path, said: str, why: str) -> None:
    tasks = tmp_path / "rows.jsonl"
    tasks.write_text("".join(json.dumps({"task": "row", "input": f"a {i}", "targets": "b"}) + "\n" for i in range(20)))
    assert why in refuse("pretrain", "--tasks", tasks, *said.split(), "--output", output)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("atuo", "expected auto, balanced, balanced_low_0, sequential, or a device such as cpu or cuda:0: did you mean 'auto'?"),
        ("cuda:99", "but this machine has "),
        ("cpu:1", "but this machine has one cpu"),
        ("meta", "but this machine has one cpu"),
    ],
)  # fmt: skip
def test_devices_that_are_none(output: Path, rows: Path, name: str, why: str) -> None:
    for command in (
        ("pretrain", "--tasks", rows, "--output", output),
        ("evaluate", "builtin:t5-tiny", "--tasks", rows),
    ):
        line = refuse(*command, "--device-map", name)
        assert f"error: --device-map: device_map is {name!r}, {why}" in line
        assert "cannot load" not in line


def test_a_cache_folder_that_cannot_be_written(output: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHR_CACHE", str(rows))
    line = refuse("pretrain", "--tasks", rows, "--cache", "--output", output)
    assert f"cannot write {rows}/tokens: Not a directory; set MHR_CACHE to a folder that can be written" in line


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "data.subset=abc",
            "on {rows}: it is for a dataset that save_to_disk wrote, or its hub id owner/name; leave it out",
        ),
        ("data.split_list=abc", "on {rows}: it is for a Super-NaturalInstructions folder"),
        ("data.positives=3", "on {rows}: it is for a Super-NaturalInstructions folder"),
        ("data.definitions=false", "on {rows}: it is for a Super-NaturalInstructions folder"),
        ("data.definition_form=published", "on {rows}: it is for a Super-NaturalInstructions folder"),
        ("train.scale_parameter=true", "with train.optimizer adamw: leave it out, or set train.optimizer to adafactor"),
        ("adapt.scale_parameter=true", "with train.optimizer adamw: leave it out, or set train.optimizer to adafactor"),
        ("data.temperature=3", "with data.sampler proportional: leave it out, or set data.sampler to temperature"),
        (
            "adapter.temperature=2",
            "with adapter.noise off: leave it out, or set adapter.noise to per_example or per_task",
        ),
    ],
)
def test_settings_that_the_reader_or_another_setting_leaves_idle(output: Path, rows: Path, said: str, why: str) -> None:
    line = refuse("pretrain", "--tasks", rows, "--set", said, "--output", output)
    assert f"--set: {said.partition('=')[0]} has no effect {why.format(rows=rows)}" in line


@pytest.mark.parametrize(
    ("method", "said"),
    [
        *[("lora", one) for one in ("--n-heads 4", "--router-lr 0.5")],
        *[
            ("lora", f"--set {one}")
            for one in (
                "adapter.temperature=2",
                "train.router_weight_decay=1",
                "adapter.granularity=block",
                "adapt.router_lr=1",
            )
        ],
        *[(method, "--n-heads 4") for method in ("private", "uniform", "ia3")],
        *[(method, "--router-lr 0.5") for method in ("private", "uniform", "random", "hash", "adamix", "full")],
        ("hash", "--set adapter.granularity=block"),
        ("ia3", "--rank 8"),
        ("bottleneck", "--set adapter.alpha=8"),
        ("poly-ia3", "--set adapter.init=peft"),
    ],
)
def test_settings_that_the_method_has_no_use_for(output: Path, method: str, said: str) -> None:
    line = refuse("pretrain", "--method", method, *said.split(), "--output", output)
    flag, _, setting = said.partition(" ")
    name = setting.partition("=")[0] if flag == "--set" else flag.strip("-").replace("-", "_")
    assert line.startswith(f"error: {flag}: ")
    assert f"{name} has no effect with " in line
    assert "leave it out, or " in line


def test_idle_settings_of_presets_and_files_are_no_fault(rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    data = "data: {positives: 3, definitions: false, subset: abc, temperature: 3}"
    file.write_text(f"method: lora\nadapter: {{n_heads: 4, temperature: 2}}\n{data}\ntrain: {{router_lr: 0.5}}\n")
    few = ("--steps", "1", "--batch-size", "2")
    succeed("pretrain", "--config", file, "--tasks", rows, *few, "--output", tmp_path / "run")
    assert "data.positives has no effect" in refuse("evaluate", tmp_path / "run", "--set", "data.positives=2")
    succeed("evaluate", tmp_path / "run", "--limit", "1")


def test_idle_settings_of_other_commands(output: Path, run: Path, rows: Path) -> None:
    line = refuse("data", "check", rows, "--subset", "abc")
    assert f"--subset: data.subset has no effect on {rows}" in line
    line = refuse("evaluate", run, "--tasks", rows, "--set", "data.definitions=false")
    assert f"--set: data.definitions has no effect on {rows}" in line
    assert "data.split_list has no effect on builtin:skills" in refuse(
        "demo", "--set", "data.split_list=abc", "--output", output
    )


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--batch-size", "of at least 1 and at most 65536"), ("--n-heads", "of at least 1 and at most 65536")],
)
def test_numbers_far_above_any_use(output: Path, flag: str, said: str) -> None:
    line = refuse("pretrain", "--preset", "demo", flag, "100000000000000", "--output", output)
    assert said in line


@pytest.mark.parametrize("seed", [str(2**32), "-1", "9" * 5000])
def test_seeds_that_numpy_does_not_take(output: Path, run: Path, seed: str) -> None:
    said = "expected an integer of at least 0 and at most 4294967295"
    assert said in refuse("pretrain", "--seed", seed, "--output", output)
    assert "adapt.seeds" in refuse("adapt", run, "--task", "min-box", "--seeds", f"1,{seed}", "--output", output)


def test_a_bank_that_no_memory_holds(output: Path) -> None:
    line = refuse("pretrain", "--preset", "demo", "--rank", "100000000", "--output", output)
    assert "rank is 100000000" in line
    assert "use a smaller rank" in line


def test_a_limit_of_nothing_is_refused_before_anything_is_trained(output: Path, run: Path) -> None:
    said = "--limit: scoring.limit is 0, expected an integer of at least 1"
    assert said in refuse("sweep", run, "--task", "min-box", "--limit", "0", "--output", output)
    assert said in refuse("evaluate", run, "--limit", "0")
    assert said in refuse("merge", run, "--evaluate", "--limit", "0", "--output", output)


def test_a_resumed_adaptation_with_other_settings_says_which(run: Path, tmp_path: Path) -> None:
    adapt = (
        "adapt",
        run,
        "--task",
        "min-box",
        "--mode",
        "z",
        "--shots",
        "4",
        "--seeds",
        "1",
        "--output",
        tmp_path / "z",
    )
    succeed(*adapt, "--steps", "1")
    line = refuse(*adapt, "--steps", "2", "--router-lr", "0.25", "--resume")
    assert "holds adaptations with adapt.steps 1, not 2; adapt.router_lr " in line
    assert ", not 0.25" in line
    assert "{" not in line


def test_a_task_whose_name_is_longer_than_a_folder_s(run: Path, rows: Path, tmp_path: Path) -> None:
    name = "漢字" * 20
    rows.write_text(rows.read_text().replace('"even"', json.dumps(name, ensure_ascii=False)))
    few = ("--steps", "1", "--shots", "4", "--seeds", "1", "--mode", "z", "--json")
    result = succeed("adapt", run, "--tasks", rows, "--task", name, *few, "--output", tmp_path / "z")
    (folder,) = json.loads(result.stdout)
    assert Path(folder).is_dir()
    assert json.loads((tmp_path / "z" / "adapt.json").read_text())["runs"][0]["task"] == name


def test_a_missing_package_and_missing_memory_are_one_line(monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "mhr_benchmarks.ops", raising=False)
    assert "compares with PEFT, which is not installed: pip install 'mhr[bench]'" in refuse(
        "benchmark", "ops", "--quick"
    )

    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr("mhr.training.pretraining.pretrain", fail)
    assert "out of memory" in refuse("pretrain", "--output", output)


def test_one_of_several_processes_speaks_for_all() -> None:
    process = spawn("doctor", "--json", env={**os.environ, "RANK": "1"})
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (0, ""), stderr
    process = spawn("evaluate", "nothing", env={**os.environ, "RANK": "1"})
    assert last_line(process.communicate(timeout=120)[1]).startswith("error (process 1): ")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU takes fp16")
def test_half_precision_without_a_gpu(output: Path, run: Path, tmp_path: Path) -> None:
    assert "precision is 'fp16', which needs a GPU" in refuse("pretrain", "--precision", "fp16", "--output", output)
    copy = Path(shutil.copytree(run, tmp_path / "from a GPU"))
    settings = copy / "config.yaml"
    settings.write_text(settings.read_text().replace("precision: 'no'", "precision: fp16"))
    assert "needs a GPU" in refuse("adapt", copy, "--task", "rev-upper", "--mode", "z", "--output", output)


def test_an_unknown_key_in_a_file(output: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: builtin:t5-tiny\nadapter:\n  rnak: 4\n")
    line = refuse("pretrain", "--config", file, "--output", output)
    assert f"{file}: unknown key 'adapter.rnak'" in line
    assert "did you mean 'rank'?" in line


def test_shots_seeds_and_modes_that_cannot_be(output: Path, run: Path) -> None:
    adapt = ("adapt", run, "--output", output, "--task", "rev-upper")
    assert "--seeds" in refuse(*adapt, "--seeds", "13,x")
    assert "each seed once" in refuse(*adapt, "--seeds", "1,1")
    assert "--shots 400" in refuse(*adapt, "--shots", "4000")
    assert "did you mean" in refuse(*adapt, "--mode", "zz")
    assert "'rev-upper'" in refuse("adapt", run, "--output", output, "--task", "rev-uper")


def test_the_suite_is_judged_on_what_it_has(run: Path) -> None:
    line = refuse("evaluate", run, "--set", "data.max_test=200")
    assert "data.max_test has no effect on builtin:skills: it is for " in line


def test_a_seed_of_what_is_not_drawn(output: Path, rows: Path) -> None:
    line = refuse("pretrain", "--tasks", rows, "--set", "data.train_seed=13", "--output", output)
    assert "train_seed is 13, but all training examples are read: set max_train to how many are drawn" in line
