"""`mhr extract` from the command line: what it prints, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mhr.adapters import load_peft
from tests.cli.running import refuse, succeed
from tests.models import tiny_model


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    base, full = tiny_model("llama"), tiny_model("llama")
    full.model.layers[0].mlp.up_proj.weight.data += torch.outer(torch.ones(64), torch.arange(32.0))
    full.model.norm.weight.data.mul_(1.5)
    base.save_pretrained(tmp_path / "base")
    full.save_pretrained(tmp_path / "full")
    return tmp_path / "full", tmp_path / "base"


def test_a_lora_of_two_models(models: tuple[Path, Path], tmp_path: Path) -> None:
    found = succeed("extract", *models, "--rank", 2, "--ignore", "model.norm", "--output", tmp_path / "lora")
    assert found.stdout.startswith("1 layers, rank 2\nrelative error ")
    assert "left as in the base: model.norm.weight, which is 5.00e-01 from it" in found.stdout
    assert list(load_peft(tmp_path / "lora").layers) == ["model.layers.0.mlp.up_proj"]
    arguments = ("--rank-energy", 0.9, "--modules-to-save", "norm", "--output", tmp_path / "whole", "--json")
    report = json.loads(succeed("extract", *models, *arguments).stdout)
    assert report["ranks"] == {"model.layers.0.mlp.up_proj": 1}
    assert report["modules_to_save"] == ["model.norm"]
    assert report["error"]["overall"] < 1e-6
    assert "vLLM and llama.cpp refuse modules_to_save" in report["remarks"][0]


def test_what_is_refused_in_one_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    output = ("--output", tmp_path / "lora")
    assert "differs from" in (line := refuse("extract", *models, "--rank", 2, *output))
    assert "'model.norm.weight': take their modules whole with --modules-to-save norm, or leave them" in line
    assert "neither rank nor rank_energy is given" in refuse("extract", *models, *output)
    assert not (tmp_path / "lora").exists()


def test_all_that_differs_may_not_be_ignored(models: tuple[Path, Path], tmp_path: Path) -> None:
    line = refuse("extract", *models, "--rank", 2, "--ignore", "norm,up_proj", "--output", tmp_path / "lora")
    assert "in nothing but what --ignore leaves as in the base" in line
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize(
    "changed", [{"hidden_size": "big"}, {"hidden_size": -3}, {"num_attention_heads": 0}, {"model_type": ["llama"]}]
)
def test_a_damaged_configuration_is_one_line(
    changed: dict[str, object], models: tuple[Path, Path], tmp_path: Path
) -> None:
    config = models[0] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    line = refuse("extract", *models, "--rank", 2, "--output", tmp_path / "lora")
    assert f"{models[0]} is no model that transformers can read" in line
    assert not (tmp_path / "lora").exists()


def test_an_index_without_names_of_files_is_one_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    (models[0] / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": ["a file"]}}')
    line = refuse("extract", *models, "--rank", 2, "--output", tmp_path / "lora")
    assert "names no files of weights (weight_map)" in line
    assert not (tmp_path / "lora").exists()
