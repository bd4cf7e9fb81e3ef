"""AdapterFusion: outputs and every gradient against the equations in float64, for the adapters that it fuses; fusion that is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import load_adapter, load_checkpoint, read_adapter, save_adapter
from mhr.errors import ConfigError, DataError, MergeError
from mhr.experts import route_tokens
from mhr.merging import merge
from mhr.routing import FusionRouter
from mhr.runs import RunConfig, RunFolder
from mhr.training import pretrain
from tests.models import randomise

NAMES = ["boolq", "rte", "copa"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def adapted(adapter: str, **settings: Any) -> tuple[nn.Module, AdapterBank, FusionRouter]:
    torch.manual_seed(0)
    model = Layer().double()
    config = AdapterConfig(method="adapter-fusion", adapter=adapter, rank=4, targets=["layer"], **settings)
    bank = mhr.attach(model, config, NAMES)
    randomise(bank)
    (found,) = bank.groups.values()
    assert isinstance(found, FusionRouter)
    return model, bank, found


def update(bank: dict[str, Tensor], s: int, x: Tensor, h: Tensor, alpha: float) -> Tensor:
    """What adapter s makes of a token."""
    a, b = bank["bank_a"][0, s], bank["bank_b"][0, s]
    if "bias_a" not in bank:
        return alpha / 4 * (x @ a) @ b
    u = F.gelu(h @ a + bank["bias_a"][0, s, 0]) @ b + bank["bias_b"][0, s, 0]
    if "scale_b" not in bank:
        return u
    return (u - u.mean()) / (u.var(unbiased=False) + 1e-5).sqrt() * bank["scale_b"][0, s, 0] + bank["shift_b"][0, s, 0]


@pytest.mark.parametrize(
    ("adapter", "settings"), [("bottleneck", {}), ("bottleneck", {"norm": True}), ("lora", {"alpha": 3.0})]
)
def test_outputs_and_every_gradient_are_those_of_the_equations(adapter: str, settings: dict[str, Any]) -> None:
    model, bank, fusion = adapted(adapter, **settings)
    (layer,) = bank.layers.values()
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    rows = []
    for token in x.flatten(0, 1):
        h = layer.base(token)
        u = [update(layer.bank(), s, token, h, settings.get("alpha", 1.0)) for s in range(3)]
        p = torch.softmax(torch.stack([(h @ fusion.query) @ (one @ fusion.key) for one in u]), 0)
        rows.append(h + sum(p[s] * (u[s] @ fusion.value) for s in range(3)))
    stated, found = torch.stack(rows).view(4, 5, 10), model(x)
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    leaves = {"x": x, **layer.bank(), **dict(fusion.named_parameters())}
    assert {"query", "key", "value"} <= leaves.keys()
    upstream = torch.randn_like(stated)
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, stated))
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def test_it_begins_near_the_mean_of_the_adapters() -> None:
    model, bank, fusion = adapted("bottleneck")
    fusion.reset()
    (layer,) = bank.layers.values()
    x = torch.randn(7, 6, dtype=torch.float64)
    with torch.no_grad():
        h = layer.base(x)
        mean = layer.updates(x, h).mean(1)
        torch.testing.assert_close(model(x) - h, mean, rtol=0.1, atol=0.05)
        torch.testing.assert_close(fusion.value, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-4)


def test_it_is_stored_and_loaded_and_has_three_matrices_a_layer(tmp_path: Path) -> None:
    model, bank, fusion = adapted("bottleneck")
    assert sum(p.numel() for p in bank.router_parameters()) == 3 * 10 * 10
    save_adapter(model, tmp_path, base="tiny")
    torch.manual_seed(0)
    again = Layer().double()
    load_adapter(tmp_path, again)
    x = torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bottlenecks") / "run"


@pytest.fixture
def trained(folder: Path, settings: Callable[..., RunConfig]) -> RunFolder:
    if not folder.exists():
        pretrain(settings(method="private", adapter="bottleneck", steps=2, save_every=2), str(folder), progress=False)
    return RunFolder.open(folder)


def test_the_matrices_alone_are_trained_and_a_run_answers_by_them(trained: RunFolder, tmp_path: Path) -> None:
    run = route_tokens(
        trained.path, method="adapter-fusion", output=tmp_path / "run", steps=3, batch_size=4, lr=1e-2, progress=False
    )
    bank, before = read_adapter(run.adapter), read_adapter(trained.adapter)
    assert (bank.tasks, bank.config.adapter, bank.config.method) == (before.tasks, "bottleneck", "adapter-fusion")
    for name, tensor in before.tensors.items():
        if name.startswith("layers."):
            assert torch.equal(bank.tensors[name], tensor), name
    values = [t for name, t in bank.tensors.items() if name.endswith(".value")]
    assert len(values) == len(bank.layers)
    assert all((t - torch.eye(len(t))).abs().max() > 1e-3 for t in values)
    assert run.info["parameters"]["trained"] == 3 * sum(t.numel() for t in values)
    log = RunFolder(run.path / "gates" / bank.tasks[0], {})
    assert [record["step"] for record in log.metrics()][-1] == 3
    model, tokenizer = load_checkpoint(run.adapter)
    assert model.generate(**tokenizer("next first: abc", return_tensors="pt"), max_new_tokens=3).shape[0] == 1
    with pytest.raises(MergeError, match=r"routes each token by itself .*mhr merge RUN --each-task") as caught:
        merge(run.path, output=tmp_path / "merged", method="task", task=bank.tasks[0])
    assert "\n" not in str(caught.value)


def test_what_does_not_go_with_it_is_refused(trained: RunFolder, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"task": "other", "input": "a", "targets": "b", "split": "test"}\n')
    for settings, error, said in (
        ({"top_k": 3}, ConfigError, "top_k is 3, but with method 'adapter-fusion' tokens attend to all adapters"),
        ({"top_k": 2}, ConfigError, "top_k is 2, but with method 'adapter-fusion' tokens attend to all adapters"),
        ({"temperature": 2.0}, ConfigError, "temperature is 2.0, but with method 'adapter-fusion' tokens attend"),
        ({"tasks": str(rows)}, DataError, "has no training examples: name a collection that has, with --tasks"),
        ({"method": "arrow"}, MergeError, "is a bottleneck adapter: method 'arrow' chooses among LoRAs"),
    ):
        with pytest.raises(error, match=said) as caught:
            route_tokens(
                trained.path, output=tmp_path / "run", progress=False, **{"method": "adapter-fusion", **settings}
            )
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        ConfigError, match="adapter is 'ia3', but method 'adapter-fusion' routes each token over finished"
    ):
        AdapterConfig(method="adapter-fusion", adapter="ia3")
