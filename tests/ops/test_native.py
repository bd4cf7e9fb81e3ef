"""Which kernels are native, and that every path to them gives the same answers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mhr.ops import build_info, native_ops
from mhr.ops.routed_adapter import routed_adapter_forward_reference

ROOT = Path(__file__).parents[2]
BUILT = importlib.util.find_spec("mhr._C") is not None and os.environ.get("MHR_NATIVE") != "0"
OPS = {
    "mix",
    "mix_backward",
    "mix_beside",
    "route",
    "route_all",
    "route_all_backward",
    "route_backward",
    "routed_adapter_backward_dy",
    "routed_adapter_backward_x",
    "routed_adapter_forward",
    "routed_bottleneck_backward",
    "routed_bottleneck_forward",
    "routed_linear_backward",
    "routed_linear_forward",
    "routed_linears_backward",
    "routed_linears_forward",
    "token_routed_adapter",
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


@pytest.mark.slow
@pytest.mark.skipif(not BUILT, reason="the native extension is not built")
@pytest.mark.parametrize("level", ["avx512", "avx2", "portable"])
def test_every_instruction_set_is_right_on_poisoned_memory(level: str) -> None:
    if level not in build_info()["simd_levels"]:
        pytest.skip(f"this machine does not have {level}")
    assert os.environ["MHR_POISON"] == "1"
    if level == build_info()["simd"]:
        pytest.skip(f"all tests of this process are of {level}")
    result = run(ACCURACY, MHR_SIMD=level)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.skipif(not BUILT, reason="the native extension is not built")
def test_the_level_that_is_asked_for_serves_and_the_portable_one_is_everywhere() -> None:
    levels = build_info()["simd_levels"]
    assert levels[-1] == "portable"
    for level in levels:
        result = run(["-W", "error", "-c", "import mhr.ops; print(mhr.ops.build_info()['simd'])"], MHR_SIMD=level)
        assert result.stdout == level + "\n", result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not BUILT, reason="the native extension is not built: the references are what is tested already")
def test_the_references_are_right_where_the_extension_is_left_out() -> None:
    result = run(ACCURACY, MHR_NATIVE="0")
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.skipif(not BUILT, reason="the native extension is not built")
def test_an_instruction_set_that_there_is_not_is_told_once_and_the_best_one_serves() -> None:
    """A library that is loaded has registered its kernels: a plain call must never be what finds out."""
    call = "import torch, mhr.ops as o; [o.weighted_average([torch.ones(3)], torch.ones(1)) for _ in range(2)]"
    result = run(["-c", f"{call}; print(o.build_info()['simd'])"], MHR_SIMD="avx1024")
    best = build_info()["simd_levels"][0]
    assert result.stdout == best + "\n", result.stderr
    told = f"MHR_SIMD is 'avx1024', which this machine does not have: {best} is used"
    assert result.stderr.count(told) == 1


@pytest.mark.skipif(not BUILT, reason="the native extension is not built")
def test_nodes_that_were_compiled_with_another_torch_are_left_alone() -> None:
    """They might load and read its objects wrong. The kernels, on the stable ABI, serve any torch."""
    code = (
        "import torch; torch.__version__ = '2.12.7+cpu'; import mhr.ops as o\n"
        "print(o.build_info()['autograd'], o.native_ops()['mix'])"
    )
    result = run(["-c", code])
    assert result.stdout == "Python ['cpu']\n", result.stderr
    assert result.stderr.count("and runs with 2.12.7+cpu: its kernels are used, but") == 1


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


def test_an_error_is_one_line_that_names_no_machine() -> None:
    """What is refused by the kernels and by the references is told in the same words."""
    given = torch.zeros(4, 7), torch.ones(4, 6), torch.ones(2, 6, 3)
    told = []
    for op in (torch.ops.mhr.routed_adapter_forward.default, routed_adapter_forward_reference):
        with pytest.raises(RuntimeError) as caught:
            op(*given, torch.ones(2, 2, 7), torch.tensor([0]), None, None, None, None, "none", 1.0)
        told.append(str(caught.value))
    assert told[0] == told[1] == "mhr::routed_adapter: B must have shape (U, R, O) = (2, 3, 7), got (2, 2, 7)"
