"""The tests of mhr.ops once more, with the emulated CUDA kernels and their registration behind the ops."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.emulation import emulator

pytestmark = [pytest.mark.emulation, pytest.mark.slow]

FILES = (
    "mix",
    "route",
    "route_all",
    "routed_adapter",
    "routed_bottleneck",
    "routed_linear",
    "routed_linears",
    "weighted_average",
)


def test_ops_pass_their_tests_on_the_cuda_kernels() -> None:
    reason = emulator.missing_tools()
    if reason:
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.emulation.as_cpu_ops", "-p", "no:cacheprovider"]
    command += [f"tests/ops/test_{name}.py" for name in FILES]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=emulator.ROOT, env={**os.environ, "MHR_NATIVE": "0"}
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) > 200, "most of the tests should have something to say about CUDA"
