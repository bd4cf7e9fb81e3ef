"""Small random adapters on disk and in memory, for merges that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mhr.adapters import (
    BaseModel,
    IA3Vector,
    LoraFactors,
    PlainAdapter,
    collapse,
    load_peft,
    read_adapter,
    save_peft,
)

BASE = BaseModel("tiny", "causal")
SIZES = {"block.0.q": (24, 16), "block.0.v": (24, 16), "block.1.q": (16, 24)}


class Named:
    """What the methods look at of a source."""

    def __init__(self, digest: str):
        self.digest = digest


def lora(seed: int, rank: int = 4, alpha: float = 2.0, dtype: torch.dtype = torch.float32, **settings) -> PlainAdapter:
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
    return PlainAdapter(layers, settings.pop("base", BASE), **settings)


def ia3(seed: int) -> PlainAdapter:
    generator = torch.Generator().manual_seed(seed)
    return PlainAdapter(
        {name: IA3Vector(1 + 0.1 * torch.randn(o, generator=generator)) for name, (_, o) in SIZES.items()}, BASE
    )


def save(tmp_path: Path, *adapters: PlainAdapter) -> list[Path]:
    """Each as a PEFT folder, with patterns where its layers differ, as PEFT writes it."""
    return [save_peft(adapter, tmp_path / f"input-{i}", patterns=True) for i, adapter in enumerate(adapters)]


def load(folder: Path) -> PlainAdapter:
    """The plain adapter in a merged folder, whichever form it has."""
    if (folder / "adapter_config.json").is_file():
        return load_peft(folder)
    return collapse(read_adapter(folder), None)


def same(one: PlainAdapter, other: PlainAdapter) -> bool:
    """Whether two adapters hold the same bits."""
    if one.kind != other.kind or one.layers.keys() != other.layers.keys():
        return False
    return all(torch.equal(x, y) for name in one.layers for x, y in zip(_of(one, name), _of(other, name), strict=True))


def deltas(plain: PlainAdapter) -> torch.Tensor:
    """All updates in one vector, float64, layers by their names: files have orders of their own."""
    return torch.cat([f.scaling * (f.a.double() @ f.b.double()).flatten() for _, f in sorted(plain.layers.items())])


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def _of(plain: PlainAdapter, name: str) -> Sequence[torch.Tensor]:
    layer = plain.layers[name]
    return *layer.tensors().values(), torch.tensor(layer.scaling)
