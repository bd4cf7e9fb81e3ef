"""Rank correlation and Mantel's test."""

from __future__ import annotations

import pytest
import torch

from mhr.analysis.agreement import agreement, average_ranks, shared_skills
from mhr.analysis.routing import Routing


def test_ranks_share_the_mean_of_equals() -> None:
    assert average_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_skills_that_tasks_share() -> None:
    found = shared_skills(["rev-last", "rev-first", "min-box"])
    assert found is not None
    assert found.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 2]]
    assert shared_skills(["rev-last", "boolq"]) is None


def test_full_agreement_is_certain_and_none_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(9, 9, generator=generator)
    a = a + a.T
    same = agreement(a, a.double() ** 3, n_permutations=400)  # ranks do not see the cube
    assert same is not None
    assert same.correlation == pytest.approx(1.0)
    assert same.p == pytest.approx(1 / 401)
    assert same.pairs == 36
    other = torch.rand(9, 9, generator=generator)
    unlike = agreement(a, other + other.T, n_permutations=400)
    assert unlike is not None
    assert abs(unlike.correlation) < 0.5
    assert unlike.p > 0.05
    against = agreement(a, -a, n_permutations=400)
    assert against is not None
    assert against.p > 0.99  # one-sided


@pytest.mark.parametrize("method", ["private", "hash", "uniform"])
@pytest.mark.parametrize(("tasks", "groups"), [(6, 12), (12, 1), (24, 36)])
def test_tasks_that_are_all_as_far_apart_agree_with_nothing(method: str, tasks: int, groups: int) -> None:
    """Their cosines are equal, save for rounding, which has ranks as well."""
    weights = {
        "private": torch.eye(tasks)[:, None],
        "hash": torch.eye(8)[torch.arange(tasks) % 2][:, None],  # two skills: two values
        "uniform": torch.full((tasks, 1, 3), 1 / 3),
    }[method]
    similarity = Routing([f"task-{i}" for i in range(tasks)], {f"group-{i}": weights for i in range(groups)}).similarity
    apart = similarity[~torch.eye(tasks, dtype=torch.bool)].unique()
    assert len(apart) == (2 if method == "hash" else 1)
    truth = torch.rand(tasks, tasks, generator=torch.Generator().manual_seed(0))
    found = agreement(similarity, truth + truth.T, n_permutations=10)
    assert (found is None) is (method != "hash")


def test_nothing_to_correlate() -> None:
    assert agreement(torch.eye(2), torch.eye(2)) is None
    assert agreement(torch.ones(4, 4), torch.rand(4, 4)) is None
