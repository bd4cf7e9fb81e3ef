"""Sparsifier x consensus: TIES, DARE, DELLA, breadcrumbs and sums against their definitions, elementwise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mhr.adapters import FilmVectors, LoraFactors, PlainAdapter, plain_checkpoint, write_adapter
from mhr.errors import ConfigError, MergeError
from mhr.merging import MERGE_METHODS, combine_task_vectors, merge, read_report
from mhr.merging.plan import combiners
from mhr.merging.sparsifiers import keep, uniform_numbers
from tests.merging.loras import BASE, Named, deltas, error, ia3, load, lora, save


def combine(name: str, digests: list[str], weights: list[float], **settings):
    """What a method makes of tensors of sources that hold this."""
    return combiners[name].combine([Named(digest) for digest in digests], weights, **settings).tensors


def ties_of(values: list[list[float]], density: float, weights: list[float] | None = None) -> list[float]:
    n = len(values)
    weights = weights or [1 / n] * n
    merge = combine("ties", [str(i) for i in range(n)], weights, density=density)
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
    dare = combine("dare", ["a"], [1.0], drop=0.75, seed=3)
    found = dare("x", [x])
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(found, dare("x", [x]))
    assert not torch.equal(found, dare("y", [x]))
    assert not torch.equal(found, combine("dare", ["a"], [1.0], drop=0.75, seed=4)("x", [x]))


def test_dare_draws_for_each_input_apart() -> None:
    x = torch.ones(50, 50)
    found = combine("dare", ["a", "b"], [0.5, 0.5], drop=0.5)("x", [x, x])
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


# ---- the table, re-stated in float64 ---------------------------------------------------------------------------------

SETTINGS = {
    None: {},
    "magnitude": {"density": 0.4},
    "random": {"drop": 0.5, "seed": 3},
    "rank": {"drop": 0.5, "epsilon": 0.6, "seed": 3},
    "both-ends": {"density": 0.4, "gamma": 0.1},
}
TABLE = [name for name, row in MERGE_METHODS.items() if row.consensus is not None]


def thinned(x: np.ndarray, sparsifier: str | None, digest: str) -> np.ndarray:
    """The sparsifiers by sorting, one element after the other."""
    settings = SETTINGS[sparsifier]
    uniform = uniform_numbers(torch.Size(x.shape), f"3/{digest}/q").double().numpy()
    if sparsifier == "random":
        return np.where(uniform >= 0.5, x / 0.5, 0)
    if sparsifier == "rank":
        rows, columns = x.shape
        found = np.zeros_like(x)
        for j in range(columns):
            for rank, i in enumerate(sorted(range(rows), key=lambda i: abs(x[i, j]))):
                dropped = 0.5 + 0.3 - 0.6 * rank / (rows - 1)
                found[i, j] = x[i, j] / (1 - dropped) if uniform[i, j] >= dropped else 0
        return found
    order = np.argsort(-np.abs(x).flatten())
    begins = int(0.1 * x.size) if sparsifier == "both-ends" else 0
    kept = order[begins : begins + int(settings.get("density", 1) * x.size)]
    found = np.zeros(x.size)
    found[kept] = x.flatten()[kept]
    return found.reshape(x.shape)


def agreed(values: list[np.ndarray], consensus: str, weights: list[float], scale: float) -> np.ndarray:
    """The consensus, one element after the other."""
    found = np.zeros_like(values[0])
    for place in np.ndindex(*found.shape):
        numbers = [v[place] for v in values]
        total = sum(w * n for w, n in zip(weights, numbers, strict=True))
        if consensus == "sign":
            chosen = [k for k, n in enumerate(numbers) if n != 0 and (n > 0) == (total >= 0)]
            weight = sum(weights[k] for k in chosen)
            total = sum(weights[k] * numbers[k] for k in chosen) / weight if chosen else 0
        found[place] = total * (1 if consensus == "mean" else scale)
    return found


@pytest.mark.parametrize("name", TABLE)
def test_every_cell_is_its_definition(name, tmp_path):
    """At the full rank re-factoring loses nothing, so what is written has to be the formula of the whole updates."""
    row, sizes = MERGE_METHODS[name], {"q": (12, 9)}
    adapters = [lora(seed, alpha=1.0 + seed, dtype=torch.float64, sizes=sizes) for seed in (1, 2, 3)]
    folders = save(tmp_path, *adapters)
    given = [0.5, 0.2, 0.8] if row.sums else [0.5, 0.2, 0.3]
    settings = SETTINGS[row.sparsifier] | ({"scale": 1.5} if row.consensus != "mean" else {})
    output = merge(folders, method=name, weights=given, rank=9, output=tmp_path / "out", **settings)
    digests = [load(folder).digest for folder in folders]
    values = [
        thinned(adapter.layers["q"].delta().numpy(), row.sparsifier, digest)
        for adapter, digest in zip(adapters, digests, strict=True)
    ]
    expected = agreed(values, row.consensus, given, 1.5)
    found = load(output).layers["q"].delta().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    told = [i["weight"] for i in read_report(output).inputs]
    assert told == pytest.approx([w if row.consensus == "mean" else 1.5 * w for w in given])


def test_the_table_has_these_cells() -> None:
    found = {name: (MERGE_METHODS[name].sparsifier, MERGE_METHODS[name].consensus) for name in TABLE}
    assert found == {
        "task_arithmetic": (None, "sum"),
        "magnitude_prune": ("magnitude", "sum"),
        "ties": ("magnitude", "sign"),
        "dare": ("random", "mean"),
        "dare_linear": ("random", "sum"),
        "dare_ties": ("random", "sign"),
        "della_linear": ("rank", "sum"),
        "della": ("rank", "sign"),
        "breadcrumbs": ("both-ends", "sum"),
        "breadcrumbs_ties": ("both-ends", "sign"),
    }


@pytest.mark.parametrize("sparsifier", [name for name in SETTINGS if name])
@pytest.mark.parametrize("consensus", ["sum", "mean", "sign"])
def test_any_sparsifier_goes_with_any_consensus(sparsifier, consensus):
    """Also in pairs that have no name."""
    x = [np.random.default_rng(i).normal(size=(10, 6)) for i in range(3)]
    row = dataclasses.replace(MERGE_METHODS["ties"], sparsifier=sparsifier, consensus=consensus)
    made = combine_task_vectors(row, [Named(str(i)) for i in range(3)], [0.2, 0.3, 0.5], SETTINGS[sparsifier])
    found = made.tensors("q", [torch.from_numpy(v) for v in x]).numpy()
    expected = agreed([thinned(v, sparsifier, str(i)) for i, v in enumerate(x)], consensus, [0.2, 0.3, 0.5], 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_magprune_keeps_large_ones_more_often_and_the_mean() -> None:
    x = torch.arange(1.0, 201.0)[:, None].expand(200, 400).contiguous()
    found = combine("della_linear", ["a"], [1.0], drop=0.6, epsilon=0.4, seed=1)("x", [x])
    kept = (found != 0).float().mean(dim=1)
    assert float(kept[:20].mean()) == pytest.approx(0.22, abs=0.02)
    assert float(kept[-20:].mean()) == pytest.approx(0.58, abs=0.02)
    assert float((found.mean(dim=1) / x[:, 0]).mean()) == pytest.approx(1.0, abs=0.02)


def test_breadcrumbs_drop_both_ends_and_fewer_large_ones_where_the_share_asks_for_them() -> None:
    x = torch.tensor([5.0, -1.0, 4.0, 2.0, -3.0, 0.5, 6.0, -7.0, 8.0, 9.0])
    half = combine("breadcrumbs", ["a"], [1.0], density=0.5, gamma=0.2)("x", [x])
    assert half.tolist() == [5.0, 0.0, 4.0, 0.0, -3.0, 0.0, 6.0, -7.0, 0.0, 0.0]
    most = combine("breadcrumbs", ["a"], [1.0], density=0.9, gamma=0.2)("x", [x])
    assert most.tolist() == [5.0, -1.0, 4.0, 2.0, -3.0, 0.5, 6.0, -7.0, 8.0, 0.0]


def test_a_sum_of_copies_is_so_many_times_the_copy_and_a_negative_weight_takes_away(tmp_path):
    one, two = lora(1), lora(2)
    folders = save(tmp_path, one, two)
    found = load(merge([folders[0]] * 3, method="task_arithmetic", output=tmp_path / "three"))
    assert error(deltas(found), 3 * deltas(one)) < 1e-6
    third = merge([folders[0]] * 3, method="task_arithmetic", scale=1 / 3, output=tmp_path / "mean")
    assert error(deltas(load(third)), deltas(one)) < 1e-6
    less = merge(folders, method="task_arithmetic", weights=[1, -0.5], rank=8, output=tmp_path / "less")
    assert error(deltas(load(less)), deltas(one) - 0.5 * deltas(two)) < 1e-6
    assert [i["weight"] for i in read_report(less).inputs] == [1, -0.5]
    none = merge(folders, method="task_arithmetic", weights=[0, -1], output=tmp_path / "negated")
    assert error(deltas(load(none)), -deltas(two)) < 1e-6


def test_a_sum_of_ia3_vectors_is_one_of_what_they_change(tmp_path):
    one, two = ia3(1), ia3(2)
    output = merge(save(tmp_path, one, two), method="task_arithmetic", scale=0.5, output=tmp_path / "out")
    for name, layer in load(output).layers.items():
        torch.testing.assert_close(layer.v, 1 + 0.5 * (one.layers[name].v - 1 + two.layers[name].v - 1))


def test_modules_are_averaged_by_the_ratio_of_the_weights_of_a_sum(tmp_path):
    one, two = (lora(i, modules={"head": {"weight": torch.full((2, 2), float(i))}}) for i in (1, 2))
    folders = save(tmp_path, one, two)
    found = load(merge(folders, method="task_arithmetic", weights=[3, 1], scale=2.0, output=tmp_path / "out"))
    assert torch.equal(found.modules["head"]["weight"], torch.full((2, 2), 1.25))
    with pytest.raises(MergeError, match="brings 'head' whole, which is averaged and takes no weight below 0"):
        merge(folders, method="task_arithmetic", weights=[3, -1], output=tmp_path / "no")


@pytest.mark.parametrize(
    ("name", "given", "error_", "match"),
    [
        ("della", {"drop": 0.9, "epsilon": 0.3}, ConfigError, "so drop rates go from 0.75 to 1.05: expected at least 0"),
        ("della", {"drop": 0.1, "epsilon": 0.3}, ConfigError, "from -0.05 to 0.25"),
        ("breadcrumbs", {"gamma": 1.0}, ConfigError, "gamma is 1.0"),
        ("task_arithmetic", {"scale": 0.0}, ConfigError, "scale is 0.0"),
        ("task_arithmetic", {"density": 0.5}, MergeError, "'task_arithmetic' takes no density: .* choose magnitude_prune, ties"),
        ("dare", {"scale": 2.0}, MergeError, "'dare' takes no scale"),
        ("task_arithmetic", {"weights": [0, 0]}, MergeError, "expected one that is not 0"),
        ("task_arithmetic", {"weights": [1, float("inf")]}, ConfigError, "weights has inf, expected a number"),
        ("ties", {"weights": [1, -1]}, MergeError, "at least 0"),
        ("dare_linear", {"space": "factor"}, MergeError, "does not work in space 'factor'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(name, given, error_, match, tmp_path):
    folders = save(tmp_path, lora(1), lora(2))
    with pytest.raises(error_, match=match):
        merge(folders, method=name, output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_sum_of_film_vectors_is_one_of_scales_and_shifts(tmp_path):
    adapters = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        vectors = [torch.randn(8, generator=generator) for _ in range(2)]
        adapters.append(PlainAdapter({"out": FilmVectors(*vectors)}, BASE))
    folders = [write_adapter(plain_checkpoint(a), tmp_path / f"{i}") for i, a in enumerate(adapters)]
    found = load(merge(folders, method="task_arithmetic", weights=[1, -2], output=tmp_path / "out")).layers["out"]
    for key, tensor in found.tensors().items():
        one, two = (a.layers["out"].tensors()[key] for a in adapters)
        torch.testing.assert_close(tensor, one - 2 * two)
