"""Ranks by energy: the least of each layer that keeps a share of the squared norm of the merged update."""

from __future__ import annotations

import json

import pytest
import torch

from mhr.adapters import LoraFactors, PlainAdapter
from mhr.errors import ConfigError, MergeError
from mhr.merging import merge, read_report
from tests.merging.loras import BASE, ia3, load, lora, save


def uneven() -> PlainAdapter:
    """A LoRA whose layers have singular values that fall off more or less steeply."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name, decay in (("q", 0.2), ("k", 0.7), ("v", 1.0)):
        a, b = (torch.linalg.qr(torch.randn(n, 6, generator=generator).double())[0] for n in (20, 15))
        layers[name] = LoraFactors(a * decay ** torch.arange(6.0), b.T.contiguous(), 6.0)
    return PlainAdapter(layers, BASE)


@pytest.mark.parametrize("to", ["mhr", "peft-lora"])
def test_each_layer_has_the_least_rank_that_keeps_the_share(to, tmp_path):
    settings = {"patterns": True} if to == "peft-lora" else {}
    output = merge(save(tmp_path, uneven()), space="delta", rank_energy=0.9, to=to, **settings, output=tmp_path / "out")
    report, found = read_report(output), load(output)
    assert report.settings == {"rank_energy": 0.9}
    assert report.rank == [1, 4, 6]
    for name, factors in uneven().layers.items():
        squares = torch.linalg.svdvals(factors.delta()).square()
        rank = next(r for r in range(1, 7) if squares[:r].sum() >= 0.9 * squares.sum())
        lost = float(squares[rank:].sum() / squares.sum()) ** 0.5
        assert report.error["layers"][name] == pytest.approx(lost, abs=1e-7)
        delta = found.layers[name].delta()
        assert int(torch.linalg.matrix_rank(delta)) == rank
        assert float((delta - factors.delta()).norm() / factors.delta().norm()) == pytest.approx(lost, abs=1e-6)
    if to == "peft-lora":
        config = json.loads((output / "adapter_config.json").read_text())
        assert sorted({config["r"], *config["rank_pattern"].values()}) == [1, 4, 6]


@pytest.mark.parametrize("method", ["uniform", "ties"])
def test_without_a_rank_of_its_own_a_merge_may_take_all_that_it_needs(method, tmp_path):
    """Two LoRAs of rank 4 make an average of rank 8 and a sparse sum of any; 4 would be the rank otherwise."""
    folders = save(tmp_path, lora(1), lora(2))
    whole = merge(folders, method=method, space="delta", rank_energy=1.0, output=tmp_path / "whole")
    assert read_report(whole).error["overall"] < 1e-5
    assert max(read_report(whole).rank) >= 8
    capped = merge(folders, method=method, space="delta", rank_energy=0.99, rank=5, output=tmp_path / "capped")
    assert read_report(capped).rank == [5]


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (
            {"rank_energy": 0.9},
            MergeError,
            "rank_energy is 0.9, but factors are merged as they are: leave it out, or use",
        ),
        ({"rank_energy": 0.0, "space": "delta"}, ConfigError, "rank_energy is 0.0"),
        ({"rank_energy": 1.1, "space": "delta"}, ConfigError, "rank_energy is 1.1"),
    ],
)
def test_what_does_not_go_together(given, error, match, tmp_path):
    with pytest.raises(error, match=match):
        merge(save(tmp_path, lora(1), lora(2)), output=tmp_path / "out", **given)


def test_an_ia3_has_no_rank(tmp_path):
    with pytest.raises(MergeError, match="rank_energy is 0.9, but factors are merged as they are"):
        merge(save(tmp_path, ia3(1), ia3(2)), rank_energy=0.9, output=tmp_path / "out")
