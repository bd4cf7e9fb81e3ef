"""token_adapter against its formula: outputs, every gradient, dtypes, and what it refuses."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from mhr.ops import token_adapter, token_routed_adapter
from mhr.ops.token_adapter import token_routed_adapter_reference
from tests.helpers import DTYPES, assert_close

SCALE = 0.7
SWAPPED = {"x": (3, 2, 6), "y": (2, 3, 7)}  # leading dimensions


def case(n: int, k: int, dtype: torch.dtype = torch.float64, skills: int = 5, sizes: tuple[int, int, int] = (6, 7, 3)):
    torch.manual_seed(n + k)
    inputs, outputs, rank = sizes
    chosen = [torch.randperm(skills)[:k] for _ in range(n)]
    found = {
        "y": torch.randn(n, outputs, dtype=torch.float64),
        "x": torch.randn(n, inputs, dtype=torch.float64),
        "A": torch.randn(skills, inputs, rank, dtype=torch.float64),
        "B": torch.randn(skills, rank, outputs, dtype=torch.float64),
        "shares": torch.rand(n, k, dtype=torch.float64),
    }
    found = {name: t.to(dtype) for name, t in found.items()}
    return found | {"chosen": torch.stack(chosen) if n else torch.empty(0, k, dtype=torch.long)}


def formula(y: Tensor, x: Tensor, A: Tensor, B: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    h = torch.einsum("ni,nkir->nkr", x, A[chosen])
    return y + SCALE * torch.einsum("nk,nkr,nkro->no", shares, h, B[chosen])


@pytest.mark.parametrize("n", [0, 1, 9, 200])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_outputs_and_every_gradient_are_those_of_the_formula(n: int, k: int) -> None:
    given = case(n, k)
    leaves = {name: t.requires_grad_() for name, t in given.items() if name != "chosen"}
    found, stated = token_adapter(**given, scale=SCALE), formula(**given)
    upstream = torch.randn_like(stated)
    one, two = (torch.autograd.grad((out * upstream).sum(), list(leaves.values())) for out in (found, stated))
    assert_close(
        {"out": found, **dict(zip(leaves, one, strict=True))},
        {"out": stated, **dict(zip(leaves, two, strict=True))},
        torch.float64,
    )
    assert n == 0 or all(gradient.any() for gradient in two)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("sizes", [(65, 31, 16), (130, 192, 33)])
def test_every_dtype_is_as_near_as_its_rounding(dtype: torch.dtype, wide: bool, sizes: tuple[int, int, int]) -> None:
    given = case(300, 2, dtype, sizes=sizes)
    if wide and dtype != torch.float64:  # banks are float32 beside half-precision activations
        given |= {name: given[name].float() for name in ("A", "B", "shares")}
    truth = formula(**{name: t if name == "chosen" else t.double() for name, t in given.items()})
    assert_close({"y": token_adapter(**given, scale=SCALE)}, {"y": truth}, dtype)


def test_leading_dimensions_and_y_stay_as_they_are() -> None:
    given = case(12, 2)
    flat = token_adapter(**given, scale=SCALE)
    shaped = {name: t.view(3, 4, -1) if name in ("x", "y") else t for name, t in given.items()}
    before = shaped["y"].clone()
    assert torch.equal(token_adapter(**shaped, scale=SCALE), flat.view(3, 4, -1))
    assert torch.equal(shaped["y"], before)


def test_work_does_not_grow_with_the_adapters_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = []

    def counted(y: Tensor, x: Tensor, *rest, offsets: Tensor, **more) -> Tensor:
        segments.append((x.shape[0], offsets[-1].item()))
        return y

    monkeypatch.setattr(sys.modules["mhr.ops.token_adapter"], "routed_adapter", counted)
    for skills in (5, 50):
        token_adapter(**case(40, 2, skills=skills))
    assert segments == [(80, 80), (80, 80)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"chosen": torch.zeros(9, dtype=torch.long)}, r"chosen must have shape \(N, k\), got \(9,\)"),
        ({"shares": torch.zeros(9, 3)}, r"shares must have shape \(N, k\) = \(9, 2\), got \(9, 3\)"),
        ({"y": torch.zeros(9, 6, dtype=torch.float64)}, r"y must have shape"),
        ({"B": torch.zeros(5, 2, 7, dtype=torch.float64)}, "B must have shape"),
        ({"chosen": torch.full((9, 2), 5)}, r"chosen must lie in 0\.\.4"),
        ({"chosen": torch.tensor([[0, -1]] * 9)}, r"chosen must lie in 0\.\.4"),
    ],
)
def test_shapes_that_do_not_fit(changed: dict[str, Tensor], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        token_adapter(**{**case(9, 2), **changed})


# ---- with the choice, for inference -----------------------------------------------------------------------------------


def routed_case(n: int, dtype: torch.dtype, sizes: tuple[int, int, int], skills: int = 5) -> dict[str, Tensor]:
    given = case(n, 1, dtype, skills=skills, sizes=sizes)
    torch.manual_seed(n)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given["directions"] = torch.randn(skills, sizes[0], dtype=torch.float64).to(wide) / sizes[0] ** 0.5
    return {name: given[name] for name in ("y", "x", "directions", "A", "B")}


def routed_formula(
    y: Tensor, x: Tensor, directions: Tensor, A: Tensor, B: Tensor, top_k: int, temperature: float, normalised: bool
) -> Tensor:
    """Token by token, in the dtype of what is given."""
    out = y.clone()
    for n, token in enumerate(x):
        scores = directions @ token
        scores = scores / (token.var(unbiased=False) + 1e-5).sqrt() if normalised else scores.abs()
        best = scores.topk(top_k).indices
        shares = torch.softmax(scores[best] / temperature, 0)
        out[n] += SCALE * sum(shares[j] * (token @ A[s] @ B[s]) for j, s in enumerate(best))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("n", "top_k", "sizes"), [(1, 1, (6, 7, 3)), (300, 2, (65, 31, 16)), (70, 5, (130, 192, 33))])
def test_accuracy_with_the_choice(
    dtype: torch.dtype, normalised: bool, n: int, top_k: int, sizes: tuple[int, int, int]
) -> None:
    given = routed_case(n, dtype, sizes)
    how = {"top_k": top_k, "temperature": 0.6, "normalised": normalised}
    truth = routed_formula(**{name: t.double() for name, t in given.items()}, **how)  # type: ignore[arg-type]
    same = {name: t.clone() for name, t in given.items()}
    token_routed_adapter_reference(**same, **how, scale=SCALE)  # type: ignore[arg-type]
    found = token_routed_adapter(**given, **how, scale=SCALE)  # type: ignore[arg-type]
    assert found is given["y"]
    assert_close({"y": found}, {"y": truth}, dtype)
    assert_close({"y": same["y"]}, {"y": truth}, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "top_k", "skills", "sizes"),
    [(150, 3, 40, (128, 64, 4)), (33, 7, 7, (64, 130, 5)), (3, 1, 300, (200, 256, 1)), (2, 2, 9, (31, 64, 8))],
)
def test_accuracy_with_many_adapters_all_of_them_and_few_tokens(
    dtype: torch.dtype, n: int, top_k: int, skills: int, sizes: tuple[int, int, int]
) -> None:
    given = routed_case(n, dtype, sizes, skills)
    how = {"top_k": top_k, "temperature": 0.6, "normalised": False}
    truth = routed_formula(**{name: t.double() for name, t in given.items()}, **how)  # type: ignore[arg-type]
    assert_close({"y": token_routed_adapter(**given, **how, scale=SCALE)}, {"y": truth}, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accuracy_of_shares_of_nothing_and_of_equal_ones(dtype: torch.dtype, temperature: float) -> None:
    given = routed_case(40, dtype, (64, 64, 4))
    how = {"top_k": 4, "temperature": temperature, "normalised": True}
    truth = routed_formula(**{name: t.double() for name, t in given.items()}, **how)  # type: ignore[arg-type]
    # At a low temperature a share's relative error is that of its score's absolute one, over the temperature.
    scores = torch.float64 if dtype == torch.float64 else torch.bfloat16
    found = token_routed_adapter(**given, **how, scale=SCALE)  # type: ignore[arg-type]
    assert_close({"y": found}, {"y": truth}, dtype if temperature > 1 else scores)


def test_accuracy_with_equal_scores_two_adapters_are_taken_by_halves() -> None:
    given = routed_case(21, torch.float64, (64, 70, 4), skills=20)
    given["directions"] = given["directions"][:1].expand(20, -1).clone()
    added = torch.einsum("ni,sir,sro->sno", given["x"], given["A"], given["B"])
    first, second = torch.triu_indices(20, 20, offset=1)
    possible = given["y"] + SCALE * (added[first] + added[second]) / 2  # [pairs, N, O]
    found = token_routed_adapter(**given, top_k=2, scale=SCALE)
    nearest = (possible - found).abs().amax(-1).argmin(0)
    assert_close({"y": found}, {"y": possible[nearest, torch.arange(21)]}, torch.float64)


@pytest.mark.parametrize("where", ["x", "directions"])
def test_accuracy_a_score_that_is_no_number_is_not_passed_over(where: str) -> None:
    given = routed_case(21, torch.float32, (64, 70, 4))
    given[where][3, 5] = float("nan")
    reference = {name: t.clone() for name, t in given.items()}
    how = {"top_k": 2, "temperature": 1.0, "normalised": False, "scale": SCALE}
    token_routed_adapter_reference(**reference, **how)  # type: ignore[arg-type]
    found = token_routed_adapter(**given, **how)  # type: ignore[arg-type]
    assert torch.equal(found.isnan(), reference["y"].isnan())
    assert found[3].isnan().all()
    assert found.isnan().all() if where == "directions" else not found[4:].isnan().any()


def test_accuracy_with_several_threads() -> None:
    given = routed_case(400, torch.float32, (256, 192, 4), skills=8)
    alone = token_routed_adapter(**{name: t.clone() for name, t in given.items()}, top_k=2, scale=SCALE)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = token_routed_adapter(**given, top_k=2, scale=SCALE)
    finally:
        torch.set_num_threads(threads)
    assert_close({"y": found}, {"y": alone.double()}, torch.float32)


def test_banks_of_float32_beside_half_precision_leading_dimensions_and_no_tokens() -> None:
    given = routed_case(24, torch.bfloat16, (65, 31, 4))
    given |= {name: given[name].float() for name in ("A", "B")}
    truth = routed_formula(
        **{name: t.double() for name, t in given.items()}, top_k=2, temperature=1.0, normalised=False
    )
    shaped = {name: t.view(2, 3, 4, -1) if name in ("x", "y") else t for name, t in given.items()}
    shaped["x"] = torch.stack([shaped["x"], shaped["x"]], -1)[..., 0]  # strided
    found = token_routed_adapter(**shaped, top_k=2, scale=SCALE)
    assert_close({"y": found.view(24, -1)}, {"y": truth}, torch.bfloat16)
    none = {name: t[:0] if name in ("x", "y") else t for name, t in given.items()}
    assert token_routed_adapter(**none, top_k=2).shape == (0, 31)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"top_k": 6}, r"top_k must lie in 1\.\.5, got 6"),
        ({"top_k": 0}, r"top_k must lie in 1\.\.5, got 0"),
        ({"directions": torch.zeros(4, 6, dtype=torch.float64)}, r"directions must have shape \(S, I\)"),
        ({"directions": torch.zeros(5, 6)}, "directions must be"),
        ({"B": torch.zeros(5, 2, 7, dtype=torch.float64)}, r"B must have shape \(S, R, O\)"),
        ({"y": torch.zeros(9, 6, dtype=torch.float64)}, "y must have"),
        ({name: torch.zeros(shape, dtype=torch.float64) for name, shape in SWAPPED.items()}, "y must have"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"temperature": -0.5}, r"temperature must be positive, got -0\.5"),
        ({"temperature": float("nan")}, "temperature must be positive, got -?nan"),
    ],
)
def test_a_choice_that_does_not_fit(changed: dict[str, Tensor], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        token_routed_adapter(**{"top_k": 2, **routed_case(9, torch.float64, (6, 7, 3)), **changed})  # type: ignore[arg-type]


def test_the_sum_over_adapters_is_rounded_once() -> None:
    """With shares in the dtype of y, and a sum that is rounded after each adapter, the error is 2.2 times that of one rounding; what each adapter
    gives is rounded too, which leaves 1.7."""
    given = case(400, 3, skills=6, sizes=(32, 24, 4))
    rounded = {name: t.to(torch.bfloat16) if name in ("x", "y", "A", "B") else t for name, t in given.items()}
    found = token_adapter(**rounded | {"shares": given["shares"].float()}, scale=SCALE)
    stated = formula(**{name: t.double() if t.is_floating_point() else t for name, t in rounded.items()})
    error, once = ((t.double() - stated).square().mean().sqrt() for t in (found, stated.to(torch.bfloat16)))
    assert error < 1.9 * once


def test_a_token_adds_up_its_gradients_without_an_atomic() -> None:
    """The backward of `index_select` would add them in the order in which threads come, on a GPU."""
    given = case(9, 3)
    x = given.pop("x").requires_grad_()
    out = token_adapter(x=x, **given)
    seen, todo = set[object](), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert not {name for name in names if "Index" in name}
    assert any("_Repeated" in name for name in names)
