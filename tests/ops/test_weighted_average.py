from __future__ import annotations

import pytest
import torch

from mhr.ops import weighted_average
from tests.helpers import DTYPES, assert_close
from tests.ops.cases import values

SHAPES = ((), (0,), (1,), (33,), (7, 19), (3, 5, 257))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5, 8, 11])
def test_accuracy(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = [values(*shape, dtype=dtype) for _ in range(count)]
    weights = torch.randn(count).tolist()
    truth = sum((w * t.double() for w, t in zip(weights, tensors, strict=True)), torch.zeros(shape).double())
    same = sum((w * t for w, t in zip(weights, tensors, strict=True)), torch.zeros(shape, dtype=dtype))
    assert_close({"out": weighted_average(tensors, weights)}, {"out": truth}, dtype, {"out": same})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_tensor_at_weight_one_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    tensor = values(1000, dtype=dtype)
    tensor[:3] = torch.tensor([float("nan"), float("-inf"), -0.0], dtype=dtype)
    found = weighted_average([tensor], [1.0])
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    assert torch.equal(found.view(bits), tensor.view(bits))
    assert found.data_ptr() != tensor.data_ptr()


def test_output_may_be_given_strided_or_be_one_of_the_inputs() -> None:
    tensors = [torch.randn(4, 6).T, torch.randn(6, 4)]
    expected = 0.25 * tensors[0] + 0.5 * tensors[1]
    out = torch.empty(4, 12).T[::2]
    assert weighted_average(tensors, [0.25, 0.5], out) is out
    torch.testing.assert_close(out, expected)
    assert weighted_average(tensors, [0.25, 0.5], tensors[1]) is tensors[1]
    torch.testing.assert_close(tensors[1], expected)


def test_is_not_differentiable() -> None:
    assert not weighted_average([torch.randn(3, requires_grad=True)], [0.5]).requires_grad


def test_opcheck() -> None:
    tensors = [torch.randn(5), torch.randn(5)]
    torch.library.opcheck(torch.ops.mhr.weighted_average.default, (torch.zeros(5), tensors, [0.5, 0.25]))


def test_compiles_without_graph_breaks(backend: str) -> None:
    compiled = torch.compile(lambda a, b: weighted_average([a, b], [0.5, 2.0]), fullgraph=True, backend=backend)
    a, b = torch.randn(9), torch.randn(9)
    torch.testing.assert_close(compiled(a, b), weighted_average([a, b], [0.5, 2.0]))


@pytest.mark.parametrize(
    ("tensors", "weights", "message"),
    [
        ([], [], "no tensors"),
        ([torch.ones(3)], [1.0, 2.0], "1 tensors and 2 weights"),
        ([torch.ones(3), torch.ones(4)], [1.0, 2.0], r"got .*\(4,\)"),
        ([torch.ones(3), torch.ones(3).double()], [1.0, 2.0], "tensors.* must be"),
        ([torch.ones(3, dtype=torch.int64)], [1.0], "float"),
    ],
)
def test_refuses_what_does_not_fit(tensors: list[torch.Tensor], weights: list[float], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        weighted_average(tensors, weights)


def test_refuses_vmap() -> None:
    with pytest.raises(RuntimeError, match="mhr::weighted_average does not support torch.func"):
        torch.func.vmap(lambda t: weighted_average([t], [1.0]))(torch.randn(2, 3))
