"""The emulated kernels under sanitizers: every access of global and shared memory, and every pair of unordered ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.emulation import emulator
from tests.emulation.adapter_cases import (
    BF16,
    CASES,
    FP32,
    GROUPS,
    SPARSE,
    Case,
    Group,
    Problem,
    Siblings,
    with_wrong_offsets,
)
from tests.emulation.emulator import Call, run
from tests.emulation.test_mix import ITEMS, backward_call, forward_call
from tests.emulation.test_route import calls as route_calls
from tests.emulation.test_weighted_average import call as average_call

pytestmark = [pytest.mark.emulation, pytest.mark.slow]

# The race detector keeps a history of every access: small cases that still fill the pipelines and meet every barrier.
RACE_CASES = (
    Case((70, 1, 0, 33), 320, 200, 16),
    Case((40, 20), 72, 136, 5, bottleneck=True),
    Case((90,), 128, 64, 64, bottleneck=True),
    Case((20,), 40, 72, 100, BF16),
    Case((70,), 136, 40, 20, FP32, bottleneck=True),
    Case((33,), 35, 33, 3, FP32),
    Case((70,), 64, 520, 16, bottleneck=True, blocks=1),
    Case((9,), 576, 520, 16),
    Case((5, 9, 1, 20), 520, 264, 16, bottleneck=True, blocks=4),
    Case((5, 9, 1, 20), 136, 72, 33, FP32),
    Case((30, 7, 5, 0, 11) * 2, 72, 264, 16, bottleneck=True, absent=True),
    Case((70, 60, 33, 80), 72, 1032, 16, absent=True, given=True),
    Case((5, 9, 1), 72, 136, 300, bottleneck=True, blocks=4, given=True),
)
RACE_GROUPS = (
    Group(Case((20, 9, 1), 576, 0, 0, blocks=4), ((16, 72), (5, 520))),
    Group(Case((5, 9, 1, 20), 136, 0, 0, FP32), ((4, 72), (33, 40))),
)


def driver(flavour: str) -> Path:
    reason = emulator.missing_tools()
    if reason:
        pytest.skip(reason)
    return emulator.build(flavour)


def other_calls() -> list[Call]:
    tensors = [torch.randn(300, dtype=torch.float32) for _ in range(3)]
    average = average_call(tensors, [0.5, 0.25, 0.25])
    return [forward_call(ITEMS, 7), backward_call(ITEMS, 7), *route_calls(7), average]


def test_every_access_is_inside_and_aligned() -> None:
    path = driver("address")
    for case in (*CASES, SPARSE):
        run(path, Problem(case).calls(7))
    for group in GROUPS:
        run(path, Siblings(group).calls(7))
    run(path, other_calls())


def test_wrong_offsets_leave_no_tensor() -> None:
    """Falling ones promise more chunks of partial sums than the scratch holds."""
    run(driver("address"), with_wrong_offsets())


def test_no_two_accesses_race() -> None:
    path = driver("race")
    for case in RACE_CASES:
        run(path, Problem(case).calls(7))
    for group in RACE_GROUPS:
        run(path, Siblings(group).calls(7))
    run(path, other_calls())
