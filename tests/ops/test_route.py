from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mhr.ops import route
from tests.helpers import DTYPES, assert_close
from tests.ops.cases import double, values, with_gradients

# T, H, S
SHAPES = ((1, 1, 2), (5, 3, 8), (4, 8, 17))


def formula(logits: Tensor, tasks: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    z = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)[tasks.clamp(min=0)]
    p = torch.sigmoid((z if noise is None else z + noise) / temperature)
    w = p / (p.sum(-1, keepdim=True) + 1e-12)
    return torch.where((tasks >= 0)[:, None, None], w, 1 / logits.shape[-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("noisy", "temperature"), [(False, 1.0), (True, 1.0), (True, 0.5)])
def test_accuracy(noisy: bool, temperature: float, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tasks = torch.tensor([0, shape[0] - 1, 0, -1, shape[0] // 2])
    noise = torch.logit(torch.rand(len(tasks), *shape[1:], dtype=torch.float64)).to(torch.float32) if noisy else None
    given = {"logits": values(*shape, dtype=dtype)}
    exact = None if noise is None else noise.double()
    found = with_gradients(lambda logits: route(logits, tasks, noise, temperature), given)
    truth = with_gradients(lambda logits: formula(logits, tasks, exact, temperature), double(given))
    assert_close(found, truth, dtype)


def test_unseen_tasks_are_uniform_and_get_no_gradient() -> None:
    logits = torch.randn(3, 2, 4, requires_grad=True)
    w = route(logits, torch.tensor([-1, -1]))
    assert torch.equal(w, torch.full((2, 2, 4), 0.25))
    w.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()
    assert torch.equal(route(logits[:0], torch.tensor([-1])), torch.full((1, 2, 4), 0.25))


def test_a_single_skill_has_weight_one_and_nothing_to_learn() -> None:
    logits = torch.randn(2, 3, 1, requires_grad=True)
    w = route(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(w, torch.ones(2, 3, 1))
    w.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


def test_hopeless_logits_stay_finite() -> None:
    logits = torch.full((1, 1, 4), -200.0, requires_grad=True)
    w = route(logits, torch.tensor([0]))
    assert torch.isfinite(w).all()
    w.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_gradcheck() -> None:
    logits = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(3, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: route(z, torch.tensor([3, -1, 3]), noise, 0.5), (logits,))


def test_opcheck() -> None:
    logits, tasks = torch.randn(4, 2, 3), torch.tensor([3, -1, 3])
    torch.library.opcheck(torch.ops.mhr.route.default, (logits, tasks, torch.randn(3, 2, 3), 0.5))
    torch.library.opcheck(torch.ops.mhr.route_backward.default, (torch.randn(3, 2, 3), logits, tasks, None, 1.0))


def test_compiles_without_graph_breaks(backend: str) -> None:
    tasks = torch.tensor([3, -1, 3])
    compiled = torch.compile(lambda logits: route(logits * 2, tasks), fullgraph=True, backend=backend)
    given = {"logits": torch.randn(4, 2, 3)}
    assert_close(
        with_gradients(compiled, given), with_gradients(lambda logits: route(logits * 2, tasks), given), torch.float32
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.randn(3, 4), torch.tensor([0])), r"logits must have shape \(T, H, S\)"),
        ((torch.randn(3, 2, 4), torch.tensor([3])), "tasks must be below T = 3, got 3"),
        ((torch.randn(3, 2, 4), torch.tensor([0]), torch.randn(2, 2, 4)), "noise must have shape"),
        ((torch.randn(3, 2, 4), torch.tensor([0]), None, 0.0), "temperature must be positive"),
    ],
)
def test_refuses_what_does_not_fit(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        route(*arguments)  # type: ignore[arg-type]


def test_refuses_vmap() -> None:
    with pytest.raises(RuntimeError, match="mhr::route does not support torch.func"):
        torch.func.vmap(lambda t: route(t, torch.tensor([0])))(torch.randn(2, 3, 2, 4))
