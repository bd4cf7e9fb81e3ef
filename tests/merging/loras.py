"""Small random adapters on disk and in memory, for merges that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mhr.checkpoint import BaseModel, read_adapter
from mhr.checkpoint.plain import BottleneckFactors, PlainAdapter
from mhr.interop import load_peft, save_peft
from mhr.merging import LoraFactors, PlainIA3, PlainLora
from mhr.merging.collapse import collapse

BASE = BaseModel("tiny", "causal")
SIZES = {"block.0.q": (24, 16), "block.0.v": (24, 16), "block.1.q": (16, 24)}


def lora(seed: int, rank: int = 4, alpha: float = 2.0, dtype: torch.dtype = torch.float32, **settings) -> PlainLora:
    """A random LoRA on SIZES. settings: base, modules, sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = settings.pop("sizes", SIZES)
    layers = {
        name: LoraFactors(
            torch.randn(i, rank, generator=generator).to(dtype),
            torch.randn(rank, o, generator=generator).to(dtype),
            alpha,
        )
        for name, (i, o) in sizes.items()
    }
    return PlainLora(layers, settings.pop("base", BASE), **settings)


def ia3(seed: int) -> PlainIA3:
    generator = torch.Generator().manual_seed(seed)
    return PlainIA3({name: 1 + 0.1 * torch.randn(o, generator=generator) for name, (_, o) in SIZES.items()}, BASE)


def save(tmp_path: Path, *adapters: PlainAdapter) -> list[Path]:
    """Each as a PEFT folder."""
    return [save_peft(adapter, tmp_path / f"input-{i}") for i, adapter in enumerate(adapters)]


def load(folder: Path) -> PlainAdapter:
    """The plain adapter in a merged folder, whichever form it has."""
    if (folder / "adapter_config.json").is_file():
        return load_peft(folder)
    return collapse(read_adapter(folder), None)


def same(one: PlainAdapter, other: PlainAdapter) -> bool:
    """Whether two adapters hold the same bits."""
    if type(one) is not type(other) or one.layers.keys() != other.layers.keys():
        return False
    return all(torch.equal(x, y) for name in one.layers for x, y in zip(_of(one, name), _of(other, name), strict=True))


def deltas(plain: PlainLora) -> torch.Tensor:
    """All updates in one vector, float64, layers by their names: files have orders of their own."""
    return torch.cat([f.scaling * (f.a.double() @ f.b.double()).flatten() for _, f in sorted(plain.layers.items())])


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def _of(plain: PlainAdapter, name: str) -> Sequence[torch.Tensor]:
    layer = plain.layers[name]
    if isinstance(layer, LoraFactors):
        return layer.a, layer.b, torch.tensor(layer.scaling)
    if isinstance(layer, BottleneckFactors):
        return layer.a, layer.b, layer.bias_a, layer.bias_b
    return (layer,)
