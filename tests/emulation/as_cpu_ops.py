"""A pytest plugin (-p) that puts the emulated CUDA kernels behind mhr's ops on the CPU; wants MHR_NATIVE=0.

What CUDA does not offer is left out: float64, and complaints about values of rows and offsets, which only the CPU reads.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

import mhr.ops
from tests.emulation.emulator import build_library

if mhr.ops.native.build_info():
    raise pytest.UsageError("the CPU's own kernels are loaded: set MHR_NATIVE=0")
torch.ops.load_library(str(build_library()))

CPU_ONLY = ("float64", "rows must lie", "offsets must rise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not any(text in item.name for text in CPU_ONLY)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    try:
        return (yield)
    except RuntimeError as error:
        if "float64 runs on the CPU only" in str(error):
            pytest.skip("float64 runs on the CPU only")
        raise
