"""A sharded base: two processes give what one gives, what is written is whole, and what cannot be sharded is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mhr.adapters import read_adapter
from mhr.config import AdapterConfig
from mhr.errors import ConfigError, TrainingError
from mhr.layers import attach
from mhr.runs import RunFolder
from mhr.runs.config import dump_config
from mhr.runs.settings import RunConfig
from mhr.training import preparing, pretrain, sharding
from mhr.training.processes import FSDP, check_precision, processes
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from tests.cli.running import torchrun
from tests.forked import as_torchrun
from tests.models import tiny_model

Make = Callable[..., RunConfig]

RUNS: dict[str, dict[str, Any]] = {
    "t5": {"model": "t5", "method": "mhr", "n_heads": 2, "mc_loss": 1.0, "gradient_checkpointing": True},
    "adamix": {"model": "llama", "method": "adamix", "gradient_checkpointing": True},
    "lora": {"model": "llama", "method": "lora", "accumulation": 2, "modules_to_save": ["lm_head"]},
    "bfloat16": {"model": "llama", "method": "mhr", "n_heads": 2, "lazy_rows": True},
}


@dataclass(frozen=True)
class Job:
    """A run. stop: the step that it is interrupted after; bfloat16: what its base is in."""

    config: RunConfig
    output: Path
    resume: bool = False
    stop: int | None = None
    bfloat16: bool = False


def in_bfloat16(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_backbone(*args: Any, **kwargs: Any) -> Any:
        model, tokenizer = load(*args, **kwargs)
        return model.bfloat16(), tokenizer

    return load_backbone


def in_two(jobs: list[Job]) -> None:
    """Do the runs one after the other in two processes, each of which writes what it holds of every parameter to OUTPUT.RANK.json."""
    as_torchrun(lambda: [do(job) for job in jobs])


def do(job: Job) -> None:
    step = RoutedTrainer.training_step

    def training_step(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
        self.stop.asked = self.state.global_step + 1 == job.stop
        held = {
            name: [p.numel(), (p.to_local() if isinstance(p, DTensor) else p).numel(), str(p.dtype), p.requires_grad]
            for name, p in self.model.named_parameters()
        }
        Path(f"{job.output}.{os.environ['RANK']}.json").write_text(json.dumps(held))
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoutedTrainer, "training_step", training_step)
        if job.bfloat16:
            patch.setattr(preparing, "load_backbone", in_bfloat16(preparing.load_backbone))
        stops = pytest.raises(Interrupted) if job.stop else nullcontext()
        with stops:
            pretrain(job.config, str(job.output), resume=job.resume, progress=False)


def same_metrics(a: RunFolder, b: RunFolder) -> None:
    assert len(a.metrics()) == len(b.metrics()) > 0
    for one, other in zip(a.metrics(), b.metrics(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-3)
        assert one["tasks"] == pytest.approx(other["tasks"], rel=1e-4)


def test_two_processes_with_a_sharded_base_give_what_one_gives(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SGD, whose steps are as close as the gradients: Adam's first ones are signs of gradients, whatever their size.
    common: dict[str, Any] = {
        "steps": 3,
        "save_every": 1,
        "keep_checkpoints": 3,
        "optimizer": "sgd",
        "lr": 0.5,
        "router_lr": 0.5,
    }
    in_two(
        [
            Job(
                settings(**how, **common, batch_size=4, fsdp=True),
                tmp_path / f"two-{name}",
                bfloat16=name == "bfloat16",
            )
            for name, how in RUNS.items()
        ]
    )
    for name, how in RUNS.items():
        with monkeypatch.context() as patch:
            if name == "bfloat16":
                patch.setattr(preparing, "load_backbone", in_bfloat16(preparing.load_backbone))
            alone = pretrain(settings(**how, **common, batch_size=8), str(tmp_path / f"one-{name}"), progress=False)
        both = RunFolder.open(tmp_path / f"two-{name}")
        assert (both.info["processes"], both.info["sharded"], both.status) == (2, True, "done")
        same_metrics(both, alone)

        held = [json.loads((tmp_path / f"two-{name}.{rank}.json").read_text()) for rank in (0, 1)]
        for parameter, (size, part, dtype, trained) in held[0].items():
            other = held[1][parameter][1]
            in_block = "layers." in parameter or "block." in parameter
            assert (part + other if in_block and not trained else (part + other) / 2) == size, parameter
            assert dtype == ("torch.bfloat16" if name == "bfloat16" and not trained else "torch.float32")
        assert any(part < size for size, part, *_ in held[0].values())

        for place in ("adapter", "checkpoints/checkpoint-2"):
            a, b = read_adapter(both.path / place), read_adapter(alone.path / place)
            assert a.base.fingerprint == b.base.fingerprint != ""
            assert a.tensors.keys() == b.tensors.keys()
            start = read_adapter(alone.path / "checkpoints" / "checkpoint-1").tensors
            # What a bfloat16 base computes is rounded at other places where its batches are others.
            near = 1e-3 if name == "bfloat16" else 1e-4
            for key, tensor in a.tensors.items():
                assert tensor.shape == b.tensors[key].shape
                assert tensor.dtype == b.tensors[key].dtype
                moved = (b.tensors[key] - start[key]).norm()
                # A parameter takes a step to within its own rounding, however small the step is.
                rounded = torch.finfo(tensor.dtype).eps * b.tensors[key].norm()
                assert (tensor - b.tensors[key]).norm() <= near * moved + rounded, key


def test_a_run_goes_on_with_other_processes_and_shards(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = settings("llama", method="mhr", n_heads=2, batch_size=8, steps=6, save_every=6)
    two = settings("llama", method="mhr", n_heads=2, batch_size=4, steps=6, save_every=6, fsdp=True)
    whole = pretrain(one, str(tmp_path / "whole"), progress=False)
    with monkeypatch.context() as patch:
        step = RoutedTrainer.training_step

        def stopped(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
            self.stop.asked = self.state.global_step == 1
            return step(self, *args, **kwargs)

        patch.setattr(RoutedTrainer, "training_step", stopped)
        with pytest.raises(Interrupted, match="after step 2 of 6"):
            pretrain(one, str(tmp_path / "run"), progress=False)
    in_two([Job(two, tmp_path / "run", resume=True, stop=3)])
    middle = RunFolder.open(tmp_path / "run")
    assert (middle.status, middle.info["processes"], middle.info["resumed_from"]) == ("interrupted", 2, "checkpoint-2")
    assert 3 <= len(middle.metrics()) < 6

    with pytest.raises(TrainingError, match=r"global batch of 8 examples, and 1 processes .* = 4 make 4"):
        pretrain(settings("llama", method="mhr", n_heads=2, batch_size=4, steps=6, save_every=6), str(tmp_path / "run"),
                 resume=True, progress=False)  # fmt: skip
    again = pretrain(one, str(tmp_path / "run"), resume=True, progress=False)
    assert (again.status, again.info["processes"], again.info["sharded"]) == ("done", 1, False)
    assert [record["step"] for record in again.metrics()] == [1, 2, 3, 4, 5, 6]
    same_metrics(again, whole)


@pytest.mark.parametrize(
    ("flags", "attributes", "environment", "message"),
    [
        ({"fsdp": True}, {}, {}, "fsdp shards the base over processes, and there is one"),
        ({}, {}, {FSDP: "true", "FSDP_VERSION": "2"}, "there is one"),
        ({"fsdp": True, "method": "full"}, {}, {}, "method 'full' freezes nothing"),
        ({"fsdp": True}, {"quantize": "4bit"}, {}, "fsdp is given with quantize '4bit'"),
        ({"fsdp": True}, {"device_map": "auto"}, {}, "fsdp is given with device_map 'auto'"),
        ({}, {}, {FSDP: "true"}, "FSDP_VERSION=1, which is not supported: write fsdp_version: 2"),
        ({}, {}, {FSDP: "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS=true"),
        ({}, {}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "asked for DeepSpeed, which is not supported"),
        ({}, {}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision 'bf16', and the run's precision is 'no'"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_anything_is_loaded(
    flags: dict[str, Any],
    attributes: dict[str, Any],
    environment: dict[str, str],
    message: str,
    settings: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(**flags)
    for name, value in attributes.items():
        setattr(config, name, value)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(preparing, "load_backbone", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ConfigError) as refused:
        pretrain(config, str(tmp_path / "run"), progress=False)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_precision_that_accelerate_was_asked_for_may_be_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_precision("bf16")


@pytest.mark.parametrize(("name", "n_blocks"), [("t5", 4), ("bart", 4), ("llama", 2), ("gpt2", 2), ("bert", 2)])
def test_the_blocks_are_found_where_they_stand(name: str, n_blocks: int) -> None:
    model = tiny_model(name)
    attach(model, AdapterConfig(n_heads=2), ["a", "b"])
    blocks = list(sharding.blocks_of(model))
    assert len(blocks) == n_blocks
    assert all(any(p.requires_grad for p in block.parameters()) for block in blocks)


def test_a_base_without_blocks_or_of_whole_numbers_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 4)

    processes()
    flat = Flat()
    attach(flat, AdapterConfig(targets=["up"], n_heads=1), ["a"])
    with pytest.raises(ConfigError, match="Flat has no list of them"):
        sharding.shard_base(flat, torch.device("cpu"))
    model = tiny_model("llama")
    attach(model, AdapterConfig(n_heads=1), ["a"])
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"cannot shard parameter '.*up_proj.weight' of torch.uint8"):
        sharding.shard_base(model, torch.device("cpu"))


def test_a_user_error_of_all_processes_is_printed_once(settings: Make, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(settings(method="full")))
    ran = torchrun("pretrain", "--config", config, "--fsdp", "--output", tmp_path / "run")
    assert ran.returncode != 0
    assert [line for line in ran.stderr.splitlines() if line.startswith("error")] == [
        "error: fsdp shards what is frozen, and method 'full' freezes nothing: train an adapter, or leave fsdp out"
    ]
    assert not (tmp_path / "run").exists()
