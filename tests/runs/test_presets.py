"""Every value of every published preset beside the published one, and each deliberate difference by its name."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import yaml

from mhr.runs.config import flat, load_config, presets, to_dict

OF_OUR_OWN = {"demo", "demo-llm"}

GLUE: dict[str, Any] = {
    "kind": "encoder",
    "method": "adamix",
    "adapter.n_skills": 4,
    "adapter.share": "up",
    "data.max_input_length": 128,
    "train.batch_size": 64,
    "train.optimizer": "adamw",
    "train.weight_decay": 0.1,
    "train.clip": 1.0,
    "train.warmup": 0.06,
    "train.scheduler": "linear",
    "train.consistency": 1,
    "train.seed": 0,
    "train.eval_every_epochs": 1,
    "train.eval_rows": "the whole development set, which is also what is reported",
    "train.keep_best": True,
    "train.best_by": "score",
}
FEW_SHOT: dict[str, Any] = {
    "model": "roberta-large",
    "kind": "masked",
    "head": "mlm",
    "method": "adamix",
    "adapter.n_skills": 4,
    "adapter.rank": 16,
    "adapter.share": "up",
    "data.template": None,
    "data.max_input_length": 128,
    "data.max_train": 30,
    "train.steps": None,
    "train.batch_size": None,
    "train.optimizer": "adamw",
    "train.lr": 3e-4,
    "train.weight_decay": 0.1,
    "train.clip": 1.0,
    "train.warmup": 0.06,
    "train.scheduler": "linear",
    "train.consistency": 1,
}
GPT2: dict[str, Any] = {
    "model": "gpt2-medium",
    "kind": "causal",
    "method": "adamix-lora",
    "adapter.n_skills": 8,
    "adapter.share": "up",
    "adapter.targets": ["attn.c_attn"],
    "adapter.parts": ["q", "v"],
    "adapter.rank": 4,
    "adapter.alpha": 32,
    "adapter.init": "peft",
    "data.max_input_length": 512,
    "data.max_target_length": 512,
    "train.batch_size": 8,
    "train.optimizer": "adamw",
    "train.lr": 2e-4,
    "train.adam_epsilon": 1e-6,
    "train.clip": 0,
    "train.scheduler": "linear",
    "train.consistency": 100,
    "train.seed": 110,
}
POLY: dict[str, Any] = {
    "adapter.n_skills": 8,
    "adapter.rank": 16,
    "train.batch_size": 8,
    "train.optimizer": "adamw",
    "train.lr": 1e-3,
    "train.router_lr": 0.1,
    "train.weight_decay": 0.01,
    "train.router_weight_decay": 0.01,
    "train.clip": 0.1,
    "train.scheduler": "linear",
    "adapt.shots": 32,
    "adapt.steps": 1000,
    "adapt.batch_size": 8,
    "adapt.lr": 1e-3,
    "adapt.router_lr": 0.1,
    "adapt.grid": {"lr": [1e-3, 1e-4], "router_lr": [0.5, 0.1]},
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "glue-adamix": GLUE | {"model": "roberta-large", "adapter.rank": 16, "train.epochs": 20, "train.lr": 3e-4},
    "glue-adamix-bert": GLUE | {"model": "bert-base-uncased", "adapter.rank": 48, "train.epochs": 40, "train.lr": 4e-4},
    "few-shot-adamix": FEW_SHOT,
    "e2e-adamix": GPT2
    | {"adapter.dropout": 0.1, "train.epochs": 20, "train.warmup": 2000}
    | {"train.weight_decay": 0.01, "train.label_smoothing": 0.1},
    "dart-adamix": GPT2
    | {"adapter.dropout": 0.0, "train.epochs": 20, "train.warmup": 2000}
    | {"train.weight_decay": 0.0, "train.label_smoothing": 0.0},
    "webnlg-adamix": GPT2
    | {"adapter.dropout": 0.1, "train.epochs": 25, "train.warmup": 2500}
    | {"train.weight_decay": 0.01, "train.label_smoothing": 0.1},
    "superni": POLY
    | {
        "model": "google/t5-large-lm-adapt",
        "method": "mhr",
        "adapter.n_heads": None,
        "adapter.targets": ["q", "k", "v", "o"],
        "adapter.noise": "per_example",
        "data.max_input_length": 1024,
        "data.max_target_length": 128,
        "data.max_train": 100,
        "data.definitions": True,
        "data.definition_form": "published",
        "train.steps": 25000,
        "train.warmup": 1500,
        "train.label_smoothing": 0.1,
        "train.save_every": None,
        "adapt.seeds": [13, 42, 58],
    },
    "crossfit": POLY
    | {
        "model": "facebook/bart-large",
        "method": "poly",
        "adapter.targets": ["q_proj", "k_proj", "v_proj", "out_proj"],
        "data.max_input_length": 512,
        "data.max_target_length": 64,
        "train.epochs": 30,
        "train.warmup": 0.06,
    },
    "t0": {
        "model": "google/t5-xl-lm-adapt",
        "method": "mhr",
        "adapter.n_heads": 64,
        "adapter.n_skills": 8,
        "adapter.rank": 1,
        "adapter.targets": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
        "data.max_input_length": 256,
        "data.max_target_length": 256,
        "train.steps": 100000,
        "train.batch_size": 8,
        "train.accumulation": 2,
        "train.optimizer": "adafactor",
        "train.scale_parameter": False,
        "train.lr": 1e-3,
        "train.router_lr": 0.1,
        "train.weight_decay": 0.0,
        "train.clip": 1.0,
        "train.warmup": 0.06,
        "train.scheduler": "linear",
        "train.precision": "bf16",
        "train.save_every": None,
        "adapt.shots": 32,
        "adapt.seeds": [42, 1024, 0],
        "adapt.steps": 1000,
        "adapt.batch_size": 8,
        "adapt.lr": 3e-3,
        "adapt.router_lr": 0.1,
        "adapt.scale_parameter": True,
        "adapt.shots_for": {"*winogrande*": 50, "*story*cloze*": 70, "*h*swag*": 20},
        "adapt.length_norm": 1,
        "adapt.mc_loss": 1,
        "adapt.unlikely_loss": 1,
    },
}
"""Preset -> setting -> what was published; None where nothing was, or was found."""

OF_GLUE = {"train.eval_rows": (1000, "selection on examples that are not reported")}
OF_GPT2 = {
    "adapter.rank": (8, "4 for each of the two parts"),
    "adapter.alpha": (64, "with rank 8 the same scaling"),
    "data.max_input_length": (384, "one length there for input and target together"),
    "data.max_target_length": (128, "one length there for input and target together"),
}
DIFFERENCES: dict[str, dict[str, tuple[Any, str]]] = {
    "glue-adamix": OF_GLUE,
    "glue-adamix-bert": OF_GLUE,
    "few-shot-adamix": {
        "data.template": ("lm-bff", "prompts of LM-BFF"),
        "train.steps": (1000, "as LM-BFF"),
        "train.batch_size": (8, "as LM-BFF"),
    },
    "e2e-adamix": OF_GPT2,
    "dart-adamix": OF_GPT2,
    "webnlg-adamix": OF_GPT2,
    "superni": {"adapter.n_heads": (8, "the number was not found"), "train.save_every": (1000, "decides nothing")},
    "crossfit": {},
    "t0": {"train.save_every": (2000, "decides nothing")},
}
"""Preset -> setting -> our value and the reason: every one that is not the published one."""


def text_of(preset: str) -> str:
    return resources.files("mhr.runs").joinpath("presets", f"{preset}.yaml").read_text("utf-8")


def said_by(preset: str) -> set[str]:
    """The settings that the file of a preset names."""
    found = set()
    for name, value in yaml.safe_load(text_of(preset)).items():
        found |= {f"{name}.{key}" for key in value} if name in ("adapter", "data", "train", "adapt") else {name}
    return found


def test_every_published_preset_is_in_the_table() -> None:
    assert set(PUBLISHED) == set(DIFFERENCES) == set(presets()) - OF_OUR_OWN


@pytest.mark.parametrize("preset", PUBLISHED)
def test_values_are_the_published_ones_but_for_named_differences(preset: str) -> None:
    published, differences = PUBLISHED[preset], DIFFERENCES[preset]
    assert said_by(preset) == set(published)
    values = flat(to_dict(load_config(preset=preset)))
    values |= {key: getattr(load_config(preset=preset).adapt, key[6:]) for key in ("adapt.grid", "adapt.shots_for")}
    assert {key: values[key] for key in published} == published | {key: ours for key, (ours, _) in differences.items()}
    assert all(reason and ours != published[key] for key, (ours, reason) in differences.items())


@pytest.mark.parametrize("preset", PUBLISHED)
def test_every_value_says_where_it_is_from(preset: str) -> None:
    lines = [line for line in text_of(preset).splitlines()[1:] if not line.startswith("#")]
    values = [line for line in lines if not line.rstrip().endswith(":")]
    assert len(values) == len(PUBLISHED[preset])
    for line in values:
        assert line.partition("  # ")[2].split(" ")[0].strip(",:") in (
            "script",
            "paper",
            "code",
            "ours",
            "LM-BFF",
            "T-Few",
        ), line


def test_parts_scale_as_published() -> None:
    adapter = load_config(preset="e2e-adamix").adapter
    assert adapter.scaling == 32 / 4
    assert adapter.rank // len(adapter.parts) == 4


def test_twenty_epochs_of_e2e_are_the_published_steps() -> None:
    """42,061 training examples in batches of 8, by 5,258 updates an epoch."""
    train = load_config(preset="e2e-adamix").train.lasting(42061)
    assert (train.steps, train.warmup_steps) == (105153, 2000)
