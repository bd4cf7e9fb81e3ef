"""`mhr import`: runs of what others trained, and one line for what is not taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import mhr
from mhr import AdapterConfig
from mhr.adapters import load_adapter, save_adapter
from mhr.backbones import load_backbone
from tests.cli.running import refuse, succeed

T5 = "builtin:t5-tiny"


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank that a loop of one's own trained and saved."""
    model, _ = load_backbone(T5)
    mhr.attach(model, AdapterConfig(n_heads=2, n_skills=3, rank=2, targets=["q", "v"]), ["rev-last", "next-first"])
    return save_adapter(model, tmp_path_factory.mktemp("own") / "bank", base=T5)


def test_a_bank_of_one_s_own_is_adapted_evaluated_inspected_merged_and_reported(bank, tmp_path):
    result = succeed("import", bank, "--output", tmp_path / "run")
    assert "mhr on builtin:t5-tiny, 2 tasks (rev-last, next-first)" in result.stdout
    assert "not known" in result.stderr
    assert refuse("evaluate", tmp_path / "run", "--limit", "2") == (
        "error: the run does not know the tasks that it was trained on: name a collection with --tasks"
    )
    few = ("--task", "init-upper", "--seeds", "0", "--shots", "4", "--steps", "2")
    refused = refuse("adapt", tmp_path / "run", *few, "--mode", "z", "--output", tmp_path / "z")
    assert "name a collection with --tasks" in refused
    skills = ("--tasks", "builtin:skills")
    succeed("adapt", tmp_path / "run", *skills, *few, "--mode", "z", "--output", tmp_path / "z")
    succeed("evaluate", tmp_path / "z" / "init-upper" / "0", "--limit", "2")
    judged = succeed("evaluate", tmp_path / "run", *skills, "--task", "rev-last", "--limit", "2", "--json")
    assert json.loads(judged.stdout)["tasks"].keys() == {"rev-last"}
    assert json.loads(succeed("inspect", tmp_path / "run", "--json").stdout)["tasks"] == ["rev-last", "next-first"]
    succeed("merge", tmp_path / "run", "--to", "peft-poly", "--output", tmp_path / "poly")
    assert json.loads((tmp_path / "poly" / "adapter_config.json").read_text())["peft_type"] == "POLY"
    succeed("report", tmp_path / "run", "--output", tmp_path / "report")


def test_a_collection_that_is_named_is_known_after(bank, tmp_path):
    shown = succeed("import", bank, "--tasks", "builtin:skills", "--json", "--output", tmp_path / "run")
    info = json.loads(shown.stdout)
    assert (info["status"], info["imported"]["format"]) == ("done", "mhr-adapter")
    succeed("evaluate", tmp_path / "run", "--task", "rev-last", "--limit", "2")


def test_a_run_keeps_how_its_base_is_loaded(bank, tmp_path):
    succeed("import", bank, "--dtype", "bfloat16", "--output", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["config"]["dtype"] == "bfloat16"
    load_adapter(tmp_path / "run" / "adapter", load_backbone(T5)[0])


def poly(folder: Path, heads: int = 4) -> Path:
    model, _ = load_backbone(T5)
    config = peft.PolyConfig(r=2, n_tasks=2, n_splits=heads, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_bad_input_is_one_line_and_nothing_is_written(bank, tmp_path):
    folder, odd = poly(tmp_path / "poly"), poly(tmp_path / "odd", heads=5)
    names = tmp_path / "names.txt"
    names.write_text("only one\n")
    torch.save({"state_dict": {}, "more": Payload(tmp_path / "executed")}, tmp_path / "x.ckpt")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes((tmp_path / "x.ckpt").read_bytes()[:200])
    to = ("--output", tmp_path / "run")
    lines = {
        "1 task names are given": ("import", folder, "--model", T5, "--task-names", names, *to),
        "5 heads (n_splits), which do not divide": ("import", odd, "--model", T5, *to),
        "besides tensors": ("import", tmp_path / "x.ckpt", "--model", T5, *to),
        "truncated": ("import", cut, "--model", T5, *to),
        "no such file or folder": ("import", tmp_path / "nothing", *to),
        "mhr import takes checkpoints": ("predict", tmp_path / "x.ckpt", "a"),
        "it is a file; mhr import takes": ("merge", tmp_path / "x.ckpt", *to),
    }
    before = sorted(entry.name for entry in tmp_path.iterdir())
    for expected, arguments in lines.items():
        assert expected in refuse(*arguments)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == before
