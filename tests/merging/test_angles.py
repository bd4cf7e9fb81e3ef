"""SLERP and model stock against their formulas on the whole updates, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mhr.adapters import LoraFactors, PlainAdapter, plain_checkpoint, write_adapter
from mhr.errors import MergeError
from mhr.merging import merge, read_report
from tests.merging.loras import BASE, deltas, error, ia3, load, lora, save
from tests.merging.test_mera import bottleneck

SIZES = {"q": (12, 9), "v": (7, 10)}


def alike(seed: int, share: float, rank: int = 3) -> PlainAdapter:
    """A LoRA that has `share` of one common update in it, so that angles are those of real ones."""
    common, own = (lora(s, rank=rank, dtype=torch.float64, sizes=SIZES) for s in (99, seed))
    layers = {}
    for name, f in common.layers.items():
        o = own.layers[name]
        layers[name] = LoraFactors(torch.cat([share * f.a, o.a], 1), torch.cat([f.b, o.b], 0), 4.0 + seed)
    return PlainAdapter(layers, BASE)


def merged(folders, tmp_path, **settings) -> dict[str, Tensor]:
    output = merge(folders, rank=64, output=tmp_path / "out", **settings)
    return {name: layer.delta() for name, layer in load(output).layers.items()}


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_is_its_formula(t, tmp_path):
    one, two = alike(1, 1.0), alike(2, 2.0)
    found = merged(save(tmp_path, one, two), tmp_path, method="slerp", weights=[1 - t, t])
    for name in SIZES:
        x, y = one.layers[name].delta(), two.layers[name].delta()
        angle = math.acos(float((x * y).sum() / x.norm() / y.norm()))
        expected = (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)
        assert error(found[name], expected) < 1e-12


def test_slerp_keeps_the_norm_that_an_average_loses(tmp_path):
    one, two = (lora(seed, dtype=torch.float64, sizes={"q": (12, 9)}) for seed in (1, 2))
    scale = float(deltas(one).norm() / deltas(two).norm())
    f = two.layers["q"]
    two = PlainAdapter({"q": LoraFactors(scale * f.a, f.b, f.alpha)}, BASE)
    folders = save(tmp_path, one, two)
    found = merged(folders, tmp_path, method="slerp")["q"]
    assert float(found.norm()) == pytest.approx(float(deltas(one).norm()))
    assert float(deltas(load(merge(folders, space="delta", rank=9, output=tmp_path / "m"))).norm()) < 0.8 * found.norm()


@pytest.mark.parametrize("factor", [2.0, -1.5, 0.0])
def test_slerp_of_parallel_updates_and_of_none_is_the_line(factor, tmp_path):
    one = lora(1, dtype=torch.float64, sizes=SIZES)
    two = PlainAdapter({n: LoraFactors(factor * f.a, f.b, f.alpha) for n, f in one.layers.items()}, BASE)
    found = merged(save(tmp_path, one, two), tmp_path, method="slerp", weights=[0.75, 0.25])
    for name in SIZES:
        assert error(found[name], (0.75 + 0.25 * factor) * one.layers[name].delta()) < 1e-12


def test_slerp_of_ia3_vectors_turns_what_they_change(tmp_path):
    one, two = ia3(1), ia3(2)
    found = load(merge(save(tmp_path, one, two), method="slerp", output=tmp_path / "out"))
    for name, layer in found.layers.items():
        x, y = (a.layers[name].v.double() - 1 for a in (one, two))
        angle = math.acos(float(x @ y / x.norm() / y.norm()))
        torch.testing.assert_close(
            layer.v.double(), 1 + math.sin(angle / 2) / math.sin(angle) * (x + y), atol=1e-6, rtol=0
        )


def test_two_of_one_adapter_are_that_adapter(tmp_path):
    given = lora(1)
    found = merge(save(tmp_path, given, given), method="slerp", output=tmp_path / "out")
    assert error(deltas(load(found)), deltas(given)) < 1e-6


@pytest.mark.parametrize("n", [2, 3, 5])
def test_model_stock_is_its_formula(n, tmp_path):
    adapters = [alike(seed, 1.0 + seed) for seed in range(1, n + 1)]
    output = tmp_path / "out"
    found = merged(save(tmp_path, *adapters), tmp_path, method="model_stock")
    for name in SIZES:
        x = [a.layers[name].delta() for a in adapters]
        cosines = [float((x[i] * x[j]).sum() / x[i].norm() / x[j].norm()) for i in range(n) for j in range(i)]
        cosine = sum(cosines) / len(cosines)
        ratio = n * cosine / (1 + (n - 1) * cosine)
        assert 0.1 < ratio < 1
        assert read_report(output).notes["ratios"][name] == pytest.approx(ratio)
        assert error(found[name], ratio * sum(x) / n) < 1e-12


def test_model_stock_keeps_nothing_of_updates_that_point_apart(tmp_path):
    one = lora(1, dtype=torch.float64, sizes=SIZES)
    two = PlainAdapter({n: LoraFactors(-0.5 * f.a, f.b, f.alpha) for n, f in one.layers.items()}, BASE)
    found = merged(save(tmp_path, one, two), tmp_path, method="model_stock")
    assert all(float(delta.abs().max()) == 0 for delta in found.values())


@pytest.mark.parametrize(
    ("n", "given", "match"),
    [
        (1, {"method": "slerp"}, "'slerp' merges 2 inputs, and 1 are given: name 2, or choose a method that takes any number"),
        (3, {"method": "slerp"}, "'slerp' merges 2 inputs, and 3 are given"),
        (2, {"method": "slerp", "space": "factor"}, "'slerp' does not work in space 'factor'"),
        (2, {"method": "model_stock", "weights": [1, 2]}, "'model_stock' takes no weights"),
        (2, {"method": "slerp", "weights": [1, -1]}, "at least 0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(n, given, match, tmp_path):
    with pytest.raises(MergeError, match=match):
        merge(save(tmp_path, *(lora(i) for i in range(n))), output=tmp_path / "out", **given)


def test_bottlenecks_have_no_updates(tmp_path):
    folders = [
        write_adapter(plain_checkpoint(PlainAdapter({"out": bottleneck(i)}, BASE)), tmp_path / f"{i}") for i in (1, 2)
    ]
    with pytest.raises(
        MergeError, match="merges weight updates, and .* is a bottleneck adapter, which is none: choose"
    ):
        merge(folders, method="slerp", output=tmp_path / "out")
