"""The CUDA kernels of the routed adapter, executed on the CPU, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.emulation.adapter_cases import (
    CASES,
    FP32,
    GROUPS,
    LONG_SUMS,
    SPARSE,
    Case,
    Group,
    Problem,
    Siblings,
    assert_float32_accuracy,
    check,
    check_problem,
)
from tests.emulation.emulator import EmulatorFault, run

pytestmark = pytest.mark.emulation


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(plain: Path, case: Case) -> None:
    check(plain, case, (0, 1, 7))


@pytest.mark.parametrize("case", LONG_SUMS, ids=str)
def test_float32_stays_float32_in_long_sums(plain: Path, case: Case) -> None:
    problem = Problem(case)
    assert_float32_accuracy(problem, run(plain, problem.calls(7)))


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_layers_side_by_side_match_float64(plain: Path, group: Group) -> None:
    check_problem(plain, Siblings(group), (0, 7))


def test_offsets_beyond_32_bits(plain: Path) -> None:
    check(plain, SPARSE, (0,))


@pytest.mark.parametrize("row", [3, -2, 1 << 40])
@pytest.mark.parametrize("rank", [16, 300])
def test_a_row_that_does_not_exist_makes_nan_of_its_segment_only(plain: Path, rank: int, row: int) -> None:
    problem = Problem(Case((8, 70, 8), 136, 72, rank, bottleneck=True))
    good = run(plain, problem.calls(0))
    problem.rows_a[1] = problem.rows_b[1] = row + (row == 3)
    for name, found, expected in zip(("y z", "dz db", "dx da"), run(plain, problem.calls(0)), good, strict=True):
        for tensor, right in zip(found, expected, strict=True):
            if tensor.shape[0] == problem.n_tokens:
                assert tensor[8:78].isnan().all(), name
                assert torch.equal(tensor[:8], right[:8]), name
                assert torch.equal(tensor[78:], right[78:]), name
            else:
                assert tensor.isfinite().all(), name


def test_an_infinity_in_float32_makes_nan_of_its_token_only(plain: Path) -> None:
    problem = Problem(Case((8, 8), 64, 72, 4, FP32))
    good, _ = run(plain, problem.calls(0))[0]
    problem.x[3, 5] = torch.inf
    y, _ = run(plain, problem.calls(0))[0]
    assert y[3].isnan().all()
    assert torch.equal(torch.cat([y[:3], y[4:]]), torch.cat([good[:3], good[4:]]))


def test_row_minus_one_leaves_its_segment(plain: Path) -> None:
    problem = Problem(Case((8, 70, 8), 136, 72, 300, bottleneck=True))
    problem.rows_a[1] = problem.rows_b[1] = -1
    (y, z), (dz, *_), (dx, *_) = run(plain, problem.calls(0))
    assert torch.equal(y[8:78], problem.y[8:78])
    assert torch.equal(dx[8:78], problem.dx[8:78])
    for tensor in (z, dz):
        assert not tensor[8:78].any()
        assert tensor[:8].all()
    problem = Problem(Case((8, 70), 136, 72, 300, overwrite=True))
    problem.rows_a[1] = -1
    assert not run(plain, problem.calls(0))[2][0][8:].any()


@pytest.mark.parametrize(
    "case", [Case((8, 8), 16, 16, 4, a_stride=12), Case((8, 8), 16, 16, 4, shift=8, a_stride=8)], ids=str
)
def test_rows_of_a_that_are_apart_start_at_vectors(plain: Path, case: Case) -> None:
    for call in Problem(case).calls(0)[::2]:
        with pytest.raises(EmulatorFault, match="rows of A may be apart by multiples of 16 bytes only"):
            run(plain, [call])


@pytest.mark.parametrize("offsets", [[0, 12, 1 << 40], [0, -5, 16], [9, 2, 1]])
def test_wrong_offsets_stay_inside_the_tensors(plain: Path, offsets: list[int]) -> None:
    problem = Problem(Case((8, 8), 16, 16, 4))
    problem.offsets = torch.tensor(offsets)
    y, _ = run(plain, problem.calls(0))[0]
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows_b": [0, 4]}, r"rows must lie in 0\.\.3, or be -1 for no adapter, got 4 at index 1"),
        ({"rows_a": [-2, 0]}, r"rows must lie in 0\.\.2, or be -1 for no adapter, got -2 at index 0"),
        ({"offsets": [0, 9, 8]}, "offsets must rise from 0 to N = 16, got 8 at index 2"),
        ({"offsets": [0, 8, 15]}, "offsets must rise from 0 to N = 16, got 15 at index 2"),
        ({"offsets": [1, 8, 16]}, "offsets must rise from 0 to N = 16, got 1 at index 0"),
    ],
)
def test_values_are_refused_where_they_are_to_be_checked(
    plain: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, list[int]], message: str
) -> None:
    monkeypatch.setenv("MHR_CHECK_VALUES", "1")
    problem = Problem(Case((8, 8), 16, 16, 4))
    run(plain, problem.calls(0))
    for name, value in change.items():
        setattr(problem, name, torch.tensor(value))
    with pytest.raises(EmulatorFault, match=message):
        run(plain, problem.calls(0))
