"""Tests over seeds: against scipy and by hand, and how often they see what is not there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from mhr.analysis.bootstrap import crossed_interval
from mhr.analysis.compare import paired
from mhr.analysis.seed_tests import EXACT_UP_TO, equivalence, holm, sign_flips, t_test

MEANS = [0.03, -0.01, 0.02, 0.04, 0.005]


def test_t_over_seed_means_is_that_of_scipy() -> None:
    assert t_test(MEANS) == pytest.approx(stats.ttest_1samp(MEANS, 0.0).pvalue)
    for side, name in (("above", "greater"), ("below", "less")):
        expected = stats.ttest_1samp(MEANS, 0.02, alternative=name).pvalue
        assert t_test(MEANS, 0.02, side) == pytest.approx(expected)
    assert t_test([0.1]) is None


def test_equal_means_are_as_sure_as_their_signs() -> None:
    assert t_test([0.02] * 3) == t_test([-0.02] * 3) == 2 / 8
    assert t_test([0.02] * 3, side="above") == 1 / 8
    assert t_test([0.02] * 3, side="below") == 1.0
    assert t_test([0.02] * 3, 0.02) == t_test([0.02] * 3, 0.02, "above") == 1.0
    assert equivalence([0.0] * 3, 0.02) == 1 / 8


@pytest.mark.parametrize("means", [[5.5e-17] * 6, [1e-17, 2e-17, 3e-17, 1e-17, 2e-17, 5e-17], [0.0] * 6])
def test_what_rounding_leaves_of_0_shows_nothing(means: list[float]) -> None:
    """As of differences between tasks that cancel one another."""
    assert sign_flips(means) == t_test(means) == 1.0
    found = paired(np.array(means)[:, None])
    assert (found.better, found.worse, found.difference, found.p, found.p_flips) == (0, 0, 0.0, 1.0, 1.0)


def test_whole_seeds_are_flipped_in_all_ways() -> None:
    totals = [
        abs(sum(s * m for s, m in zip(signs, MEANS, strict=True))) for signs in itertools.product((1, -1), repeat=5)
    ]
    assert sign_flips(MEANS) == sum(t >= abs(sum(MEANS)) - 1e-12 for t in totals) / 32
    assert sign_flips([1.0] * 5) == 2 / 32
    assert sign_flips([0.0, 0.0]) == sign_flips([0.2, 0.0]) == 1.0
    result = stats.permutation_test((MEANS,), np.mean, permutation_type="samples", n_resamples=10**4)
    assert sign_flips(MEANS) == pytest.approx(result.pvalue)


def test_of_many_seeds_signs_are_drawn() -> None:
    means = np.random.default_rng(0).normal(0.3, 1, EXACT_UP_TO).tolist()
    drawn = sign_flips([*means, 1e-9])
    assert drawn == pytest.approx(sign_flips(means), abs=0.006)
    assert sign_flips([1.0] * 40) == 1 / (1 + 2**16)


def test_equivalence_is_two_one_sided_tests() -> None:
    expected = max(
        stats.ttest_1samp(MEANS, -0.05, alternative="greater").pvalue,
        stats.ttest_1samp(MEANS, 0.05, alternative="less").pvalue,
    )
    assert equivalence(MEANS, 0.05) == pytest.approx(expected)
    assert equivalence([0.1], 0.05) is None


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def drawn(
    seeds: float, residual: float, n: int, tasks: int, random: np.random.Generator, mean: float = 0.0
) -> np.ndarray:
    """Paired differences: a part of each task, of each seed, and the residual."""
    task, seed = random.normal(0, 0.1, (1, tasks)), random.normal(0, seeds, (n, 1))
    return mean + task - task.mean() + seed + random.normal(0, residual, (n, tasks))


@pytest.mark.parametrize(
    ("seeds", "residual", "n", "tasks"),
    [
        pytest.param(0.008, 0.071, 5, 12, id="suite: MHR - Poly"),
        pytest.param(0.048, 0.123, 5, 12, id="suite: Poly - LoRA"),
        pytest.param(0.047, 0.071, 3, 7, id="real: MHR - Poly"),
        pytest.param(0.048, 0.123, 16, 15, id="a plan of 16 seeds"),
    ],
)
def test_false_alarms_are_no_more_than_the_level(seeds: float, residual: float, n: int, tasks: int) -> None:
    """Flipping the signs of (task, seed) pairs, with these parts, saw a difference in 9 to 22% of cases where there is none."""
    random, draws = np.random.default_rng(1), 1500
    means = [drawn(seeds, residual, n, tasks, random).mean(axis=1) for _ in range(draws)]
    error = 3 * (0.05 * 0.95 / draws) ** 0.5
    assert np.mean([(t_test(m) or 1) < 0.05 for m in means]) == pytest.approx(0.05, abs=error)
    if n <= 5:
        assert np.mean([sign_flips(m) <= 0.05 for m in means]) <= 0.05 + error
    edge = [m + 0.02 for m in means]  # on the border of what counts as the same
    assert np.mean([(equivalence(m, 0.02) or 1) < 0.05 for m in edge]) <= 0.05 + error


@pytest.mark.parametrize(("seeds", "tasks"), [(2, 1), (3, 1), (6, 1), (3, 4)])
@pytest.mark.parametrize("value", [0.0, 0.05])
def test_of_what_does_not_vary_no_interval_is_known(value: float, seeds: int, tasks: int) -> None:
    """One of no width would be surer than the test of the same seeds, which counts their signs."""
    same = np.full((seeds, tasks), value) + 5e-17 * np.arange(seeds)[:, None]
    found = paired(same)
    assert found.interval is None
    assert found.p == (1.0 if value == 0 else 2 / 2**seeds)
    assert paired(same + np.array([0.01, *[0.0] * (seeds - 1)])[:, None]).interval is not None


def test_intervals_cover_other_seeds_and_tasks() -> None:
    """Of 300 studies whose tasks were drawn too, few seeds and many."""
    for n, tasks in ((4, 10), (16, 15)):
        random, covered = np.random.default_rng(2), 0
        for _ in range(300):
            parts = (
                random.normal(0, 0.02, (n, 1)) + random.normal(0, 0.05, (1, tasks)) + random.normal(0, 0.08, (n, tasks))
            )
            found = crossed_interval(0.01 + parts, draws=500)
            assert found is not None
            covered += found[0] <= 0.01 <= found[1]
        assert 0.91 <= covered / 300 <= 1.0
