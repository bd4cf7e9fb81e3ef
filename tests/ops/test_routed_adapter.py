from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from mhr.ops import routed_adapter
from tests.helpers import DTYPES, assert_close
from tests.ops.cases import LAYOUTS, SIZES, Layout, adapter_formula, double, values, with_gradients

EQUAL, RAGGED = LAYOUTS[1], LAYOUTS[2]


def inputs(layout: Layout, size: tuple[int, int, int], dtype: torch.dtype, biases: bool = False) -> dict[str, Tensor]:
    n_in, n_out, rank = size
    given = {
        "y": values(*layout.leading, n_out, dtype=dtype),
        "x": values(*layout.leading, n_in, dtype=dtype),
        "A": values(layout.n_rows, n_in, rank, dtype=dtype, spread=n_in**-0.5),
        "B": values(layout.n_rows, rank, n_out, dtype=dtype, spread=rank**-0.5),
    }
    if biases:
        given |= {
            "bias_a": values(layout.n_rows, rank, dtype=dtype),
            "bias_b": values(layout.n_rows, n_out, dtype=dtype),
        }
    return given


def compare(
    layout: Layout, given: dict[str, Tensor], dtype: torch.dtype, activation: str = "none", same: bool = True
) -> None:
    rows, offsets = layout.tensors()
    tokens = layout.row_of_token()
    last = layout.n_rows - 1

    def ours(y: Tensor, **others: Tensor) -> Tensor:
        rows_b = last - rows
        return routed_adapter(
            y * 1, rows=rows, scale=0.7, rows_b=rows_b, offsets=offsets, activation=activation, **others
        )

    def formula(**tensors: Tensor) -> Tensor:
        return adapter_formula(token_a=tokens, token_b=last - tokens, scale=0.7, activation=activation, **tensors)

    truth = with_gradients(formula, double(given))
    assert_close(with_gradients(ours, given), truth, dtype, with_gradients(formula, given) if same else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda case: case.name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_accuracy(size: tuple[int, int, int], layout: Layout, dtype: torch.dtype) -> None:
    compare(layout, inputs(layout, size, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("layout", [EQUAL, RAGGED], ids=lambda case: case.name)
def test_accuracy_with_biases(layout: Layout, activation: str, dtype: torch.dtype) -> None:
    compare(layout, inputs(layout, (65, 31, 16), dtype, biases=True), dtype, activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_accuracy_with_float32_factors(dtype: torch.dtype) -> None:
    given = {n: t if n in "xy" else t.float() for n, t in inputs(RAGGED, (65, 31, 16), dtype, biases=True).items()}
    compare(RAGGED, given, dtype, "gelu", same=False)


def test_adds_in_place_and_returns_the_same_tensor() -> None:
    given = inputs(EQUAL, (8, 7, 3), torch.float32)
    rows, _ = EQUAL.tensors()
    tokens = EQUAL.row_of_token()
    expected = adapter_formula(**given, token_a=tokens, token_b=tokens, scale=1.0)
    found = routed_adapter(**given, rows=rows)
    assert found is given["y"]
    torch.testing.assert_close(found, expected)


def test_non_contiguous_inputs() -> None:
    rows, _ = EQUAL.tensors()
    tokens = EQUAL.row_of_token()
    given = {
        "y": torch.randn(5, 3, 7).transpose(0, 1),
        "x": torch.randn(3, 5, 16)[..., ::2],
        "A": torch.randn(8, 4, 3).transpose(0, 1),
        "B": torch.randn(4, 7, 3).transpose(1, 2),
    }
    expected = adapter_formula(**given, token_a=tokens, token_b=tokens, scale=1.0)
    torch.testing.assert_close(routed_adapter(**given, rows=rows), expected)
    torch.testing.assert_close(given["y"], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_row_minus_one_is_a_row_of_zeros(activation: str, dtype: torch.dtype) -> None:
    given = inputs(RAGGED, (65, 31, 16), dtype, biases=True)
    rows, rows_b = torch.tensor([1, 0, -1, -1, 3]), torch.tensor([-1, 2, -1, 0, 1])
    _, offsets = RAGGED.tensors()
    assert offsets is not None
    token_a, token_b = (r.repeat_interleave(offsets.diff()) for r in (rows, rows_b))

    def ours(y: Tensor, **others: Tensor) -> Tensor:
        more = {"rows": rows, "rows_b": rows_b, "offsets": offsets, "activation": activation}
        return routed_adapter(y * 1, scale=0.7, **others, **more)

    def formula(**tensors: Tensor) -> Tensor:  # a row of zeros behind the others, which -1 picks
        more = {n: torch.cat([t, t.new_zeros(1, *t.shape[1:])]) for n, t in tensors.items() if n not in "xy"}
        return adapter_formula(**(tensors | more), token_a=token_a, token_b=token_b, scale=0.7, activation=activation)

    found = with_gradients(ours, given)
    assert_close(found, with_gradients(formula, double(given)), dtype, with_gradients(formula, given))
    out = ours(given["y"], **{n: t for n, t in given.items() if n != "y"})
    assert torch.equal(out.flatten(0, 1)[token_b < 0], given["y"].flatten(0, 1)[token_b < 0])


def test_no_segment_has_an_adapter() -> None:
    given = {n: t.requires_grad_() for n, t in inputs(EQUAL, (8, 7, 3), torch.float32).items()}
    out = routed_adapter(given["y"] * 1, given["x"], given["A"], given["B"], torch.tensor([-1, -1, -1]))
    assert torch.equal(out, given["y"])
    out.sum().backward()
    for name in ("x", "A", "B"):
        assert given[name].grad is not None
        assert not given[name].grad.any(), name


def test_gradcheck() -> None:
    rows, offsets = RAGGED.tensors()
    leaves = tuple(t.requires_grad_() for t in inputs(RAGGED, (5, 3, 2), torch.float64, biases=True).values())

    def function(y: Tensor, x: Tensor, A: Tensor, B: Tensor, bias_a: Tensor, bias_b: Tensor) -> Tensor:
        more = {"offsets": offsets, "bias_a": bias_a, "bias_b": bias_b, "activation": "gelu"}
        return routed_adapter(y * 1, x, A, B, rows, 0.7, **more)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_the_same_bits_in_every_run() -> None:
    given = inputs(LAYOUTS[3], (130, 192, 16), torch.bfloat16)
    rows, _ = LAYOUTS[3].tensors()
    runs = [with_gradients(lambda y, **o: routed_adapter(y * 1, rows=rows, **o), given) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


def test_opcheck() -> None:
    given = inputs(RAGGED, (8, 7, 3), torch.float32, biases=True)
    rows, offsets = RAGGED.tensors()
    y, x, A, B, bias_a, bias_b = given.values()
    ops = torch.ops.mhr
    args = (y, x, A, B, rows, None, offsets, bias_a, bias_b, "gelu", 0.7)
    torch.library.opcheck(ops.routed_adapter_forward.default, args)
    z = ops.routed_adapter_forward(*args)
    args_dy = (torch.randn_like(y), z, B, rows, offsets, "gelu", 0.7, True)
    torch.library.opcheck(ops.routed_adapter_backward_dy.default, args_dy)
    dz = ops.routed_adapter_backward_dy(*args_dy)[0]
    torch.library.opcheck(ops.routed_adapter_backward_x.default, (x.clone(), x, dz, A, rows, offsets, False, True))
    torch.library.opcheck(ops.routed_adapter_backward_x.default, (None, x, dz, A, rows, offsets, False, False))


def test_compiles_without_graph_breaks(backend: str) -> None:
    rows, offsets = RAGGED.tensors()
    given = inputs(RAGGED, (8, 7, 3), torch.float32)

    def function(y: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return routed_adapter(y * 2, x, A, B, rows, 0.7, offsets=offsets).square()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_close(with_gradients(compiled, given), with_gradients(function, given), torch.float32)


def test_autocast_takes_the_dtype_of_y() -> None:
    rows, _ = EQUAL.tensors()
    given = inputs(EQUAL, (8, 7, 3), torch.float32)
    given["x"].requires_grad_()
    with torch.autocast(given["x"].device.type, torch.bfloat16):
        out = routed_adapter(given["y"].bfloat16(), given["x"], given["A"], given["B"], rows)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert given["x"].grad is not None
    assert given["x"].grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.randn(4, 9, 3)}, r"(A must have shape .* got \(4, 9, 3\)|x must have I = 9 columns)"),
        ({"B": torch.randn(4, 2, 7)}, r"B must have shape \(U, R, O\) = \(4, 3, 7\), got \(4, 2, 7\)"),
        ({"y": torch.randn(3, 5, 6)}, "y must have"),
        ({"y": torch.randn(5, 3, 7)}, "y must have"),
        ({"y": torch.randn(15, 7)}, "y must have"),
        ({"x": torch.randn(3, 5, 8).double()}, "must"),
        ({"rows": torch.tensor([0, 1])}, "15 tokens do not divide into 2 equal segments; pass offsets"),
        ({"rows": torch.tensor([0, 1, 9])}, r"rows must lie in 0\.\.3"),
        ({"rows": torch.tensor([0, -2, 1])}, r"rows must lie in 0\.\.3"),
        ({"offsets": torch.tensor([0, 7, 5, 15])}, "offsets must rise from 0 to N = 15"),
        ({"offsets": torch.tensor([0, 15])}, "offsets must have shape"),
        ({"activation": "relu"}, "activation must be"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {**inputs(EQUAL, (8, 7, 3), torch.float32), "rows": EQUAL.tensors()[0]}
    with pytest.raises(RuntimeError, match=message):
        routed_adapter(**(given | change))  # type: ignore[arg-type]


def test_refuses_vmap() -> None:
    given = inputs(EQUAL, (8, 7, 3), torch.float32)
    rows, _ = EQUAL.tensors()
    with pytest.raises(RuntimeError, match="mhr::routed_adapter does not support torch.func"):
        torch.func.vmap(lambda x: routed_adapter(given["y"], x, given["A"], given["B"], rows))(torch.randn(2, 3, 5, 8))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_inductor_adds_into_y_without_a_copy(training: bool, device: str) -> None:
    """What is given back is the one buffer of y's size that is made, and no copy is left of how dynamo is told that y changes."""
    from torch._inductor.utils import run_and_get_code

    rows, _ = EQUAL.tensors()
    given = inputs(EQUAL, (8, 7, 3), torch.float32)
    arguments = [given[name].requires_grad_(training) for name in ("y", "x", "A", "B")]

    def function(y: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return routed_adapter(y * 2, x, A, B, rows, 0.7)

    found, codes = run_and_get_code(torch.compile(function, fullgraph=True), *arguments)
    torch.testing.assert_close(found, function(*arguments))
    (made,) = re.findall(rf"(\w+) = empty_strided_{device}\(\(3, 5, 7\)", codes[0])
    assert re.search(rf"routed_adapter_forward\.default\({made}\b", codes[0])
    assert "copy_(" not in codes[0]
