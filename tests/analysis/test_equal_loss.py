"""Alignment at equal loss: where runs are read, and where they are not."""

from __future__ import annotations

import pytest

from mhr.analysis.equal_loss import at_equal_loss, at_loss, still_learning

FAST = [(2.0, 0.4), (1.0, 0.2), (0.3, 0.1), (0.2, 0.0)]
SLOW = [(2.2, 0.5), (1.6, 0.3), (1.2, 0.2)]


def test_points_of_a_run_that_stands_still_are_left_out() -> None:
    assert still_learning(FAST) == FAST[:2]  # 0.3 is within a tenth of the whole fall of 1.8
    assert still_learning(SLOW) == SLOW[:2]
    assert still_learning(FAST[:1]) == []
    assert still_learning([(1.0, 0.3), (1.0, 0.9)]) == []


def test_between_checkpoints_by_a_straight_line() -> None:
    assert at_loss(FAST, 1.5) == pytest.approx(0.3)
    assert at_loss(FAST, 2.0) == 0.4
    assert at_loss(FAST, 2.1) is None
    assert at_loss([(1.0, 0.1), (1.0, 0.2)], 1.0) == 0.1
    assert at_loss([(1.0, 0.1), (1.4, 0.5), (0.6, 0.0)], 1.2) == pytest.approx(0.3)  # a loss that rose is passed first


def test_runs_are_compared_at_losses_that_all_pass() -> None:
    found = at_equal_loss([FAST, SLOW], levels=3)
    assert [loss for loss, _ in found] == pytest.approx([2.0, 1.8, 1.6])
    assert found[0][1] == pytest.approx([0.4, 0.3 + 0.2 * 0.4 / 0.6])
    assert found[2][1] == pytest.approx([0.32, 0.3])
    assert at_equal_loss([FAST, SLOW], levels=1)[0][0] == pytest.approx(1.8)


def test_runs_that_share_no_loss_are_not_compared() -> None:
    assert at_equal_loss([FAST, [(9.0, 0.1), (8.0, 0.1), (7.0, 0.1)]]) == []
    assert at_equal_loss([FAST, SLOW[:1]]) == []
