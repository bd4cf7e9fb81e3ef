"""Average linkage against a tree worked out by hand, and against its definition."""

from __future__ import annotations

import pytest
import torch

from mhr.analysis.clusters import Join, average_linkage, leaf_order


def test_a_tree_by_hand() -> None:
    # 0 and 1 are near, 3 is nearer to them than 2 is.
    d = torch.tensor([[0.0, 1.0, 6.0, 3.0], [1.0, 0.0, 8.0, 5.0], [6.0, 8.0, 0.0, 9.0], [3.0, 5.0, 9.0, 0.0]])
    joins = average_linkage(d)
    assert joins == [Join(0, 1, 1.0, 2), Join(4, 3, 4.0, 3), Join(5, 2, pytest.approx((6 + 8 + 9) / 3), 4)]
    assert leaf_order(joins) == [0, 1, 3, 2]


def test_heights_are_means_over_pairs_and_never_fall() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(12, 3, generator=generator, dtype=torch.float64)
    distances = torch.cdist(points, points)
    joins = average_linkage(distances)
    members = {i: [i] for i in range(12)}
    for k, join in enumerate(joins, 12):
        members[k] = members[join.left] + members[join.right]
        assert join.size == len(members[k])
        assert join.height == pytest.approx(float(distances[members[join.left]][:, members[join.right]].mean()))
    assert [j.height for j in joins] == sorted(j.height for j in joins)
    order = leaf_order(joins)
    assert sorted(order) == list(range(12))
    for own in members.values():  # every branch is one stretch of leaves
        places = sorted(order.index(leaf) for leaf in own)
        assert places == list(range(places[0], places[0] + len(places)))


def test_one_leaf() -> None:
    assert average_linkage(torch.zeros(1, 1)) == []
    assert leaf_order([]) == [0]
