"""What PEFT's `add_weighted_adapter` merges too, on the outputs of one model."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft.utils import merge_utils
from torch import nn

from mhr.adapters import attach_plain, load_peft
from mhr.merging import merge
from mhr.merging.sparsifiers import keep
from tests.models import random_batch, tiny_model

NAMES = ("one", "two", "three")
# PEFT folders as others make them: rank by layer, alpha by layer, rslora.
CONFIGS = {
    "plain": [{}, {}, {}],
    "scalings": [{"lora_alpha": 3}, {"lora_alpha": 8}, {"lora_alpha": 20}],
    # The first is plain: PEFT gives what it merges the first one's use_rslora, and so a scaling of sqrt(r) instead of 1.
    "rslora": [{}, {"use_rslora": True, "lora_alpha": 5}, {"use_rslora": True}],
    "patterns": [{"alpha_pattern": {"v": 3}}, {"alpha_pattern": {"q": 9}}, {}],
}
UNEVEN = [{"r": 2}, {"r": 6, "use_rslora": True}, {"r": 3, "rank_pattern": {"v": 5}}]


def theirs(configs: list[dict], folder: Path) -> tuple[nn.Module, list[Path]]:
    """A PEFT model with three random LoRAs, and the folders that PEFT saves them in."""
    model = None
    for name, config in zip(NAMES, configs, strict=True):
        settings = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q", "v"], **config})
        if model is None:
            model = peft.get_peft_model(tiny_model("t5"), settings, adapter_name=name)
        else:
            model.add_adapter(name, settings)
    generator = torch.Generator().manual_seed(3)
    for key, p in model.named_parameters():
        if "lora_" in key:
            p.data = 0.2 * torch.randn(p.shape, generator=generator)
    model.save_pretrained(folder, selected_adapters=list(NAMES))
    return model.eval(), [folder / name for name in NAMES]


def output(model: nn.Module) -> torch.Tensor:
    batch = random_batch(tiny_model("t5"))
    batch.pop("labels")
    with torch.no_grad():
        return model(**batch, decoder_input_ids=batch["input_ids"][:, :3]).logits


def compare(model: nn.Module, folder: Path, tolerance: float = 1e-5) -> None:
    """The merged folder, by our layers and by PEFT, against PEFT's adapter "merged"."""
    model.set_adapter("merged")
    expected = output(model)
    ours = tiny_model("t5")
    attach_plain(ours, load_peft(folder))
    assert (output(ours) - expected).norm() <= tolerance * expected.norm()
    loaded = peft.PeftModel.from_pretrained(tiny_model("t5"), folder).eval()
    assert (output(loaded) - expected).norm() <= tolerance * expected.norm()
    assert (output(tiny_model("t5")) - expected).norm() > 1e-2 * expected.norm()


def run(folders: list[Path], tmp_path: Path, **settings) -> Path:
    return merge(folders, base="tiny", to="peft-lora", output=tmp_path / "merged", **settings)


@pytest.mark.parametrize("configs", CONFIGS)
def test_linear(configs, tmp_path):
    """PEFT weighs each factor by the root of weight and scaling, so its weights are the squares of ours."""
    model, folders = theirs(CONFIGS[configs], tmp_path)
    weights = [0.5, 0.2, 0.3]
    model.add_weighted_adapter(list(NAMES), [w * w for w in weights], "merged", combination_type="linear")
    compare(model, run(folders, tmp_path, method="weighted", weights=weights, space="factor"))


@pytest.mark.parametrize("configs", [*CONFIGS.values(), UNEVEN], ids=[*CONFIGS, "uneven"])
def test_cat_is_delta_space_at_the_full_rank(configs, tmp_path):
    model, folders = theirs(configs, tmp_path)
    model.add_weighted_adapter(list(NAMES), [0.5, 0.2, 0.3], "merged", combination_type="cat")
    compare(model, run(folders, tmp_path, method="weighted", weights=[0.5, 0.2, 0.3], space="delta", rank=64))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("configs", [CONFIGS["rslora"], UNEVEN], ids=["rslora", "uneven"])
def test_svd(configs, rank, tmp_path):
    model, folders = theirs(configs, tmp_path)
    model.add_weighted_adapter(list(NAMES), [0.5, 0.2, 0.3], "merged", combination_type="svd", svd_rank=rank)
    compare(model, run(folders, tmp_path, method="weighted", weights=[0.5, 0.2, 0.3], space="delta", rank=rank))


@pytest.mark.parametrize(("space", "kind"), [("factor", "ties"), ("delta", "ties_svd")])
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_ties(space, kind, density, tmp_path):
    model, folders = theirs(CONFIGS["plain"], tmp_path)
    model.add_weighted_adapter(list(NAMES), [1.0] * 3, "merged", combination_type=kind, density=density)
    compare(model, run(folders, tmp_path, method="ties", density=density, space=space))


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_magnitude_prune_is_ties_of_one_adapter(density, tmp_path):
    model, folders = theirs(CONFIGS["plain"], tmp_path)
    # PEFT leaves a single adapter as it is, so it gets the same one twice.
    model.add_weighted_adapter(
        ["one", "one"], [0.5, 0.5], "merged", combination_type="magnitude_prune_svd", density=density
    )
    compare(model, run(folders[:1], tmp_path, method="ties", density=density))


@pytest.mark.parametrize(("space", "kind"), [("factor", "dare_linear"), ("delta", "dare_linear_svd")])
def test_dare_linear(space, kind, tmp_path, monkeypatch):
    """With the same draw: PEFT's is from the global generator, ours is not, so it is put in the place of PEFT's."""
    model, folders = theirs(CONFIGS["plain"], tmp_path)
    weights = [0.5, 0.2, 0.3]

    def always_the_same(tensor: torch.Tensor, density: float, rescale: bool) -> torch.Tensor:
        # PEFT's tensors are ours, transposed.
        return tensor * keep(tensor.T.shape, 1 - density, "one draw").T / density

    monkeypatch.setattr(merge_utils, "random_pruning", always_the_same)
    monkeypatch.setattr("mhr.merging.sparsifiers.keep", lambda shape, drop, key: keep(shape, drop, "one draw"))
    square = [w * w if space == "factor" else w for w in weights]
    model.add_weighted_adapter(list(NAMES), square, "merged", combination_type=kind, density=0.5)
    compare(model, run(folders, tmp_path, method="dare", drop=0.5, weights=weights, space=space))


@pytest.mark.parametrize("configs", [*CONFIGS.values(), UNEVEN], ids=[*CONFIGS, "uneven"])
@pytest.mark.parametrize("to", ["peft-lora", "mhr"])
def test_scaling_and_rank_travel(configs, to, tmp_path):
    """One adapter through a merge computes what PEFT computes with it."""
    model, folders = theirs(configs, tmp_path)
    for name, folder in zip(NAMES, folders, strict=True):
        model.set_adapter(name)
        expected = output(model)
        merged = merge(folder, to="peft-lora", output=tmp_path / f"merged {name}")
        if to == "mhr":
            ours = merge(merged, base="tiny", output=tmp_path / f"ours {name}")
            merged = merge(ours, to="peft-lora", output=tmp_path / f"back {name}")
        again = peft.PeftModel.from_pretrained(tiny_model("t5"), merged).eval()
        assert (output(again) - expected).norm() <= 1e-5 * expected.norm()
