from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import nullcontext

import pytest
import torch

from tests.ops.cases import CPU_ONLY, CPU_ONLY_FILES

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses deterministic mode


@pytest.fixture(autouse=True, params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs on every device there is, in deterministic mode, which fills uninitialised memory with NaN: what a
    kernel forgets to write shows."""
    on_cpu = request.param == "cpu"
    if not on_cpu and (request.path.name in CPU_ONLY_FILES or any(t in request.node.name for t in CPU_ONLY)):
        pytest.skip("the CPU's alone")
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    with nullcontext() if on_cpu else torch.device(request.param):
        yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["aot_eager", "inductor"])
def backend(request: pytest.FixtureRequest, device: str) -> str:
    """A backend of torch.compile: the one that splits forward from backward, and the one that also makes code."""
    if request.param == "inductor" and device == "cpu":
        pytest.skip("Inductor makes C++ for the CPU, seconds a function; where there is a GPU, it runs there")
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    try:
        return (yield)
    except RuntimeError as error:
        if "float64 runs on the CPU only" in str(error):
            pytest.skip("float64 runs on the CPU only")
        raise
