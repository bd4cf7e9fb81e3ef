"""PHATGOOSE: outputs, and gradients of inputs and of gates, against the equations in float64; gates that are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import load_checkpoint, read_adapter
from mhr.errors import ConfigError, TaskError
from mhr.experts import route_tokens
from mhr.few_shot import adapt
from mhr.routing.phatgoose import PhatgooseRouter
from mhr.runs import RunFolder
from tests.models import randomise

NAMES = ["boolq", "rte", "copa"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def adapted(**router: float) -> tuple[nn.Module, AdapterBank, PhatgooseRouter]:
    torch.manual_seed(0)
    model = Layer().double()
    config = AdapterConfig(method="phatgoose", rank=2, alpha=3.0, targets=["layer"], router=router)
    bank = mhr.attach(model, config, NAMES)
    randomise(bank)
    (found,) = bank.groups.values()
    assert isinstance(found, PhatgooseRouter)
    found.fill(torch.randn(3, 6, dtype=torch.float64))
    return model, bank, found


def standardised(z: Tensor) -> Tensor:
    return (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("router", [{}, {"top_k": 1}, {"top_k": 3, "temperature": 0.5}])
def test_outputs_and_every_gradient_are_those_of_the_equations(router: dict[str, float]) -> None:
    model, bank, gates = adapted(**router)
    (layer,) = bank.layers.values()
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    rows = []
    for token in x.flatten(0, 1):
        scores = torch.stack([standardised(v) @ standardised(token) for v in gates.directions]) / 6**0.5
        best = scores.topk(router.get("top_k", 2)).indices
        c = torch.softmax(scores[best] / router.get("temperature", 1.0), 0)
        update = sum(c[j] * (token @ layer.bank_a[0, s] @ layer.bank_b[0, s]) for j, s in enumerate(best))
        rows.append(layer.base(token) + 3.0 / 2 * update)
    stated, found = torch.stack(rows).view(4, 5, 10), model(x)
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    with torch.no_grad():  # where one kernel does all of it
        torch.testing.assert_close(model(x), stated, rtol=1e-10, atol=1e-12)
    upstream, leaves = torch.randn_like(stated), [x, layer.bank_a, layer.bank_b]
    one, two = (torch.autograd.grad((y * upstream).sum(), leaves) for y in (found, stated))
    for a, b in zip(one, two, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_gate_in_training_opens_one_lora_and_its_gradient_is_that_of_the_equation() -> None:
    model, bank, gates = adapted()
    (layer,) = bank.layers.values()
    before = gates.directions.clone()
    x, upstream = torch.randn(4, 5, 6, dtype=torch.float64), torch.randn(4, 5, 10, dtype=torch.float64)
    with gates.gating(1) as gate:
        assert not gate.any()
        assert bank.router_parameters() == [gate]
        gate.data = torch.randn(6, dtype=torch.float64)
        update = x @ layer.bank_a[0, 1] @ layer.bank_b[0, 1]
        stated = layer.base(x) + 3.0 / 2 * torch.sigmoid(x @ gate)[..., None] * update
        torch.testing.assert_close(model(x), stated, rtol=1e-10, atol=1e-12)
        one, two = (torch.autograd.grad((y * upstream).sum(), gate)[0] for y in (model(x), stated))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)
        assert two.any()
        trained = gate.detach().clone()
    assert bank.router_parameters() == []
    assert torch.equal(gates.directions[1], trained)
    assert torch.equal(gates.directions[[0, 2]], before[[0, 2]])


@pytest.fixture
def trained(source: Callable[[str], RunFolder]) -> RunFolder:
    return source("private")


def gated(run: RunFolder, output: Path, **settings: Any) -> RunFolder:
    given = {"steps": 3, "batch_size": 4, "lr": 0.1, "progress": False} | settings
    return route_tokens(run.path, method="phatgoose", output=output, **given)


def test_gates_alone_are_trained_and_a_run_answers_by_them(trained: RunFolder, tmp_path: Path) -> None:
    run = gated(trained, tmp_path / "run")
    bank, before = read_adapter(run.adapter), read_adapter(trained.adapter)
    assert bank.tasks == before.tasks
    for name, tensor in before.tensors.items():
        if name.startswith("layers."):
            assert torch.equal(bank.tensors[name], tensor), name
    gates = {name: t for name, t in bank.tensors.items() if name.endswith(".directions")}
    assert len(gates) == len(bank.layers)
    # Of a LoRA that did not change anything yet (B = 0) the gate has no gradient.
    moved = torch.stack([t.any(-1) for t in gates.values()])
    assert moved.any(0).all()
    for task in bank.tasks:
        log = RunFolder(run.path / "gates" / task, {})
        assert [record["step"] for record in log.metrics()][-1] == 3
    assert run.info["parameters"]["trained"] == sum(t.numel() for t in gates.values())
    model, tokenizer = load_checkpoint(run.adapter)
    assert model.generate(**tokenizer("next first: abc", return_tensors="pt"), max_new_tokens=3).shape[0] == 1
    weighed = adapt(
        str(run.path),
        ["next-first"],
        mode="lorahub",
        output=str(tmp_path / "hub"),
        seeds=[1],
        steps=3,
        shots=4,
        progress=False,
    )
    assert len(weighed[0].info["found"]["weights"]) == 3


def test_a_lora_without_its_task_and_settings_without_gates_are_refused(trained: RunFolder, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"task": "other", "input": "a", "targets": "b", "split": "train"}\n')
    with pytest.raises(
        TaskError,
        match=r"trains a gate for each LoRA on its own task, but one is for 'rev-first', which is no task there",
    ):
        gated(trained, tmp_path / "run", tasks=str(rows))
    for name, value in (
        ("steps", 5),
        ("steps", 100),
        ("lr", 0.1),
        ("tasks", str(rows)),
        ("batch_size", 2),
        ("seed", 0),
    ):
        with pytest.raises(
            ConfigError, match=f"{name} is .*, but method 'arrow' trains no gates: use method 'phatgoose'"
        ):
            route_tokens(trained.path, output=tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()
