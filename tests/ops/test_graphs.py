"""What a caller may do with the launches: hold them in a CUDA graph, backward passes and whole training steps among them, or
make them on a stream of its own.

On the CPU, where there is neither, the same functions are called: so much of these tests does not wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import mhr
from mhr.ops import (
    mix,
    route,
    route_all,
    routed_adapter,
    routed_bottleneck,
    routed_linear,
    routed_linears,
    weighted_average,
)

Inputs = dict[str, Tensor]
BUSY = 50_000_000  # cycles, some 25 ms: what does not wait for its stream comes too early

WHOLE = (
    {"rows": [2, 0, 2], "tasks": [2, -1, 0], "offsets": [0, 40, 40, 96]},
    {"rows": [1, 1, 0], "tasks": [1, 0, 2], "offsets": [0, 7, 90, 96]},
)


@dataclass(frozen=True)
class Op:
    """An op as a function of tensors that keep their place in memory, those in float with a gradient."""

    call: Callable[..., Tensor | list[Tensor]]
    shapes: dict[str, tuple[int, ...]]
    integers: tuple[str, ...] = ()
    differentiable: bool = True

    def inputs(self, device: str, seed: int) -> Inputs:
        """With another seed, other values everywhere, integers too."""
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = {
            name: torch.randn(shape, generator=generator, device="cpu").to(device)
            for name, shape in self.shapes.items()
        }
        whole = WHOLE[seed != 0]
        return drawn | {name: torch.tensor(whole[name], device=device) for name in self.integers}

    def run(self, inputs: Inputs) -> list[Tensor]:
        """Outputs, and the gradient of their sum of squares in every float input."""
        leaves = [t.requires_grad_(self.differentiable) for t in inputs.values() if t.is_floating_point()]
        found = self.call(**inputs)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        if not self.differentiable:
            return outputs
        total = torch.stack([output.square().sum() for output in outputs]).sum()
        return [*(output.detach() for output in outputs), *torch.autograd.grad(total, leaves)]


FACTORS = {"A": (3, 64, 5), "B": (3, 5, 48)}
BANKS = {"bank_a": (4, 3, 16, 5), "bank_b": (4, 3, 5, 16), "weights": (3, 4, 3)}
OPS = {
    "mix": Op(
        lambda one, other, weights: mix([one, other], [weights, weights], [1, 2]),
        {"one": (4, 3, 16, 5), "other": (4, 3, 5, 12), "weights": (3, 4, 3)},
    ),
    "mix, side by side": Op(
        lambda one, other, weights: mix([one, other], [weights, weights], [1, 1], runs=[2]),
        {"one": (4, 3, 16, 5), "other": (4, 3, 16, 2), "weights": (3, 4, 3)},
    ),
    "route": Op(lambda logits, tasks: route(logits, tasks, None, 0.7), {"logits": (3, 4, 6)}, ("tasks",)),
    "route_all": Op(
        lambda one, other, tasks: route_all([one, other], tasks), {"one": (3, 4, 6), "other": (3, 4, 6)}, ("tasks",)
    ),
    "routed_adapter": Op(
        lambda y, x, A, B, rows: routed_adapter(y * 1, x, A, B, rows, 0.7),
        {"y": (96, 48), "x": (96, 64), **FACTORS},
        ("rows",),
    ),
    "routed_adapter, ragged": Op(
        lambda y, x, A, B, rows, offsets: routed_adapter(y * 1, x, A, B, rows, 0.7, offsets=offsets),
        {"y": (96, 48), "x": (96, 64), **FACTORS},
        ("rows", "offsets"),
    ),
    "routed_linear": Op(
        lambda x, weight, bank_a, bank_b, weights, rows: (
            routed_linear(x, weight.detach(), None, bank_a, bank_b, weights, rows, 0.7) + 0 * weight.sum()
        ),
        {"x": (3, 32, 64), "weight": (64, 64), **BANKS},
        ("rows",),
    ),
    "routed_linears": Op(
        lambda x, weight, A, B, other, rows: [
            y + 0 * weight.sum()
            for y in routed_linears(x, [weight.detach()[:48], weight.detach()], [None] * 2, A, [B, other], rows, 0.7)
        ],
        {"x": (3, 32, 64), "weight": (64, 64), **FACTORS, "A": (3, 64, 8), "other": (3, 3, 64)},
        ("rows",),
    ),
    "routed_bottleneck": Op(
        lambda x, bank_a, bias_a, bank_b, bias_b, weights, rows: routed_bottleneck(
            x, bank_a, bias_a, bank_b, bias_b, weights, rows
        ),
        {"x": (3, 32, 64), **BANKS, "bias_a": (4, 3, 1, 5), "bias_b": (4, 3, 1, 16)},
        ("rows",),
    ),
    "weighted_average": Op(
        lambda one, other: weighted_average([one, other], [0.25, 0.75]),
        {"one": (1000,), "other": (1000,)},
        differentiable=False,
    ),
}


def captured(device: str, function: Callable[[], Any]) -> Callable[[], Any]:
    """A call of the function as a graph, whose replay gives what the call gave, in the same memory."""
    if device == "cpu":
        return function
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function()

    def replay() -> Any:
        graph.replay()
        torch.cuda.synchronize()
        return found

    return replay


def overwrite(inputs: Inputs, values: Inputs) -> None:
    with torch.no_grad():
        for name, tensor in inputs.items():
            tensor.copy_(values[name])


@pytest.mark.parametrize("name", OPS)
def test_a_graph_replays_forward_and_backward_on_new_values(name: str, device: str) -> None:
    op = OPS[name]
    inputs = op.inputs(device, seed=0)
    replay = captured(device, lambda: op.run(inputs))
    first = [tensor.clone() for tensor in replay()]
    for seed in (1, 0):
        overwrite(inputs, op.inputs(device, seed))
        found = [tensor.clone() for tensor in replay()]
        expected = op.run(op.inputs(device, seed))
        assert len(found) == len(expected)
        torch.testing.assert_close(found, expected)
        assert seed == 0 or not torch.equal(found[0], first[0])


@pytest.mark.parametrize("name", OPS)
def test_launches_wait_for_the_current_stream(name: str, device: str) -> None:
    op = OPS[name]
    values = op.inputs(device, seed=1)
    expected = op.run(op.inputs(device, seed=1))
    inputs = op.inputs(device, seed=0)
    if device == "cpu":
        overwrite(inputs, values)
        found = op.run(inputs)
    else:
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(BUSY)
            overwrite(inputs, values)
            found = op.run(inputs)
        stream.synchronize()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_a_graph_holds_a_whole_training_step(architecture: str, device: str) -> None:
    """Routing, forward, backward and the optimizer's step, on batches that are copied into their place."""
    pytest.importorskip("transformers")
    from tests.models import tiny_model

    def prepared(of: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, Inputs, Any]:
        torch.manual_seed(0)
        model = tiny_model(architecture, attn_implementation="eager").to(device).train()
        bank = mhr.attach(model, mhr.AdapterConfig(rank=3, n_heads=4, n_skills=3), ["one", "two"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    generator = torch.Generator("cpu").manual_seed(len(name))
                    drawn = torch.randn(parameter.shape, generator=generator, device="cpu")
                    parameter.copy_(0.1 * drawn)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2, capturable=device == "cuda")
        generator = torch.Generator("cpu").manual_seed(of)
        inputs = {
            name: torch.randint(2, 60, (4, 8), generator=generator, device="cpu").to(device)
            for name in ("input_ids", "labels")
        }
        return model, optimizer, inputs, bank.for_batch(["one", "two", "two", "one"])

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs, batch: Any) -> Tensor:
        loss = model(**inputs, task_ids=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    batches = [prepared(of)[2] for of in range(3)]
    model, optimizer, inputs, batch = prepared(0)
    expected = [step(model, optimizer, values, batch) for values in (batches[0], *batches)]
    other, optimizer, inputs, batch = prepared(0)
    # The call before the capture is a step too, on the first batch; on the CPU it is made here.
    if device == "cpu":
        step(other, optimizer, inputs, batch)
    replay = captured(device, lambda: step(other, optimizer, inputs, batch))
    for values, loss in zip(batches, expected[1:], strict=True):
        overwrite(inputs, values)
        torch.testing.assert_close(replay(), loss)
    assert not torch.equal(expected[0], expected[1])
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two, one, msg=name)
