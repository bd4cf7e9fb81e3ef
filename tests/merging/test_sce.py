"""SCE against a re-statement in float64, one element after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mhr.errors import MergeError
from mhr.merging import merge
from tests.merging.loras import load, lora, save


def sce(values: list[np.ndarray], density: float) -> np.ndarray:
    variance = np.var(np.stack(values), axis=0)
    n = max(1, int(density * np.count_nonzero(variance)))
    chosen = np.zeros(variance.size, dtype=bool)
    chosen[np.argsort(-variance.flatten())[:n]] = True
    chosen = chosen.reshape(variance.shape)
    selected = [np.where(chosen, v, 0) for v in values]
    squares = [float((s * s).sum()) for s in selected]
    etas = [s / sum(squares) for s in squares]
    found = np.zeros_like(variance)
    for place in np.ndindex(*found.shape):
        numbers = [s[place] for s in selected]
        plus = sum(numbers) >= 0
        kept = [k for k, x in enumerate(numbers) if x != 0 and (x > 0) == plus]
        if kept:
            found[place] = sum(etas[k] * numbers[k] for k in kept) / sum(etas[k] for k in kept)
    return found


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_it_is_its_formula(density, tmp_path):
    sizes = {"q": (12, 9), "v": (6, 8)}
    adapters = [lora(seed, alpha=1.0 + seed, dtype=torch.float64, sizes=sizes) for seed in (1, 2, 3)]
    output = merge(save(tmp_path, *adapters), method="sce", density=density, rank=64, output=tmp_path / "out")
    found = load(output)
    for name in sizes:
        expected = sce([a.layers[name].delta().numpy() for a in adapters], density)
        np.testing.assert_allclose(found.layers[name].delta().numpy(), expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_what_is_the_same_in_all_inputs_has_no_variance_to_be_selected_by(density, tmp_path):
    """At density 1 nothing is selected, and it stays."""
    one, two = lora(1), lora(2)
    same = two.layers["block.0.q"] = one.layers["block.0.q"]
    found = load(merge(save(tmp_path, one, two), method="sce", density=density, output=tmp_path / "out"))
    expected = same.delta() if density == 1 else torch.zeros_like(same.delta())
    torch.testing.assert_close(found.layers["block.0.q"].delta(), expected, atol=1e-5, rtol=0)
    assert float(found.layers["block.0.v"].delta().abs().max()) > 0


def test_it_takes_no_weights(tmp_path):
    with pytest.raises(MergeError, match="'sce' takes no weights"):
        merge(save(tmp_path, lora(1), lora(2)), method="sce", weights=[1, 2], output=tmp_path / "out")
