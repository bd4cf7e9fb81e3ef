"""MerA: hidden units in another order, or with other signs, are found again; and the assignment behind it is optimal."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from mhr.adapters import BottleneckFactors, LoraFactors, PlainAdapter, plain_checkpoint, write_adapter
from mhr.errors import MergeError
from mhr.merging import merge, read_report
from mhr.merging.mera import aligned, assign
from tests.merging.loras import BASE, deltas, error, load, lora, save


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_the_assignment_is_the_best_of_all(n):
    random = np.random.default_rng(n)
    for _ in range(10):
        gains = random.normal(size=(n, n))
        found = assign(gains)
        assert sorted(found) == list(range(n))
        best = max(sum(gains[i, p[i]] for i in range(n)) for p in permutations(range(n)))
        assert sum(gains[i, found[i]] for i in range(n)) == pytest.approx(best)


def test_a_large_assignment_is_found_again() -> None:
    random = np.random.default_rng(0)
    order = random.permutation(64)
    points = random.normal(size=(64, 10))
    assert assign(points @ points[order].T) == np.argsort(order).tolist()
    assert assign(np.zeros((4, 4))) != []


def shuffled(plain: PlainAdapter, seed: int) -> PlainAdapter:
    """The same updates, their ranks in another order and with other signs."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, f in plain.layers.items():
        order = torch.randperm(f.rank, generator=generator)
        signs = torch.randint(0, 2, (f.rank,), generator=generator) * 2.0 - 1
        layers[name] = LoraFactors(f.a[:, order] * signs, f.b[order] * signs[:, None], f.alpha)
    return PlainAdapter(layers, plain.base)


def test_what_differs_in_order_and_sign_only_is_one_adapter(tmp_path):
    given = lora(1, rank=8)
    folders = save(tmp_path, given, *(shuffled(given, seed) for seed in (1, 2, 3)))
    output = merge(folders, method="mera", output=tmp_path / "mera")
    assert error(deltas(load(output)), deltas(given)) < 1e-6
    assert read_report(output).notes["aligned to"] in [str(folder) for folder in folders]
    uniform = load(merge(folders, output=tmp_path / "uniform"))
    assert error(deltas(uniform), deltas(given)) > 0.5


def test_scalings_do_not_hide_what_is_alike(tmp_path):
    given = lora(1, rank=6)
    scaled = PlainAdapter(
        {n: LoraFactors(f.a / 2, f.b / 2, 4 * f.alpha) for n, f in shuffled(given, 4).layers.items()}, given.base
    )
    output = merge(save(tmp_path, given, scaled), method="mera", output=tmp_path / "mera")
    assert error(deltas(load(output)), deltas(given)) < 1e-6


@pytest.mark.parametrize("heaviest", range(3))
def test_an_input_of_weight_0_is_left_out_wherever_it_stands(heaviest, tmp_path):
    """Whichever of the three is sorted first, second and third."""
    adapters = [lora(seed, rank=4) for seed in (1, 2, 3)]
    folders = save(tmp_path, *adapters)
    weights = [0.7 if i == heaviest else 0.3 if i == (heaviest + 1) % 3 else 0.0 for i in range(3)]
    found = load(merge(folders, method="mera", weights=weights, output=tmp_path / "three"))
    two = [i for i in range(3) if weights[i] > 0]
    expected = merge(
        [folders[i] for i in two], method="mera", weights=[weights[i] for i in two], output=tmp_path / "two"
    )
    assert error(deltas(found), deltas(load(expected))) < 1e-6


def near(plain: PlainAdapter, seed: int, size: float = 0.05) -> PlainAdapter:
    """The same with some noise, its units in another order."""
    noise = lora(seed, rank=next(iter(plain.layers.values())).rank)
    layers = {
        n: LoraFactors(f.a + size * noise.layers[n].a, f.b + size * noise.layers[n].b, f.alpha)
        for n, f in plain.layers.items()
    }
    return shuffled(PlainAdapter(layers, plain.base), seed)


def test_tracks_hold_what_is_alike_and_are_merged_one_after_the_other(tmp_path):
    one, two = lora(1, rank=6), lora(2, rank=6)
    folders = save(tmp_path, near(one, 11), near(two, 12), near(one, 13), near(two, 14))
    weights = [0.4, 0.3, 0.2, 0.1]
    output = merge(folders, method="mera", tracks=2, weights=weights, output=tmp_path / "out")
    names = [str(folder) for folder in folders]
    tracks = [set(track) for track in read_report(output).notes["tracks"]]
    assert tracks == [{names[0], names[2]}, {names[1], names[3]}]
    # Each track by itself, and then both: the same as at once.
    parts = [
        merge(
            [folders[i] for i in pair], method="mera", weights=[weights[i] for i in pair], output=tmp_path / str(pair)
        )
        for pair in ((0, 2), (1, 3))
    ]
    expected = merge(parts, method="mera", weights=[0.6, 0.4], output=tmp_path / "parts")
    assert error(deltas(load(output)), deltas(load(expected))) < 1e-5
    plain = merge(folders, method="mera", weights=weights, output=tmp_path / "plain")
    assert same_as(plain, merge(folders, method="mera", tracks=1, weights=weights, output=tmp_path / "one"))
    with pytest.raises(MergeError, match="tracks is 5, but there are 4 different inputs"):
        merge(folders, method="mera", tracks=5, output=tmp_path / "no")


def same_as(one, other) -> bool:
    return torch.equal(deltas(load(one)), deltas(load(other)))


def test_aligning_changes_nothing_by_itself() -> None:
    one, two = lora(1).layers["block.0.q"], lora(2, alpha=7.0).layers["block.0.q"]
    assert error(aligned(two, one).delta(), two.delta()) < 1e-6


def bottleneck(seed: int, width: int = 6) -> BottleneckFactors:
    generator = torch.Generator().manual_seed(seed)
    shapes = (20, width), (width, 20), (width,), (20,)
    return BottleneckFactors(*(torch.randn(shape, generator=generator) for shape in shapes))


def test_units_of_a_bottleneck_take_their_biases_along(tmp_path):
    given = bottleneck(1)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    moved = BottleneckFactors(given.a[:, order], given.b[order], given.bias_a[order], given.bias_b)
    folders = []
    for i, layer in enumerate((given, moved)):
        folders.append(write_adapter(plain_checkpoint(PlainAdapter({"out": layer}, BASE)), tmp_path / f"{i}"))
    found = load(merge(folders, method="mera", output=tmp_path / "mera")).layers["out"]
    x = torch.randn(5, 20)

    def update(layer: BottleneckFactors) -> torch.Tensor:
        return torch.nn.functional.gelu(x @ layer.a + layer.bias_a) @ layer.b + layer.bias_b

    assert error(update(found), update(given)) < 1e-6
    # Signs are not free in front of a GELU.
    turned = BottleneckFactors(-given.a, -given.b, -given.bias_a, given.bias_b)
    assert error(update(aligned(turned, given)), update(turned)) < 1e-6
