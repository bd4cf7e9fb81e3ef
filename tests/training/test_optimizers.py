"""Optimizers by Trainer's names: both rates and no decay of routing with each, packages that are missing, states of 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.errors import ConfigError
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import ADAM_OPTIMIZERS, OPTIMIZERS
from mhr.training import optimizers, pretrain
from mhr.training.optimizers import PACKAGES, check_optimizer, transformers_name
from tests.training.test_trainer import trainer_for

Make = Callable[..., RunConfig]
IN_TORCH = [name for name in OPTIMIZERS if name not in PACKAGES]


def trained(config: RunConfig, folder: Path) -> Any:
    """A trainer after its steps; every group has its rate, its decay and its parameters."""
    trainer = trainer_for(config, folder)
    before = {name: tensor.clone() for name, tensor in trainer.bank.tensors().items()}
    groups = {group["name"]: group for group in trainer.create_optimizer().param_groups}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "adapters": (1e-3, 0.01),
        "routing": (0.02, 0.0),
    }
    assert set(map(id, groups["routing"]["params"])) == set(map(id, trainer.bank.router_parameters()))
    assert set(map(id, groups["adapters"]["params"])) == set(map(id, trainer.bank.adapter_parameters()))
    trainer.fit()
    after = trainer.bank.tensors()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in after)
    return trainer


@pytest.mark.parametrize("optimizer", IN_TORCH)
def test_every_optimizer_of_torch_keeps_both_rates(settings: Make, tmp_path: Path, optimizer: str) -> None:
    trained(settings(lr=1e-3, router_lr=0.02, weight_decay=0.01, optimizer=optimizer, steps=2), tmp_path)


@pytest.mark.parametrize("optimizer", PACKAGES)
def test_every_optimizer_of_a_package_keeps_both_rates(settings: Make, tmp_path: Path, optimizer: str) -> None:
    pytest.importorskip(PACKAGES[optimizer])
    trainer = trained(settings(lr=1e-3, router_lr=0.02, weight_decay=0.01, optimizer=optimizer, steps=2), tmp_path)
    inner = trainer.optimizer.optimizer
    assert type(inner).__module__.startswith(PACKAGES[optimizer])


def test_routing_keeps_states_of_32_bits(settings: Make, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    trainer = trainer_for(settings(optimizer="adamw_8bit"), tmp_path)
    optimizer = trainer.create_optimizer()
    for g, group in enumerate(optimizer.param_groups):
        bits = {optimizer.get_config(g, i, group)["optim_bits"] for i in range(len(group["params"]))}
        assert bits == {32 if group["name"] == "routing" else 8}


def test_adamw_and_adafactor_mean_what_they_did(settings: Make, tmp_path: Path) -> None:
    adamw = trainer_for(settings(), tmp_path / "adamw").create_optimizer()
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    assert not adamw.defaults["fused"]
    adafactor = trainer_for(settings(optimizer="adafactor"), tmp_path / "adafactor").create_optimizer()
    assert not adafactor.defaults["relative_step"]
    assert not adafactor.defaults["scale_parameter"]


def test_adafactor_scales_its_steps_by_what_is_trained_where_asked(settings: Make, tmp_path: Path) -> None:
    """The first step of a factored second moment is as large as the rate, times max(0.001, root mean square)."""
    for scaled, size in ((False, 0.1), (True, 0.1 * 0.02)):
        config = settings(method="poly", optimizer="adafactor", lr=0.1, **{"train.scale_parameter": scaled})
        trainer = trainer_for(config, tmp_path / str(scaled))
        optimizer = trainer.create_optimizer()
        assert optimizer.defaults["scale_parameter"] is scaled
        bank = next(iter(trainer.bank.layers.values())).bank_a
        with torch.no_grad():
            bank.fill_(0.02)
        bank.grad = torch.ones_like(bank)
        before = bank.detach().clone()
        optimizer.step()
        torch.testing.assert_close(before - bank.detach(), torch.full_like(before, size), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", ADAM_OPTIMIZERS)
def test_epsilon_is_the_one_that_is_set(settings: Make, tmp_path: Path, optimizer: str) -> None:
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer])
    made = trainer_for(settings(optimizer=optimizer, **{"train.adam_epsilon": 1e-3}), tmp_path).create_optimizer()
    assert {group["eps"] for group in made.param_groups} == {1e-3}


def test_every_name_is_one_of_trainer_s() -> None:
    from transformers.training_args import OptimizerNames

    assert {transformers_name(name) for name in OPTIMIZERS} <= {name.value for name in OptimizerNames}


def test_an_unknown_optimizer_names_the_nearest(settings: Make) -> None:
    with pytest.raises(ConfigError, match="optimizer is 'adamw_torch_fusd', .*did you mean 'adamw_torch_fused'"):
        settings(optimizer="adamw_torch_fusd")


def test_a_missing_package_is_one_line_and_nothing_is_written(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match="optimizer is 'lion_8bit', which needs the package bitsandbytes.*pip install"
    ):
        pretrain(settings(optimizer="lion_8bit"), str(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()
    check_optimizer("adafactor")


@pytest.mark.parametrize(("warmup", "steps"), [(0.25, 2), (3, 3), (0, 0), (1, 1)])
def test_warm_up_is_a_share_or_a_number_of_steps(settings: Make, tmp_path: Path, warmup: float, steps: int) -> None:
    trainer = trainer_for(settings(warmup=warmup, scheduler="constant", lr=1.0), tmp_path)
    trainer.fit()
    rates = [record["lr"] for record in trainer.run.metrics()]
    assert rates == pytest.approx([min(step / steps, 1.0) if steps else 1.0 for step in range(8)])


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_8bit", "lion_8bit"])
def test_a_resumed_run_has_the_states_of_its_optimizer(settings: Make, tmp_path: Path, optimizer: str) -> None:
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer])
    config = settings(optimizer=optimizer, steps=4, save_every=2, lr=1e-3)
    whole = trainer_for(config, tmp_path / "whole", resumable=True)
    whole.fit()
    again = trainer_for(config, tmp_path / "again", resumable=True)
    again.fit(whole.run.checkpoints / "checkpoint-2")
    ours, theirs = whole.bank.tensors(), again.bank.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.run.metrics() == whole.run.metrics()[2:]
