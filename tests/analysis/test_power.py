"""Power from variance components: against scipy, against simulation, and cases that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mhr.analysis.power import Components, components, detectable, power, power_of_equivalence, seeds_for
from mhr.analysis.seed_tests import equivalence, t_test


@pytest.mark.parametrize(
    ("difference", "sd", "n"), [(0.02, 0.022, 5), (0.02, 0.043, 16), (0.0, 0.02, 3), (0.1, 0.02, 2)]
)
def test_power_is_that_of_the_noncentral_t(difference: float, sd: float, n: int) -> None:
    shift, limit = difference / (sd / n**0.5), stats.t.isf(0.025, n - 1)
    expected = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
    assert power(difference, sd, n) == pytest.approx(expected, abs=1e-3)


def test_seeds_for_two_points_of_a_pilot() -> None:
    """The first study's components (points) and how many seeds its comparisons would have needed with 12 tasks."""
    assert seeds_for(2.0, Components(0.8, 7.1).of_seed_means(12)) == 12
    assert seeds_for(2.0, Components(2.6, 11.7).of_seed_means(12)) == 38
    assert seeds_for(2.0, Components(2.6, 11.7).of_seed_means(24)) == 27
    assert seeds_for(0.0001, 5.0) is None


def test_detectable_and_seeds_are_inverses_of_power() -> None:
    found = detectable(0.02, 16)
    assert found is not None
    assert power(found, 0.02, 16) == pytest.approx(0.8, abs=1e-6)
    n = seeds_for(found, 0.02)
    assert n == 16
    assert power(found, 0.02, n - 1) < 0.8
    assert detectable(0.02, 1) is None
    assert power(0.02, 0.01, 1) == power_of_equivalence(0.02, 0.01, 1) == 0.0


@pytest.mark.parametrize("sd", [0.0, 5.5e-17])
def test_seeds_that_are_all_alike_are_as_sure_as_their_signs(sd: float) -> None:
    """Also where rounding has set them apart."""
    assert (power(0.02, sd, 6), power(0.02, sd, 5), power(0.0, sd, 6)) == (1.0, 0.0, 0.0)
    assert (power_of_equivalence(0.02, sd, 5), power_of_equivalence(0.02, sd, 4)) == (1.0, 0.0)
    assert (detectable(sd, 6), detectable(sd, 5)) == (0.0, None)
    assert seeds_for(0.02, sd) == 6


def test_the_power_of_a_plan_is_what_simulated_studies_find() -> None:
    random, parts, n, tasks, draws = np.random.default_rng(0), Components(0.01, 0.07), 10, 15, 2000
    sd = parts.of_seed_means(tasks)
    studies = [
        (random.normal(0, parts.seeds, (n, 1)) + random.normal(0, parts.residual, (n, tasks))).mean(axis=1)
        for _ in range(draws)
    ]
    found = np.mean([(t_test(means + 0.02) or 1) < 0.05 for means in studies])
    same = np.mean([(equivalence(means, 0.02) or 1) < 0.05 for means in studies])
    assert found == pytest.approx(power(0.02, sd, n), abs=0.035)
    assert same == pytest.approx(power_of_equivalence(0.02, sd, n), abs=0.035)
    assert 0.3 < same < found < 0.95


def test_components_are_found_again() -> None:
    random = np.random.default_rng(3)
    differences = random.normal(0, 0.03, (400, 1)) + random.normal(0, 0.2, (1, 30)) + random.normal(0, 0.1, (400, 30))
    found = components(differences)
    assert found is not None
    assert found.seeds == pytest.approx(0.03, rel=0.15)
    assert found.residual == pytest.approx(0.1, rel=0.03)
    assert found.of_seed_means(30) == pytest.approx(differences.mean(axis=1).std(ddof=1), rel=1e-6)
    assert components(differences[:1]) is None
    assert components(differences[:, :1]) is None
    crossed = components(
        np.array([[0.1, -0.1], [-0.1, 0.1]])
    )  # tasks differ more than their means: no part of the seeds
    assert crossed is not None
    assert (crossed.seeds, crossed.residual) == (0.0, pytest.approx(0.2))
