"""The tests of mhr.ops once more, and those for a GPU, with the emulated CUDA kernels and their registration behind the ops."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.emulation import emulator

pytestmark = [pytest.mark.emulation, pytest.mark.slow]

FILES = (
    "in_place",
    "mix",
    "route",
    "route_all",
    "routed_adapter",
    "routed_bottleneck",
    "routed_linear",
    "routed_linears",
    "unused_rows",
    "weighted_average",
)


# Of the tests for a GPU those that need no more than the ops.
FOR_A_GPU = ("tests/cuda/test_kernels.py", "-k", "adapter_matches or mix_matches or average_matches")


@pytest.mark.parametrize(
    ("tests", "least"),
    [([f"tests/ops/test_{name}.py" for name in FILES], 200), (FOR_A_GPU, 60)],
    ids=["ops", "for a GPU"],
)
def test_they_pass_on_the_cuda_kernels(tests: Sequence[str], least: int) -> None:
    reason = emulator.missing_tools()
    if reason:
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.emulation.as_cpu_ops", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, *tests], capture_output=True, text=True, cwd=emulator.ROOT, env={**os.environ, "MHR_NATIVE": "0"}
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) > least, "most of the tests should have something to say about CUDA"
