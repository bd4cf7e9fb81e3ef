"""Banks that layers of one shape share (`AdapterConfig.tied`): HyperFormer++ (arXiv 2106.04489), HRA (arXiv 2403.19709)."""

from __future__ import annotations

from mhr.config import AdapterConfig

CODERS = ("encoder", "decoder")


def bank_name(config: AdapterConfig, layer: str, sizes: tuple[int | None, int | None]) -> str:
    """What the bank of a layer is called in a checkpoint: as the layer, or, where banks are tied, by what all of its layers have in
    common, "tied.encoder.512x512": the encoder or decoder that they stand in, and the features that they adapt.

    sizes  (in, out) features of the layer
    """
    if not config.tied:
        return layer
    coder = next((part for part in layer.split(".") if part in CODERS), "all")
    shape = "x".join(map(str, sizes)) if config.adapter == "lora" else str(sizes[1])
    return f"tied.{coder}.{shape}"
