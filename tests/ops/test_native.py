"""Which kernels are native, and that every path to them gives the same answers."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mhr.ops import build_info, native_ops

ROOT = Path(__file__).parents[2]
BUILT = importlib.util.find_spec("mhr._C") is not None and os.environ.get("MHR_NATIVE") != "0"
OPS = {
    "mix",
    "mix_backward",
    "route",
    "route_backward",
    "routed_adapter_backward_dy",
    "routed_adapter_backward_x",
    "routed_adapter_forward",
    "routed_linear_backward",
    "routed_linear_forward",
    "weighted_average",
}


def test_which_kernels_are_native() -> None:
    """Never skipped: everything works without native kernels, so their absence must not go unnoticed."""
    found = native_ops()
    assert set(found) == OPS
    assert all(("cpu" in devices) == BUILT for devices in found.values()), found
    assert bool(build_info()) == BUILT


def run(code_or_tests: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code_or_tests],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


ACCURACY = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/ops", "-k", "accuracy"]


def supported(level: str) -> bool:
    return run(["-c", "import mhr.ops"], MHR_SIMD=level).returncode == 0


@pytest.mark.skipif(not BUILT, reason="the native extension is not built")
@pytest.mark.parametrize("level", ["avx512", "avx2", "portable"])
def test_every_instruction_set_is_right_on_poisoned_memory(level: str) -> None:
    if level != "portable" and (platform.machine() != "x86_64" or not supported(level)):
        pytest.skip(f"this machine does not have {level}")
    result = run(ACCURACY, MHR_SIMD=level, MHR_POISON="1")
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.skipif(not BUILT, reason="the native extension is not built: the references are what is tested already")
def test_the_references_are_right_where_the_extension_is_left_out() -> None:
    result = run(ACCURACY, MHR_NATIVE="0")
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.skipif(not BUILT, reason="the native extension is not built")
def test_an_unknown_instruction_set_is_refused_loudly() -> None:
    result = run(["-c", "import mhr.ops"], MHR_SIMD="avx1024")
    assert "MHR_SIMD must be avx512, avx2 or portable, got avx1024" in result.stderr


@pytest.mark.skipif(not BUILT, reason="the native extension is not built")
def test_threads_do_not_change_more_than_rounding() -> None:
    code = (
        "import torch; from mhr.ops import routed_linear; torch.manual_seed(0)\n"
        "r = lambda *s: torch.randn(*s).requires_grad_()\n"
        "t = [torch.randn(4, 300, 192), torch.randn(256, 192), None, r(2, 4, 96, 8), r(2, 4, 8, 128), r(3, 2, 4)]\n"
        "for _ in range(2):\n"
        "    y = routed_linear(*t, torch.tensor([0, 2, 0, 1]))\n"
        "    g = torch.autograd.grad(y.square().sum(), t[3:])\n"
        "    print(' '.join(float(v.double().sum()).hex() for v in (y, *g)))\n"
    )
    outputs = []
    for threads in ("1", "3"):
        result = run(["-c", code], OMP_NUM_THREADS=threads)
        assert result.returncode == 0, result.stderr
        first, second = result.stdout.split("\n")[:2]
        assert first == second
        outputs.append([float.fromhex(v) for v in first.split()])
    for one, three in zip(*outputs, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-2)
