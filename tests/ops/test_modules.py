"""No module of these tests makes a tensor while it is imported: it would lie on the CPU whatever device its tests run on."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

FILES = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)


@pytest.mark.parametrize("name", FILES)
def test_holds_no_tensor(name: str) -> None:
    held = vars(importlib.import_module(f"tests.ops.{name}"))
    early = [n for n, value in held.items() if not n.startswith("__") and any(True for _ in tensors(value))]
    assert not early, f"tests/ops/{name}.py: made before there is a device: {', '.join(early)}"
