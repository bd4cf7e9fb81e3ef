"""A pytest plugin (-p) that puts the emulated CUDA kernels behind mhr's ops on the CPU; wants MHR_NATIVE=0."""

from __future__ import annotations

import pytest
import torch

import mhr.ops
from tests.emulation.emulator import build_library
from tests.ops.cases import CPU_ONLY

if mhr.ops.native.build_info():
    raise pytest.UsageError("the CPU's own kernels are loaded: set MHR_NATIVE=0")
torch.ops.load_library(str(build_library()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not any(text in item.name.partition("[")[2] for text in CPU_ONLY)]
