"""The routed layers against their formulas, written out example by example, head by head and skill by skill in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import mhr
from mhr import AdapterConfig
from mhr.layers import RoutedIA3, RoutedLinear
from mhr.routing import RoutingBatch
from tests.models import randomise

TASKS = ["boolq", "rte", "copa"]
LENGTH, IN, OUT = 5, 12, 8

# Largest error that is accepted, relative to the largest value of the tensor.
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6}


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def one_layer(base: nn.Module, **config: object) -> tuple[OneLayer, mhr.AdapterBank]:
    torch.manual_seed(0)
    model = OneLayer(base)
    bank = mhr.attach(model, AdapterConfig(targets=["layer"], **config), TASKS)  # type: ignore[arg-type]
    randomise(bank)
    return model, bank


def routing_weights(bank: mhr.AdapterBank, logits: Tensor, batch: RoutingBatch, temperature: float) -> Tensor:
    rows = []
    for u, task in enumerate(batch.tasks.tolist()):
        if task < 0:
            rows.append(torch.full_like(logits[0], 1 / logits.shape[2]))
            continue
        z = logits[task]
        if batch.noise is not None:
            z = (z + batch.noise[0, u].double()) / temperature
        p = torch.sigmoid(z)
        rows.append(p / (p.sum(-1, keepdim=True) + 1e-12))
    return torch.stack(rows)


def lora(x: Tensor, y: Tensor, A: Tensor, B: Tensor, w: Tensor, rows: list[int], scaling: float) -> Tensor:
    n_heads, n_skills = w.shape[1:]
    outputs = []
    for i, u in enumerate(rows):
        a = torch.cat([sum(w[u, h, s] * A[h, s] for s in range(n_skills)) for h in range(n_heads)], dim=0)
        b = torch.cat([sum(w[u, h, s] * B[h, s] for s in range(n_skills)) for h in range(n_heads)], dim=1)
        outputs.append(y[i] + scaling * (x[i] @ a) @ b)
    return torch.stack(outputs)


def close(name: str, got: Tensor | None, expected: Tensor | None, limit: float) -> None:
    assert got is not None, name
    assert expected is not None, name
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error <= limit, f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", ["linear", "without bias", "trained", "conv1d"])
@pytest.mark.parametrize(
    ("heads", "noise", "ids"),
    [
        (1, "off", [0, 1, 1, 2]),
        (4, "off", [2, 0, 2, -1]),
        (4, "off", [1, 1, 1, 1]),
        (2, "per_example", [0, 1, 1, 2]),
        (2, "per_task", [0, 1, 1, 2]),
    ],
)
def test_lora(heads: int, noise: str, ids: list[int], kind: str, dtype: torch.dtype) -> None:
    base = Conv1D(OUT, IN) if kind == "conv1d" else nn.Linear(IN, OUT, bias=kind != "without bias")
    model, bank = one_layer(base.to(dtype), n_heads=heads, rank=3, alpha=2.0, noise=noise, temperature=0.7, n_skills=5)
    (layer,) = bank.layers.values()
    assert isinstance(layer, RoutedLinear)
    if kind == "trained":
        base.requires_grad_(True)
    batch = bank.for_batch(ids)
    x = torch.randn(4, LENGTH, IN, dtype=dtype, requires_grad=True)
    upstream = torch.randn(4, LENGTH, OUT, dtype=dtype)
    y = model(x, task_ids=batch)
    (y * upstream).sum().backward()

    router = bank.groups["layer"]
    leaves = {
        "x": x,
        "bank_a": layer.bank_a,
        "bank_b": layer.bank_b,
        "logits": router.logits,
        "weight": base.weight,
        "bias": base.bias,
    }
    truth = {name: t.detach().double().requires_grad_() for name, t in leaves.items() if t is not None}
    w = routing_weights(bank, truth["logits"], batch, 0.7)
    matrix = truth["weight"] if kind == "conv1d" else truth["weight"].T
    frozen = truth["x"] @ matrix + truth.get("bias", 0.0)
    rows = batch.rows.tolist() * (4 // len(batch.rows))
    expected = lora(truth["x"], frozen, truth["bank_a"], truth["bank_b"], w, rows, 2.0 / 3)
    (expected * upstream.double()).sum().backward()

    limit = LIMITS[dtype]
    close("router weights", layer.router(batch), w, limit)
    close("y", y, expected, limit)
    for name in truth:
        if name in ("weight", "bias") and kind != "trained":
            assert leaves[name].grad is None, name
        else:
            close(name, leaves[name].grad, truth[name].grad, limit)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("heads", [1, 4])
def test_ia3(heads: int, dtype: torch.dtype) -> None:
    base = nn.Linear(IN, OUT).to(dtype)
    model, bank = one_layer(base, adapter="ia3", n_heads=heads, n_skills=5)
    (layer,) = bank.layers.values()
    assert isinstance(layer, RoutedIA3)
    ids = [2, 0, -1, 2]
    batch = bank.for_batch(ids)
    x = torch.randn(4, LENGTH, IN, dtype=dtype, requires_grad=True)
    upstream = torch.randn(4, LENGTH, OUT, dtype=dtype)
    y = model(x, task_ids=batch)
    (y * upstream).sum().backward()

    router = bank.groups["layer"]
    leaves = {"x": x, "bank_v": layer.bank_v, "logits": router.logits}
    truth = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    w = routing_weights(bank, truth["logits"], batch, 1.0)
    outputs = []
    for i, u in enumerate(batch.rows.tolist()):
        v = torch.cat([sum(w[u, h, s] * truth["bank_v"][h, s, 0] for s in range(5)) for h in range(heads)])
        outputs.append((truth["x"][i] @ base.weight.double().T + base.bias.double()) * v)
    expected = torch.stack(outputs)
    (expected * upstream.double()).sum().backward()

    close("y", y, expected, LIMITS[dtype])
    for name in truth:
        close(name, leaves[name].grad, truth[name].grad, LIMITS[dtype])


def test_ia3_starts_as_the_base_layer() -> None:
    base = nn.Linear(IN, OUT)
    model = OneLayer(base)
    x = torch.randn(2, LENGTH, IN)
    expected = base(x)
    mhr.attach(model, AdapterConfig(targets=["layer"], adapter="ia3", n_heads=4), TASKS)
    torch.testing.assert_close(model(x, task_ids=["rte", "copa"]), expected)


def test_inputs_may_have_any_number_of_dimensions() -> None:
    model, bank = one_layer(nn.Linear(IN, OUT).double(), n_heads=4)
    x = torch.randn(2, 3, 4, IN, dtype=torch.float64)
    deep = model(x, task_ids=["rte", "copa"])
    flat = torch.stack([model(row, task_ids=["rte"] * 12) for row in x[:1].reshape(1, 12, IN)])
    torch.testing.assert_close(deep[0].reshape(1, 12, OUT), flat)


@pytest.mark.parametrize(("init", "bound"), [("mhr", (1 / 3 / IN) ** 0.5), ("peft", (4 / IN) ** 0.5)])
def test_initial_values(init: str, bound: float) -> None:
    torch.manual_seed(0)
    model = OneLayer(nn.Linear(IN, OUT))
    bank = mhr.attach(model, AdapterConfig(targets=["layer"], n_heads=4, rank=16, init=init), TASKS)
    (layer,) = bank.layers.values()
    assert layer.bank_a.shape == (4, 8, IN // 4, 16)
    assert layer.bank_b.shape == (4, 8, 16, OUT // 4)
    assert 0.98 * bound < layer.bank_a.abs().max() <= bound
    assert abs(layer.bank_a.mean()) < 0.1 * bound
    assert not layer.bank_b.any()


def test_dropout_takes_elements_of_the_adapter_s_input_while_training() -> None:
    base = nn.Linear(IN, OUT).double()
    model, bank = one_layer(base, method="shared", rank=3, alpha=6.0, dropout=0.5)
    layer = bank.layers["layer"]
    x = torch.randn(2, LENGTH, IN, dtype=torch.float64)

    def expected(seen: Tensor) -> Tensor:
        return base(x) + 2.0 * (seen @ layer.bank_a[0, 0]) @ layer.bank_b[0, 0]

    model.train()
    torch.manual_seed(1)
    found = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, expected(nn.functional.dropout(x, 0.5)))
    torch.testing.assert_close(model.eval()(x), expected(x))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("share", ["none", "up", "down"])
def test_drawn_lora(share: str, kind: str, dtype: torch.dtype) -> None:
    """A and B are drawn apart from one another, and only what is drawn gets a gradient."""
    base = Conv1D(OUT, IN) if kind == "conv1d" else nn.Linear(IN, OUT)
    model, bank = one_layer(base.to(dtype), method="adamix", share=share, rank=3, alpha=2.0, n_skills=5)
    (layer,) = bank.layers.values()
    assert isinstance(layer, RoutedLinear)
    model.train()
    bank.seed_draws(7, 1)
    batch = bank.for_batch(["rte", "copa", "rte", "rte"])
    assert batch.draws is not None
    (a,), (b,) = batch.draws[0].tolist()
    assert a != b  # or the test would not tell them apart
    x = torch.randn(4, LENGTH, IN, dtype=dtype, requires_grad=True)
    upstream = torch.randn(4, LENGTH, OUT, dtype=dtype)
    y = model(x, task_ids=batch)
    (y * upstream).sum().backward()

    leaves = {"x": x, "bank_a": layer.bank_a, "bank_b": layer.bank_b}
    truth = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    matrix = base.weight.detach().double()
    frozen = truth["x"] @ (matrix if kind == "conv1d" else matrix.T) + base.bias.detach().double()
    expected = frozen + 2.0 / 3 * truth["x"] @ truth["bank_a"][0, a] @ truth["bank_b"][0, b]
    (expected * upstream.double()).sum().backward()
    close("y", y, expected, LIMITS[dtype])
    for name, leaf in leaves.items():
        close(name, leaf.grad, truth[name].grad, LIMITS[dtype])
