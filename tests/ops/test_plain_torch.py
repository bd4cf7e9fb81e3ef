"""The lines of plain torch in the docstring of each op compute what the op computes, and a reference calls no op of ours."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import mhr.ops

G, L, U, H, S, R, I, O = 3, 5, 2, 2, 4, 3, 6, 8  # noqa: E741  (the alphabet of shapes)


def inputs() -> dict[str, Any]:
    """Every name that the lines use, in float64; all rows and both sides apart."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    weights, weights_b = (normal(U, H, S).softmax(-1) for _ in range(2))
    return {
        "torch": torch,
        "F": F,
        "scale": 0.5,
        "temperature": 0.7,
        "tasks": torch.tensor([4, 1]),
        "rows": torch.tensor([1, 0, 1]),
        "rows_b": torch.tensor([0, 0, 1]),
        "x": normal(G, L, I),
        "y": normal(G, L, O),
        "weight": normal(O, I),
        "bias": normal(O),
        "A": normal(U, I, R),
        "B": normal(U, R, O),
        "bias_a": normal(U, R),
        "bias_b": normal(U, O),
        "bank_a": normal(H, S, I // H, R),
        "bank_b": normal(H, S, R, O // H),
        "weights": weights,
        "weights_b": weights_b,
        "logits": normal(6, H, S),
        "noise": normal(U, H, S),
    }


def by_docstring(op: Any, names: dict[str, Any], result: str) -> torch.Tensor:
    """Runs what stands indented after "::" and returns the name that it ends in."""
    after = inspect.cleandoc(op.__doc__).partition("::\n\n")[2].split("\n")
    code = [line for line in after[: next(i for i, line in enumerate(after) if line and line[0] != " ")] if line]
    names = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in names.items()}
    exec(textwrap.dedent("\n".join(code)), names)
    return names[result]


def close(found: torch.Tensor, truth: torch.Tensor) -> None:
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


def test_routed_adapter() -> None:
    n = inputs()
    truth = by_docstring(mhr.ops.routed_adapter, n, "y")
    how = {name: n[name] for name in ("rows_b", "bias_a", "bias_b")}
    close(
        mhr.ops.routed_adapter(n["y"], n["x"], n["A"], n["B"], n["rows"], n["scale"], **how, activation="gelu"), truth
    )


def test_routed_linear() -> None:
    n = inputs()
    truth = by_docstring(mhr.ops.routed_linear, n, "y")
    given = (n[name] for name in ("x", "weight", "bias", "bank_a", "bank_b", "weights", "rows", "scale"))
    close(mhr.ops.routed_linear(*given, weights_b=n["weights_b"], rows_b=n["rows_b"]), truth)


def test_routed_bottleneck() -> None:
    n = inputs()
    wide = {"bank_a": (O // H, R), "bias_a": (1, R), "bank_b": (R, O // H), "bias_b": (1, O // H)}
    n |= {name: torch.randn(H, S, *shape, dtype=torch.float64) for name, shape in wide.items()} | {"x": n["y"]}
    truth = by_docstring(mhr.ops.routed_bottleneck, n, "y")
    given = (n[name] for name in ("x", "bank_a", "bias_a", "bank_b", "bias_b", "weights", "rows"))
    close(mhr.ops.routed_bottleneck(*given, weights_b=n["weights_b"], rows_b=n["rows_b"]), truth)


@pytest.mark.parametrize("head_dim", [1, 2])
def test_mix(head_dim: int) -> None:
    n = inputs()
    bank = n["bank_a"] if head_dim == 1 else n["bank_b"]
    truth = by_docstring(mhr.ops.mix, n | {"bank": bank, "head_dim": head_dim}, "mixed")
    close(mhr.ops.mix([bank], [n["weights"]], [head_dim])[0], truth)


def test_route() -> None:
    n = inputs()
    truth = by_docstring(mhr.ops.route, n, "w")
    close(mhr.ops.route(n["logits"], n["tasks"], n["noise"], n["temperature"]), truth)


def test_weighted_average() -> None:
    n = {"weights": [0.2, 0.9], "tensors": [torch.randn(7, dtype=torch.float64) for _ in range(2)]}
    close(mhr.ops.weighted_average(n["tensors"], n["weights"]), by_docstring(mhr.ops.weighted_average, n, "out"))


def test_no_reference_calls_an_op_of_ours() -> None:
    """Or a kernel would be held against itself."""
    folder = Path(mhr.ops.__file__).parent
    functions = [
        node
        for file in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_reference")
    ]
    assert len(functions) >= 8
    for function in functions:
        called = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        assert not [name for name in called if "torch.ops.mhr" in name or name in {*mhr.ops.__all__, "apply"}], (
            function.name
        )
