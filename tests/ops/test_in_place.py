"""What ops that write into a tensor owe to others who hold it: inputs that share its memory, and nodes of autograd that kept it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mhr.ops import mix, route, routed_adapter, routed_linear, token_routed_adapter, weighted_average
from tests.helpers import assert_close

N, D = 6, 8

# Of a tensor [2 N, D] what is written and what is read.
SHARED: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "the same tensor": lambda t: (t,) * 2,
    "a view of all": lambda t: (t, t.view(2, N, D).flatten(0, 1)),
    "rows before": lambda t: (t[N // 2 : N + N // 2], t[:N]),
    "rows behind": lambda t: (t[:N], t[N // 2 : N + N // 2]),
    "other rows": lambda t: (t[:N], t[N:]),
    "transposed": lambda t: (t[:D], t[:D].T),
}


def factors() -> tuple[Tensor, Tensor]:
    return torch.randn(3, D, 2), torch.randn(3, 2, D)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("how", SHARED)
def test_an_adapter_reads_x_as_it_was_before_y_was_written(how: str, activation: str) -> None:
    memory, (A, B), rows = torch.randn(2 * N, D), factors(), torch.tensor([2, 0])

    def run(apart: bool) -> dict[str, Tensor]:
        y, x = SHARED[how](memory.clone())
        a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
        out = routed_adapter(y, x.clone() if apart else x, a, b, rows, 0.7, activation=activation)
        upstream = torch.linspace(-1, 1, out.numel()).view(out.shape)
        return dict(zip(("out", "dA", "dB"), (out, *torch.autograd.grad((out * upstream).sum(), (a, b))), strict=True))

    assert_close(run(apart=False), run(apart=True), torch.float32)


def test_a_compiled_adapter_keeps_x_as_it_was_where_it_is_y(backend: str) -> None:
    (A, B), rows = factors(), torch.tensor([2, 0])

    def gradient(adapter: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        y, a = torch.linspace(-1, 1, N * D).view(N, D), A.clone().requires_grad_()
        out = adapter(y, y, a)
        return out.detach(), torch.autograd.grad(out.square().sum(), a)[0]

    def adapter(y: Tensor, x: Tensor, a: Tensor) -> Tensor:
        return routed_adapter(y, x, a, B, rows) * 1

    torch.testing.assert_close(gradient(torch.compile(adapter, fullgraph=True, backend=backend)), gradient(adapter))


@pytest.mark.parametrize("how", SHARED)
def test_a_choice_by_token_reads_x_as_it_was_before_y_was_written(how: str) -> None:
    memory, (A, B), directions = torch.randn(2 * N, D), factors(), torch.randn(3, D)

    def run(apart: bool) -> Tensor:
        y, x = SHARED[how](memory.clone())
        return token_routed_adapter(y, x.clone() if apart else x, directions, A, B, top_k=3)

    assert_close({"out": run(apart=False)}, {"out": run(apart=True)}, torch.float32)


@pytest.mark.parametrize("how", SHARED)
def test_an_average_reads_its_tensors_as_they_were_before_the_output_was_written(how: str) -> None:
    memory = torch.randn(2 * N, D)

    def run(apart: bool) -> Tensor:
        out, one = SHARED[how](memory.clone())
        return weighted_average([one.clone() if apart else one, torch.ones_like(one)], [0.5, 0.25], out)

    assert torch.equal(run(apart=False), run(apart=True))


WRITERS: dict[str, Callable[[Tensor], object]] = {
    "routed_adapter": lambda y: routed_adapter(y, torch.ones(N, D), *factors(), torch.tensor([0])),
    "token_routed_adapter": lambda y: token_routed_adapter(y, torch.ones(N, D), torch.randn(3, D), *factors(), top_k=1),
    "weighted_average": lambda y: weighted_average([torch.ones(N, D)], [0.5], y),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_tensor_that_autograd_kept_counts_as_changed(name: str) -> None:
    x = torch.randn(N, D, requires_grad=True)
    y = x.detach().clone()
    kept = (x * y).sum()
    WRITERS[name](y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_what_has_no_gradient_is_refused_where_one_is_asked_for() -> None:
    given = {"y": torch.zeros(N, D), "x": torch.randn(N, D), "directions": torch.randn(3, D)}
    given |= dict(zip("AB", factors(), strict=True))
    for name in given:
        asked = given | {name: given[name].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=f"mhr::token_routed_adapter has no gradient, and {name} asks for one"):
            token_routed_adapter(**asked, top_k=1)
        with torch.no_grad():
            token_routed_adapter(**{n: t.clone() for n, t in asked.items()}, top_k=1)


def closed(how: str) -> tuple[Tensor, Tensor]:
    """A tensor and a y in it that autograd lets no op change in place."""
    if how == "leaf":
        y = torch.randn(N, D, requires_grad=True)
        return y, y
    if how == "view of a leaf":
        base = torch.randn(2 * N, D, requires_grad=True)
        return base, base[:N]
    base = torch.randn(N, 2 * D, requires_grad=True) * 1
    return base, base.chunk(2, -1)[0]


@pytest.mark.parametrize("how", ["leaf", "view of a leaf", "one of several views"])
def test_what_may_not_be_changed_is_refused_before_it_is(how: str) -> None:
    """As torch's own ops do, so that who catches the error has the tensor that there was."""
    base, y = closed(how)
    before = base.detach().clone()
    with pytest.raises(RuntimeError, match=r"in.?place"):
        y.add_(1)
    with pytest.raises(RuntimeError, match=r"^mhr::routed_adapter: y is .*: give y.clone\(\)$"):
        routed_adapter(y, torch.randn(N, D), *factors(), torch.tensor([2, 0]))
    assert torch.equal(base, before)
    with torch.no_grad():
        routed_adapter(y, torch.randn(N, D), *factors(), torch.tensor([2, 0]))
    assert not torch.equal(base, before)


OPS: dict[str, Callable[[Tensor], Any]] = {
    "routed_adapter": lambda A: routed_adapter(
        torch.zeros(N, D), torch.ones(N, D), A, factors()[1], torch.tensor([2, 0])
    ),
    "routed_linear": lambda A: routed_linear(
        torch.ones(N, D), torch.ones(D, D), None, A, factors()[1], None, torch.tensor([2, 0])
    ),
    "mix": lambda A: mix([A[None]], [torch.ones(1, 1, 3)], [1]),
    "weighted_average": lambda A: weighted_average([torch.ones(A.shape), A], [0.5, 0.5]),
    "weighted_average out": lambda A: weighted_average([A], [1.0], out=torch.ones(A.shape).mT.contiguous().mT),
    "route": lambda A: route(A, torch.tensor([0])),
}


@pytest.mark.parametrize("op", OPS)
def test_a_tensor_that_was_never_materialised_is_refused(op: str) -> None:
    """The dispatcher would take it for a question about shapes, and leave what is beside it as it was."""
    with pytest.raises(RuntimeError, match="must be on"):
        OPS[op](torch.empty(3, D, 2, device="meta"))


def test_an_output_that_is_not_contiguous_is_checked_as_one_that_is() -> None:
    out = torch.ones(4, 3).T
    for tensor in (torch.ones(1, 4), torch.ones(4), torch.ones(3, 4, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="tensors.0. must be torch.float32 of shape"):
            weighted_average([tensor], [0.5], out=out)
    assert torch.equal(out, torch.ones(3, 4))
