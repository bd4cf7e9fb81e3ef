"""Base layers that are no plain nn.Linear, and base layers of other dtypes than the bank's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.errors import TargetError
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
TARGETS = ["q_proj", "v_proj"]


class Int8Linear(nn.Module):
    """As quantised layers are: integers and a scale in buffers, and a forward pass of its own."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def dequantised(self) -> Tensor:
        return self.codes * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantised().to(x.dtype))


def quantise(model: nn.Module, plain: bool) -> None:
    """Replace the target layers by int8 ones, or by plain ones that hold the same rounded weights."""
    for name, module in list(model.named_modules()):
        if name.endswith(tuple(TARGETS)):
            layer = Int8Linear(module)
            if plain:
                with torch.no_grad():
                    module.weight.copy_(layer.dequantised())
            else:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer)


def adapted(model: nn.Module, **config: Any) -> AdapterBank:
    bank = mhr.attach(model, AdapterConfig(**{"n_heads": 4, "targets": TARGETS, **config}), TASKS)
    randomise(bank)
    return bank


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_a_quantised_layer_agrees_with_a_plain_one(adapter: str) -> None:
    models = [tiny_model("llama"), tiny_model("llama")]
    for model, plain in zip(models, (True, False), strict=True):
        quantise(model, plain)
    banks = [adapted(model, adapter=adapter) for model in models]
    outputs = [model(**random_batch(model), task_ids=IDS) for model in models]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits)
    for out in outputs:
        out.loss.backward()
    assert [p.dtype for p in banks[1].adapter_parameters()] == [p.dtype for p in banks[0].adapter_parameters()]
    own = [[*bank.adapter_parameters(), *bank.router_parameters()] for bank in banks]
    for p, q in zip(*own, strict=True):
        assert p.grad.any()
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6)


def test_a_layer_with_hooks_or_a_forward_of_its_own_is_called() -> None:
    inputs = random_batch(tiny_model("llama"))
    truth = tiny_model("llama")
    adapted(truth)
    expected = truth(**inputs, task_ids=IDS).logits

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * 2

    calls = []
    for how in ("hook", "forward", "parametrised"):
        model = tiny_model("llama")
        base = model.get_submodule("model.layers.0.self_attn.q_proj")
        if how == "hook":
            base.register_forward_hook(lambda *_: calls.append(1))
        elif how == "forward":
            forward = base.forward
            base.forward = lambda x, forward=forward: (calls.append(1), forward(x))[1]
        else:
            nn.utils.parametrize.register_parametrization(base, "weight", Seen(calls), unsafe=True)
        adapted(model)
        calls.clear()
        torch.testing.assert_close(model(**inputs, task_ids=IDS).logits, expected)
        assert calls, how


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_hook_keeps_what_the_base_gave(grad: bool, bias: bool) -> None:
    """What a hook was given must not change behind its back."""
    model = tiny_model("llama", attention_bias=bias)
    base = model.get_submodule("model.layers.0.self_attn.q_proj")
    kept: list[tuple[Tensor, Tensor]] = []
    base.register_forward_hook(lambda module, args, output: kept.append((output, output.detach().clone())))
    adapted(model)
    with torch.set_grad_enabled(grad):
        model(**random_batch(model), task_ids=IDS)
    ((output, given),) = kept
    assert torch.equal(output, given)


class Seen(nn.Module):
    def __init__(self, calls: list[int]):
        super().__init__()
        self.calls = calls

    def forward(self, weight: Tensor) -> Tensor:
        self.calls.append(1)
        return weight


def test_a_layer_that_is_called_keeps_its_gradients() -> None:
    """A trained base under the foreign path: what comes through it is differentiated by its own rules."""
    gradients = []
    for hooked in (False, True):
        model = tiny_model("llama").double()
        adapted(model)
        base = model.get_submodule("model.layers.1.self_attn.v_proj").base
        base.weight.requires_grad_(True)
        if hooked:
            base.register_forward_hook(lambda *_: None)
        model(**random_batch(model), task_ids=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["t5", "gpt2"])
@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_a_bfloat16_base_with_a_float32_bank(name: str, adapter: str) -> None:
    truth, model = tiny_model(name), tiny_model(name)
    model.to(torch.bfloat16)
    truth.load_state_dict(model.state_dict())  # the rounded weights
    losses, banks = [], []
    for m in (truth, model):
        banks.append(adapted(m, adapter=adapter, targets=None))
        out = m(**random_batch(m), task_ids=IDS)
        out.loss.backward()
        losses.append(out.loss.float())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0.02)
    for p, q in zip(banks[0].adapter_parameters(), banks[1].adapter_parameters(), strict=True):
        assert q.dtype == q.grad.dtype == torch.float32
        assert (q.grad - p.grad).norm() < 0.1 * p.grad.norm()


@pytest.mark.parametrize("name", ["t5", "gpt2"])
@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_autocast(name: str, adapter: str) -> None:
    model = tiny_model(name)
    bank = adapted(model, adapter=adapter, targets=None)
    inputs = random_batch(model)
    expected = model(**inputs, task_ids=IDS)
    expected.loss.backward()
    truth = [p.grad.clone() for p in bank.adapter_parameters()]
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**inputs, task_ids=IDS)
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    torch.testing.assert_close(out.loss.float(), expected.loss, rtol=0.02, atol=0.02)
    for p, t in zip(bank.adapter_parameters(), truth, strict=True):
        assert p.grad.dtype == torch.float32
        assert (p.grad - t).norm() < 0.1 * t.norm()


def test_a_layer_that_is_no_linear_is_refused() -> None:
    with pytest.raises(TargetError, match="which is no Linear layer"):
        mhr.attach(tiny_model("llama"), AdapterConfig(targets=["embed_tokens"]), TASKS)
