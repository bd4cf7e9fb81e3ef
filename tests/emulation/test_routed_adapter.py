"""The CUDA kernels of the routed adapter, executed on the CPU, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.emulation.adapter_cases import CASES, Case, Problem, check
from tests.emulation.emulator import EmulatorFault, run

pytestmark = pytest.mark.emulation


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(plain: Path, case: Case) -> None:
    check(plain, case, (0, 1, 7))


def test_row_out_of_range_stops_the_kernel(plain: Path) -> None:
    problem = Problem(Case((8, 8), 16, 16, 4))
    problem.rows_a[1] = 3
    with pytest.raises(EmulatorFault, match=r"segments\.cuh:\d+: trap \[block 1,0,0"):
        run(plain, problem.calls(0)[:1])


def test_wrong_offsets_stay_inside_the_tensors(plain: Path) -> None:
    problem = Problem(Case((8, 8), 16, 16, 4))
    problem.offsets = torch.tensor([0, 12, 1 << 40])
    y, z = run(plain, problem.calls(0)[:1])[0]
    assert y.isfinite().all()
    assert z.isfinite().all()
