"""Products and their re-factoring: through QR of the stacked factors, and dense."""

from __future__ import annotations

import pytest
import torch

from mhr.adapters import LoraFactors, PlainAdapter
from mhr.adapters.refactor import Loss, refactor_dense, refactor_sum
from mhr.merging import merge, read_report
from tests.merging.loras import deltas, error, load, lora, save


def terms(*ranks: int, sizes: tuple[int, int] = (30, 20)) -> list[LoraFactors]:
    generator = torch.Generator().manual_seed(5)
    return [
        LoraFactors(
            torch.randn(sizes[0], r, generator=generator), torch.randn(r, sizes[1], generator=generator), 1.0 + i
        )
        for i, r in enumerate(ranks)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_bank_of_another_scaling_holds_the_update_of_16_bit_factors_exactly(dtype):
    (wide,) = terms(3)
    given = LoraFactors(wide.a.to(dtype), wide.b.to(dtype), 8.0)
    held = given.as_bank("", 8, 8.0)
    assert held["bank_a"].dtype == dtype
    a, b = (held[name][0, 0].double() for name in ("bank_a", "bank_b"))
    assert error(a @ b, given.scaling * given.a.double() @ given.b.double()) < 1e-7
    assert given.widened(8, 8.0).b.dtype == dtype


@pytest.mark.parametrize("ranks", [(4,), (1, 4), (3, 3, 3), (8, 16, 8)])
@pytest.mark.parametrize("rank", [1, 3, 7, 64])
def test_the_stacked_factors_give_the_best_factors_of_the_dense_sum(ranks, rank):
    given, weights = terms(*ranks), [0.5 / (i + 1) for i in range(len(ranks))]
    dense = sum(w * f.scaling * f.a.double() @ f.b.double() for w, f in zip(weights, given, strict=True))
    found, loss = refactor_sum(given, weights, rank)
    s = torch.linalg.svdvals(dense)
    lost = s[rank:].norm()
    assert found.scaling == 1
    assert found.rank == min(rank, sum(ranks), 20)
    assert loss.relative == pytest.approx(float(lost / s.norm()), abs=1e-7)
    assert float((found.delta().double() - dense).norm()) == pytest.approx(float(lost), rel=1e-4, abs=1e-5)
    other, same_loss = refactor_dense(dense, rank, torch.float64)
    assert same_loss.relative == pytest.approx(loss.relative, abs=1e-7)
    assert error(other.delta()[:5], found.delta()[:5]) < 1e-5
    # Both factors carry the singular values evenly.
    torch.testing.assert_close(found.a.norm(dim=0), found.b.norm(dim=1), rtol=1e-4, atol=1e-4)


def test_nothing_is_lost_of_nothing() -> None:
    found, loss = refactor_sum([LoraFactors(torch.zeros(4, 2), torch.zeros(2, 4), 1.0)], [1.0], 1)
    assert loss.relative == 0
    assert torch.equal(found.delta(), torch.zeros(4, 4))
    assert Loss().relative == 0


@pytest.mark.parametrize("rank", [None, 2, 8])
def test_delta_space_merges_products_and_tells_the_error(rank, tmp_path):
    one, two = lora(1, alpha=3.0), lora(2, rank=2)
    output = merge(
        save(tmp_path, one, two), method="weighted", weights=[1, 3], space="delta", rank=rank, output=tmp_path / "out"
    )
    report, truth = read_report(output), 0.25 * deltas(one) + 0.75 * deltas(two)
    assert report.space == "delta"
    assert report.rank == [min(rank or 4, 6)]
    assert report.error["overall"] == pytest.approx(error(deltas(load(output)), truth), abs=2e-6)
    assert report.error["layers"].keys() == one.layers.keys()
    assert (report.error["overall"] < 1e-7) == (rank == 8)
    worst = max(report.error["layers"].values())
    assert report.error["overall"] <= worst


def test_factor_space_has_no_error_to_tell(tmp_path):
    report = read_report(merge(save(tmp_path, lora(1), lora(2)), output=tmp_path / "out"))
    assert (report.space, report.error) == ("factor", {})


def test_ranks_that_differ_by_layer(tmp_path):
    """rank_pattern and alpha_pattern: each layer is merged in its own rank, and written in it where that is asked for."""

    def uneven(seed: int) -> PlainAdapter:
        wide, narrow = lora(seed, rank=6, alpha=9.0), lora(seed, rank=2)
        layers = {name: (wide if "v" in name else narrow).layers[name] for name in wide.layers}
        return PlainAdapter(layers, wide.base)

    one, two = uneven(1), uneven(2)
    folders = save(tmp_path, one, two)
    for to in ("peft-lora", "mhr"):
        for space in ("factor", "delta"):
            patterns = to == "peft-lora"
            output = merge(folders, space=space, to=to, patterns=patterns, output=tmp_path / f"{to} {space}")
            found = load(output)
            if space == "factor":
                for name, factors in found.layers.items():
                    x, y = one.layers[name], two.layers[name]
                    expected = x.scaling * (x.a + y.a) @ (x.b + y.b) / 4
                    assert error(factors.scaling * factors.a @ factors.b, expected) < 1e-6
            else:
                exact = (deltas(one) + deltas(two)) / 2
                assert error(deltas(found), exact) == pytest.approx(read_report(output).error["overall"], abs=1e-6)
            assert read_report(output).rank == [2, 6]
    assert {f.rank for f in load(tmp_path / "peft-lora delta").layers.values()} == {2, 6}
    one_rank = merge(folders, to="peft-lora", output=tmp_path / "one rank")
    assert read_report(one_rank).rank == [6]
    assert error(deltas(load(one_rank)), deltas(load(tmp_path / "peft-lora factor"))) < 1e-6
