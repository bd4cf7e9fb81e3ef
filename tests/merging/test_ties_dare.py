"""TIES and DARE against their definitions, elementwise."""

from __future__ import annotations

import pytest
import torch

from mhr.adapters import LoraFactors, PlainAdapter
from mhr.merging import combine_dare, combine_ties, merge
from mhr.merging.dare import keep
from tests.merging.loras import BASE, deltas, load, lora, save


class Named:
    """What the methods look at of a source."""

    def __init__(self, digest: str):
        self.digest = digest


def ties_of(values: list[list[float]], density: float, weights: list[float] | None = None) -> list[float]:
    n = len(values)
    weights = weights or [1 / n] * n
    merge = combine_ties([Named(str(i)) for i in range(n)], weights, density=density).tensors
    return merge("x", [torch.tensor(v) for v in values]).tolist()


def test_ties_by_hand() -> None:
    # Both agree; the larger sign wins; a lone one stays; what is cancelled out counts as plus.
    values = [[1.0, 3.0, 0.0, 2.0], [3.0, -1.0, -5.0, -2.0]]
    assert ties_of(values, 1.0) == [2.0, 3.0, -5.0, 2.0]
    # Half of each is kept: 3, 2 and 3, -5.
    assert ties_of(values, 0.5) == [3.0, 3.0, -5.0, 2.0]
    # The second weighs three times as much and turns the sign of the last.
    assert ties_of(values, 1.0, [0.25, 0.75]) == [2.5, 3.0, -5.0, -2.0]


def test_ties_keeps_at_least_one_number() -> None:
    assert ties_of([[1.0, 5.0, 2.0], [0.5, 6.0, 1.0]], 0.01) == [0.0, 5.5, 0.0]


def test_ties_trims_each_tensor_by_itself(tmp_path):
    """One large layer must not leave nothing of a small one."""
    one, two = lora(1), lora(2)
    for adapter in (one, two):
        factors = adapter.layers["block.0.q"]
        adapter.layers["block.0.q"] = LoraFactors(1e3 * factors.a, factors.b, factors.alpha)
    found = load(merge(save(tmp_path, one, two), method="ties", density=0.2, space="factor", output=tmp_path / "out"))
    for factors in found.layers.values():
        assert 0.2 <= float((factors.a != 0).float().mean()) <= 0.4


def test_dare_drops_the_share_and_keeps_the_mean() -> None:
    x = torch.ones(200, 200)
    dare = combine_dare([Named("a")], [1.0], drop=0.75, seed=3).tensors
    found = dare("x", [x])
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(found, dare("x", [x]))
    assert not torch.equal(found, dare("y", [x]))
    assert not torch.equal(found, combine_dare([Named("a")], [1.0], drop=0.75, seed=4).tensors("x", [x]))


def test_dare_draws_for_each_input_apart() -> None:
    x = torch.ones(50, 50)
    found = combine_dare([Named("a"), Named("b")], [0.5, 0.5], drop=0.5).tensors("x", [x, x])
    assert set(found.unique().tolist()) == {0.0, 1.0, 2.0}
    assert not torch.equal(keep(x.shape, 0.5, "0/a/x"), keep(x.shape, 0.5, "0/b/x"))


def test_dare_of_many_draws_is_the_average(tmp_path):
    one = PlainAdapter({"q": lora(1).layers["block.0.q"]}, BASE)
    two = PlainAdapter({"q": lora(2).layers["block.0.q"]}, BASE)
    folders, exact = save(tmp_path, one, two), (deltas(one) + deltas(two)) / 2
    draws = [
        deltas(load(merge(folders, method="dare", drop=0.5, seed=s, rank=16, output=tmp_path / f"{s}")))
        for s in range(24)
    ]
    apart = torch.stack(draws).mean(0) - exact
    assert float(apart.norm()) < 0.5 * float((draws[0] - exact).norm())
