"""Layers that read the same x compute together, as on CUDA, and alone wherever they do not."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterConfig
from mhr.layers import siblings, together
from mhr.layers.siblings import find_siblings
from tests.layers.test_together import IDS, TASKS, Counting, adapted, results
from tests.models import random_batch, randomise, tiny_model


@pytest.fixture(autouse=True)
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "wanted", lambda bank: True)


def alone(step: Callable[[], Any]) -> Any:
    """The same without anything that is shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "find_siblings", lambda names: [])
        return step()


def counted(step: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and how many calls several layers shared."""
    with Counting() as count:
        found = step()
    return found, count.calls["mhr::routed_linears_forward"]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], uncalled: bool = False) -> None:
    """With `uncalled`, layers that were not called may have zeros as their gradient, which they have not at all alone."""
    assert found.keys() == expected.keys() or (uncalled and found.keys() > expected.keys())
    assert not any(found[key].any() for key in found.keys() - expected.keys())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=lambda m, key=key: f"{key}: {m}")


def test_names() -> None:
    assert find_siblings(
        ("h.0.attn.q_proj", "h.0.attn.k_proj", "h.0.attn.v_proj", "h.0.attn.o_proj", "h.0.mlp.up_proj")
    ) == [("h.0.attn.q_proj", "h.0.attn.k_proj", "h.0.attn.v_proj")]
    cross = tuple(f"decoder.block.0.layer.1.EncDecAttention.{name}" for name in "qkvo")
    assert find_siblings(cross) == [cross[1:3]]
    assert find_siblings(("q", "v", "mlp.wi_0", "mlp.wi_1")) == [("q", "v"), ("mlp.wi_0", "mlp.wi_1")]
    assert find_siblings(("a.q_proj", "b.k_proj", "a.query")) == []


@pytest.mark.parametrize(
    ("name", "shared", "config"),
    [
        ("llama", 4, {}),  # two blocks of an attention and a gate
        ("llama", 4, {"granularity": "layer"}),
        ("llama", 4, {"method": "hydra", "share": "down"}),
        ("t5", 10, {}),  # the decoder's attend to the encoder too
        ("bart", 6, {"targets": ["q_proj", "k_proj", "v_proj"]}),
        ("bert", 2, {"targets": ["query", "value", "output.dense"]}),
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_layers_alone(name: str, shared: int, config: dict[str, Any]) -> None:
    config = {"targets": "all-linear", **config} if name in ("llama", "t5") else config
    model = adapted(name, **config)
    expected = alone(lambda: results(model))
    found, calls = counted(lambda: results(model))
    assert calls == shared
    assert not model.mhr.apart
    assert_same(found, expected)
    model.eval()
    assert_same(results(model), alone(lambda: results(model)))


class Block(nn.Module):
    """An attention's projections, called as `calls` says: names of layers, or functions of x that make another x."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, n, dtype=torch.float64) for n in (8, 4, 4))
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        outputs = []
        for call in self.calls:
            if callable(call):
                x = call(x)
            else:
                outputs.append(getattr(self, call)(x))
        return torch.cat(outputs, -1)


class Model(nn.Module):
    def __init__(self, *calls: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(list(calls))])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


def model_of(*calls: Any) -> Model:
    torch.manual_seed(0)
    model = Model(*calls)
    config = AdapterConfig(method="mhr", n_heads=2, rank=3, n_skills=4, targets=["q_proj", "k_proj", "v_proj"])
    randomise(mhr.attach(model, config, TASKS))
    for layer in model.mhr.layers.values():
        layer.doubtful = False
    return model


def step(model: Model) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, 5, 8, dtype=torch.float64, requires_grad=True)
    model.zero_grad()
    out = model(x, task_ids=IDS)
    out.square().sum().backward()
    return {
        "out": out.detach(),
        "x": x.grad,
        **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
    }


def other(x: Tensor) -> Tensor:
    return x + 1


def doubled(x: Tensor) -> Tensor:
    return x * 2


ALL = ("q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize(
    ("calls", "shared", "apart"),
    [
        (ALL, (1, 1), ()),
        (("v_proj", "q_proj", "k_proj"), (1, 1), ()),
        ((*ALL, *ALL), (2, 2), ()),  # twice with the same x
        (("q_proj", "k_proj", other, "v_proj"), (1, 1), ("v_proj",)),
        (("q_proj", other, "k_proj", "v_proj"), (1, 1), ("q_proj",)),  # as in an attention to another sequence
        (("q_proj", "k_proj"), (1, 1), ("v_proj",)),
        (("k_proj",), (1, 0), ("q_proj", "v_proj")),
        (("q_proj", "q_proj", "k_proj", "v_proj"), (1, 0), ("k_proj", "v_proj")),
        (("q_proj", doubled, "k_proj", doubled, "v_proj"), (1, 0), ("q_proj", "k_proj")),
    ],
)
def test_layers_that_come_with_another_x_or_not_at_all_compute_alone(
    calls: tuple[Any, ...], shared: tuple[int, int], apart: tuple[str, ...]
) -> None:
    model = model_of(*calls)
    expected = alone(lambda: step(model))
    first, n_first = counted(lambda: step(model))
    assert_same(first, expected, uncalled=True)
    assert n_first == shared[0]
    for _ in range(3):
        later, n_later = counted(lambda: step(model))
        assert_same(later, expected)
    assert n_later == shared[1], model.mhr.apart
    assert model.mhr.apart == {f"layers.0.{name}" for name in apart}
    assert model.mhr.state.shared is None


