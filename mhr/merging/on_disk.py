"""Layers that cost much to compute, computed once and kept in a file until they are written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mhr.adapters.layer import AdapterLayer, LoraFactors, Shape
from mhr.adapters.plain import Lazy
from mhr.adapters.tensor_file import TensorFile, TensorWriter


def held_on_disk(layers: Mapping[str, AdapterLayer]) -> tuple[Mapping[str, AdapterLayer], dict[str, Shape]]:
    """The same LoRA layers, read from a temporary file when they are asked for, and what is known of each.

    The file goes with the mapping. What decides the rank of a layer may be its values, so that shapes are known only then.
    """
    folder = tempfile.TemporaryDirectory(prefix="mhr-layers-")
    path, shapes = Path(folder.name) / "layers.safetensors", {}
    with TensorWriter(path) as file:
        for name, layer in layers.items():
            file.add_all({f"{name}.{key}": tensor for key, tensor in layer.tensors().items()})
            shapes[name] = layer.shape
    held = TensorFile(path)

    def read(name: str, keep: object = folder) -> AdapterLayer:
        return LoraFactors(held[f"{name}.a"], held[f"{name}.b"], shapes[name].alpha)

    return Lazy(shapes, read), shapes
