from __future__ import annotations

import pytest
import torch

from mhr.ops import mix, native
from mhr.ops.checks import accumulator
from tests.helpers import DTYPES, assert_close
from tests.ops.cases import double, mix_formula, values, with_gradients

# H, S, P, Q, U, head_dim
SHAPES = (
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 4, 3, 1),
    (2, 3, 4, 5, 3, 2),
    (4, 8, 65, 7, 6, 1),
    (3, 2, 16, 129, 1, 2),
    (8, 4, 1, 33, 9, 2),
    (1, 2, 700, 16, 2, 1),
    (2, 3, 4, 5, 0, 1),
)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    n_heads, n_skills, p, q, n_rows, _ = shape
    return {
        "bank": values(n_heads, n_skills, p, q, dtype=dtype),
        "weights": values(n_rows, n_heads, n_skills, dtype=accumulator(dtype)),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given, head_dim = inputs(shape, dtype), shape[5]
    found = with_gradients(lambda bank, weights: mix([bank], [weights], [head_dim]), given)
    truth = with_gradients(lambda bank, weights: mix_formula(bank, weights, head_dim), double(given))
    same = with_gradients(lambda bank, weights: mix_formula(bank, weights, head_dim), given)
    assert_close(found, truth, dtype, same)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_accuracy_of_other_output_dtypes(out_dtype: torch.dtype) -> None:
    given = inputs(SHAPES[3], torch.bfloat16)
    found = with_gradients(lambda bank, weights: mix([bank], [weights], [1], out_dtype), given)
    truth = with_gradients(lambda bank, weights: mix_formula(bank, weights, 1), double(given))
    assert found["out0"].dtype == out_dtype
    assert_close(found, truth, torch.bfloat16)


def test_a_list_of_different_banks_equals_one_at_a_time() -> None:
    sets = [inputs(shape, torch.float32) for shape in SHAPES[:6]]
    dims = [shape[5] for shape in SHAPES[:6]]
    together = mix([s["bank"] for s in sets], [s["weights"] for s in sets], dims)
    for one, given, head_dim in zip(together, sets, dims, strict=True):
        torch.testing.assert_close(one, mix([given["bank"]], [given["weights"]], [head_dim])[0], rtol=0, atol=0)


def test_no_banks_give_no_factors() -> None:
    assert mix([], [], []) == []


def test_weights_that_banks_share_get_the_sum_and_factors_without_use_nothing() -> None:
    weights, other = (torch.rand(4, 2, 3, requires_grad=True) for _ in range(2))
    banks = [torch.randn(2, 3, p, 6, requires_grad=True) for p in (5, 1, 700, 4, 3)]
    given = [weights, other, weights, weights, other]
    mixed = mix(banks, given, [1, 2, 1, 2, 1])
    upstream = [torch.randn_like(m) for m in mixed]
    used = (0, 2, 3)
    torch.autograd.backward([mixed[i] for i in used], [upstream[i] for i in used])
    alone = [
        torch.autograd.grad(mix([banks[i]], [weights], [(1, 2, 1, 2)[i]]), (banks[i], weights), upstream[i])
        for i in used
    ]
    for i, (d_bank, _) in zip(used, alone, strict=True):
        assert torch.equal(banks[i].grad, d_bank)
    torch.testing.assert_close(weights.grad, sum(d for _, d in alone))
    assert other.grad is None
    assert banks[1].grad is None
    assert banks[4].grad is None


def test_non_contiguous_inputs() -> None:
    bank, weights = torch.randn(3, 5, 4, 2).transpose(0, 2), torch.rand(5, 4, 6).permute(2, 1, 0)
    torch.testing.assert_close(mix([bank], [weights], [1])[0], mix_formula(bank, weights, 1))


def test_only_what_requires_a_gradient_gets_one() -> None:
    bank, weights = torch.randn(2, 3, 4, 5), torch.rand(2, 2, 3, requires_grad=True)
    mix([bank], [weights], [1])[0].sum().backward()
    assert weights.grad is not None
    assert bank.grad is None


def test_gradcheck() -> None:
    given = [inputs(shape, torch.float64) for shape in (SHAPES[1], SHAPES[2])]
    leaves = [t.requires_grad_() for s in given for t in (s["bank"], s["weights"])]
    assert torch.autograd.gradcheck(lambda a, v, b, w: tuple(mix([a, b], [v, w], [1, 2])), leaves)


def test_opcheck() -> None:
    given = inputs(SHAPES[1], torch.float32)
    args = ([given["bank"]], [given["weights"]], [1], torch.bfloat16)
    torch.library.opcheck(torch.ops.mhr.mix.default, args)
    grads = torch.ops.mhr.mix(*args)
    torch.library.opcheck(torch.ops.mhr.mix_backward.default, (grads, args[0], args[1], [0], [1], True, True))


def test_compiles_without_graph_breaks(backend: str) -> None:
    given = inputs(SHAPES[1], torch.float32)

    def function(bank: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return mix([bank * 2], [weights], [1])[0].square()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_close(with_gradients(compiled, given), with_gradients(function, given), torch.float32)


@pytest.mark.parametrize(
    ("weights", "head_dims", "message"),
    [
        (torch.rand(4, 3, 3), [1], r"weights.* must have shape \(U, H, S\) = \(4, 2, 3\), got \(4, 3, 3\)"),
        (torch.rand(4, 2, 3), [3], "head_dims.* must be 1 or 2, got 3"),
        (torch.rand(4, 2, 3, dtype=torch.float64), [1], "weights.* must be"),
        (torch.rand(4, 2, 3), [1, 2], "2 head_dims"),
    ],
)
def test_refuses_what_does_not_fit(weights: torch.Tensor, head_dims: list[int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        mix([torch.randn(2, 3, 4, 5)], [weights], head_dims)


def test_refuses_vmap() -> None:
    bank, weights = torch.randn(2, 3, 4, 5), torch.rand(6, 1, 2, 3)
    with pytest.raises(RuntimeError, match="mhr::mix does not support torch.func"):
        torch.func.vmap(lambda w: mix([bank], [w], [1])[0])(weights)


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_factors_of_a_run_lie_side_by_side(dtype: torch.dtype, python: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers that read the same x; with other banks before, between and behind them."""
    if python:
        monkeypatch.setattr(native, "nodes", None)
    # H, P, Q of each bank, and where its heads are joined
    given = [(2, 3, 4, 2), (2, 8, 3, 1), (2, 8, 5, 1), (4, 2, 7, 2), (4, 4, 1, 1), (2, 8, 2, 1), (1, 16, 9, 1)]
    runs = [1, 2, 1, 3]
    # All of a run have the same rows, H P = 16.
    banks = [values(h, 3, p, q, dtype=dtype).requires_grad_() for h, p, q, _ in given]
    weights = [torch.rand(5, h, 3, dtype=accumulator(dtype)).requires_grad_() for h, *_ in given]
    dims = [dim for *_, dim in given]
    alone = mix(banks, weights, dims)
    expected = [alone[0], torch.cat(alone[1:3], -1), alone[3], torch.cat(alone[4:], -1)]
    found = mix(banks, weights, dims, runs=runs)
    assert len(found) == len(expected)
    upstream = [torch.randn_like(t) for t in expected]
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)
        assert got.stride(1) * got.element_size() % 16 == 0 or got.is_contiguous()
    leaves = [*banks, *weights]
    got_grads = torch.autograd.grad(found, leaves, upstream)
    wanted_grads = torch.autograd.grad(expected, leaves, upstream)
    for got, wanted in zip(got_grads, wanted_grads, strict=True):
        torch.testing.assert_close(got, wanted)


def test_refuses_runs_that_do_not_fit() -> None:
    banks = [torch.randn(2, 3, 4, 2), torch.randn(2, 3, 6, 2)]
    weights = [torch.rand(1, 2, 3)] * 2
    with pytest.raises(RuntimeError, match="mixed has room for"):
        mix(banks, weights, [1, 1], runs=[2])
    with pytest.raises(RuntimeError, match="only factors A lie side by side"):
        mix(banks[:1] * 2, weights, [2, 2], runs=[2])
    with pytest.raises(RuntimeError, match="runs must add up to the 2 banks"):
        mix(banks, weights, [1, 1], runs=[1])
    for runs in ([3, -1], [-1, 3], [2, 0], [0, 2], [1, 0, 1]):
        with pytest.raises(RuntimeError, match="a run of (-1|0) banks"):
            mix(banks, weights, [1, 1], runs=runs)
        room = [torch.empty(1, 8, 8) for _ in runs]
        with pytest.raises(RuntimeError, match="a run of (-1|0) banks"):
            torch.ops.mhr.mix_beside(room, banks, weights, [1, 1], runs)


@pytest.mark.parametrize("python", [False, True], ids=["as it is", "nodes in Python"])
def test_a_bank_of_other_axes_is_told_before_its_columns_are_counted(
    python: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if python:
        monkeypatch.setattr(native, "nodes", None)
    with pytest.raises(RuntimeError, match=r"mhr::mix: banks\[0\] must have shape \(H, S, P, Q\), got \(2, 3, 4\)"):
        mix([torch.ones(2, 3, 4)], [torch.ones(1, 2, 3)], [1], runs=[1])


def test_runs_of_odd_ranks_compile_without_graph_breaks() -> None:
    banks = [torch.randn(1, 2, 8, 3, requires_grad=True) for _ in range(2)]
    weights = torch.rand(2, 1, 2)

    def mixed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return mix([a, b], [weights, weights], [1, 1], runs=[2])[0] * 2

    compiled = torch.compile(mixed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*banks), mixed(*banks))
    found, stated = (torch.autograd.grad(f(*banks).square().sum(), banks) for f in (compiled, mixed))
    torch.testing.assert_close(found, stated)