def test_x_that_is_changed_in_place_between_two_layers() -> None:
    def add_one(x: Tensor) -> Tensor:
        return x.add_(1)

    model = model_of("q_proj", add_one, "k_proj", "v_proj").requires_grad_(False)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    expected = alone(lambda: model(x, task_ids=IDS))
    torch.testing.assert_close(model(x, task_ids=IDS), expected)
    assert model.mhr.apart


def test_nothing_stays_after_an_exception() -> None:
    def fail(x: Tensor) -> Tensor:
        raise ValueError("between")

    model = model_of(*ALL)
    expected = step(model)
    block = model.layers[0]
    block.calls = ["q_proj", fail, "k_proj", "v_proj"]
    with pytest.raises(ValueError, match="between"):
        step(model)
    assert model.mhr.state.shared is None
    assert not model.mhr.apart, "an exception says nothing about what the layers read"
    block.calls = list(ALL)
    found, calls = counted(lambda: step(model))
    assert calls == 1
    assert_same(found, expected)


def test_gradients_are_switched_off_between_two_layers() -> None:
    model = model_of(*ALL)
    block = model.layers[0]
    x = torch.randn(4, 5, 8, dtype=torch.float64)

    def forward(x: Tensor) -> Tensor:
        q = block.q_proj(x)
        with torch.no_grad():
            k = block.k_proj(x)
        assert q.requires_grad
        assert not k.requires_grad
        return q

    block.forward = forward
    model(x, task_ids=IDS)


def test_hooks_on_a_layer_see_its_own_input_and_output() -> None:
    model = model_of(*ALL)
    expected = step(model)
    k = model.layers[0].k_proj
    seen: list[Tensor] = []
    handle = k.register_forward_hook(lambda layer, args, output: seen.append(output))
    assert_same(step(model), expected)
    assert seen[0].shape[-1] == 4
    handle.remove()
    handle = k.register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    moved = step(model)
    handle.remove()
    model.mhr.apart.clear()
    handle = k.register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    assert_same(moved, alone(lambda: step(model)))
    handle.remove()
    model.mhr.apart.clear()
    handle = k.base.register_forward_hook(lambda layer, args, output: output * 2)  # no plain Linear any more
    assert_same(step(model), alone(lambda: step(model)))
    handle.remove()


def test_a_copy_shares_with_its_own_layers() -> None:
    model = model_of(*ALL)
    expected = step(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.layers[0].k_proj.base.weight.zero_()
    found, calls = counted(lambda: step(twin))
    assert calls == 1
    assert not torch.equal(found["out"], expected["out"])
    assert_same(step(model), expected)


def test_threads_do_not_take_each_others_outputs() -> None:
    """Two threads in one call of a model: what the one waits for is not the other's."""
    model = model_of(*ALL)
    block = model.layers[0]
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    found: dict[str, Tensor] = {}

    def forward(x: Tensor) -> Tensor:
        q = block.q_proj(x)
        thread = threading.Thread(target=lambda: found.update(k=block.k_proj(x)))
        thread.start()
        thread.join()
        return torch.cat([q, found["k"], block.k_proj(x), block.v_proj(x)], -1)

    block.forward = forward
    out = model(x, task_ids=IDS)
    assert not model.mhr.apart
    torch.testing.assert_close(out[..., 8:12], out[..., 12:16])
    assert found["k"].grad_fn.name() != "RoutedLinears"


def test_inference_mode_computes_alone() -> None:
    model = model_of(*ALL)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    expected = model(x, task_ids=IDS)
    with torch.inference_mode():
        found, calls = counted(lambda: model(x.clone(), task_ids=IDS))
    assert calls == 0
    torch.testing.assert_close(found, expected.detach())


def test_autocast_and_dropout() -> None:
    model = adapted("llama", torch.float32)
    batch = random_batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        found, calls = counted(lambda: model(**batch, task_ids=IDS)[0])
        expected = alone(lambda: model(**batch, task_ids=IDS)[0])
    assert calls == 4 // (1 if any("gate" in n for n in model.mhr.layers) else 2)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    dropped = adapted("llama", dropout=0.5)
    assert counted(lambda: results(dropped))[1] == 0, "each layer has a mask of its own"
    assert counted(lambda: results(dropped.eval()))[1] > 0


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_generation_with_a_cache(name: str) -> None:
    model = adapted(name).eval()
    batch = random_batch(model)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch.get("attention_mask"), "max_new_tokens": 4}
    found, calls = counted(lambda: model.generate(**inputs, task_ids=IDS))
    assert calls
    assert torch.equal(found, alone(lambda: model.generate(**inputs, task_ids=IDS)))
    assert not model.mhr.apart


def test_disabled_layers_are_their_base() -> None:
    model = model_of(*ALL)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    with mhr.disabled(model):
        found, calls = counted(lambda: model(x, task_ids=IDS))
    assert calls == 0
    block = model.layers[0]
    assert torch.equal(found, torch.cat([layer.base(x) for layer in (block.q_proj, block.k_proj, block.v_proj)], -1))


def test_two_calls_before_one_backward_pass() -> None:
    model = tiny_model("llama").double().train()
    randomise(mhr.attach(model, AdapterConfig(n_heads=4), TASKS))
    batch = random_batch(model)

    def both() -> dict[str, Tensor]:
        model.zero_grad()
        loss = model(**batch, task_ids=IDS)[0].square().sum() + 2 * model(**batch, task_ids=IDS[::-1])[0].square().sum()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    assert_same(both(), alone(both))


def test_a_compiled_block_inside_a_model_computes_its_layers_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(*ALL)
    expected = step(model)

    def refuse(*_: Any, **__: Any) -> list[Tensor]:
        raise AssertionError("layers computed together")

    monkeypatch.setattr(siblings, "routed_linears", refuse)
    model.layers[0].compile(backend="eager", fullgraph=True)
    assert_same(step(model), expected)
