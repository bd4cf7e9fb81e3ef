"""The CUDA kernels of route and its backward, executed on the CPU, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhr.ops.route import route_backward_reference, route_reference
from tests.emulation.emulator import Call, EmulatorFault, Output, run

pytestmark = pytest.mark.emulation

# T, H, S and U: more skills than a warp has lanes, more rows than a warp looks at once, tasks without a row.
SHAPES = ((1, 1, 1, 1), (5, 3, 8, 7), (3, 2, 33, 70), (9, 8, 5, 40))


def inputs(shape: tuple[int, int, int, int], noisy: bool) -> tuple[torch.Tensor, ...]:
    """Logits, tasks (one in ten of them unseen), noise or None, gradient."""
    n_tasks, heads, skills, rows = shape
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(n_tasks, heads, skills, generator=generator)
    tasks = torch.randint(n_tasks, (rows,), generator=generator)
    tasks[torch.rand(rows, generator=generator) < 0.1] = -1
    noise, dw = torch.randn(2, rows, heads, skills, generator=generator)
    return logits, tasks, noise if noisy else None, dw


def calls(seed: int) -> list[Call]:
    """Forward and backward of every shape, with noise and without."""
    made = []
    for shape in SHAPES:
        n_tasks, heads, skills, rows = shape
        for noisy in (False, True):
            logits, tasks, noise, dw = inputs(shape, noisy)
            common = [*shape, 0.75, logits, tasks, noise]
            made.append(Call("route", [*common, Output((rows, heads, skills))], seed))
            made.append(Call("route_backward", [*common, dw, Output((n_tasks, heads, skills))], seed))
    return made


def compare(results: list[list[torch.Tensor]]) -> None:
    found = iter(results)
    for shape in SHAPES:
        for noisy in (False, True):
            logits, tasks, noise, dw = inputs(shape, noisy)
            exact = logits.double(), tasks, None if noise is None else noise.double(), 0.75
            ((w,), (d_logits,)) = next(found), next(found)
            torch.testing.assert_close(w.double(), route_reference(*exact), rtol=2e-6, atol=1e-9)
            torch.testing.assert_close(
                d_logits.double(), route_backward_reference(dw.double(), *exact), rtol=2e-6, atol=2e-6
            )


@pytest.mark.parametrize("seed", [0, 7])
def test_matches_float64(plain: Path, seed: int) -> None:
    compare(run(plain, calls(seed)))


def test_a_task_that_is_not_there_gets_no_weights(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [2, 1, 3, 2, 1.0, torch.zeros(2, 1, 3), torch.tensor([2, 0]), None, Output((2, 1, 3))]
    ((w,),) = run(plain, [Call("route", arguments)])
    assert w[0].isnan().all()
    torch.testing.assert_close(w[1], torch.full((1, 3), 1 / 3))
    monkeypatch.setenv("MHR_CHECK_VALUES", "1")
    with pytest.raises(EmulatorFault, match="tasks must be below T = 2, got 2 at index 0"):
        run(plain, [Call("route", arguments)])
