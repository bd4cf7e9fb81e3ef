"""What programs that read PEFT folders take, so that a folder is one that they compute the same with.

PEFT and transformers heed a rank and an alpha for each layer, and modules beside the LoRA. vLLM (`PEFTHelper`) and llama.cpp
(convert_lora_to_gguf.py) scale every layer by one lora_alpha, over r or over the layer's own rank, whatever the patterns say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from mhr.adapters.base_name import is_local
from mhr.adapters.layer import Shape
from mhr.adapters.plain import PlainAdapter
from mhr.errors import CheckpointError
from mhr.layers.linear import features, is_linear

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""

MOST_RANK = VLLM_RANKS[-1]


def vllm_rank(rank: int) -> int:
    """The least --max-lora-rank that vLLM takes a LoRA with; the greatest for one that is above it, which vLLM refuses."""
    return next((size for size in VLLM_RANKS if size >= rank), MOST_RANK)


def one_size(shapes: Iterable[Shape], multiple: int | None = None) -> tuple[int, float]:
    """The one (r, lora_alpha) for layers of these: the highest rank, rounded up to a multiple, and the least scaling.

    Of the scalings the least, so that what B takes up makes no value smaller, which float16 could not hold. Raises CheckpointError where a
    multiple is asked for and what comes out is above MOST_RANK.
    """
    shapes = list(shapes)
    rank = max(shape.rank for shape in shapes)
    if multiple is not None:
        rank = -(-rank // multiple) * multiple
        if rank > MOST_RANK:
            raise CheckpointError(
                f"the rank, rounded up to a multiple of {multiple}, is {rank}, and readers take {MOST_RANK} at most: merge to a lower one "
                f"(--space delta --rank N), or leave --rank-multiple out"
            )
    least = min(shapes, key=lambda shape: shape.scaling)
    return rank, least.alpha * rank / least.rank


def missing_layers(models: Iterable[nn.Module], plain: PlainAdapter) -> list[str] | None:
    """What an adapter brings and its base model has no place for: layers and modules by their names. None without models to ask.

    models: the base model as each class that the adapter may have been trained on; the one with most of its layers is meant, and those
    behind one with all are not asked. Raises CheckpointError for layers of other sizes than the base's, and where no layer fits at
    all: readers would leave them all out, and answer as the base model does.
    """
    best: tuple[list[str], dict[str, nn.Module]] | None = None
    for model in models:
        found = dict(model.named_modules(remove_duplicate=False))
        layers = [name for name in plain.shapes if name not in found or not is_linear(found[name])]
        if best is None or len(layers) < len(best[0]):
            best = layers, found
        if not layers:
            break
    if best is None:
        return None
    layers, found = best
    base = plain.base.name_or_path
    if len(layers) == len(plain.shapes):
        raise CheckpointError(
            f"base model {base!r} has none of the {len(layers)} layers that {plain.name} adapts, such as {layers[0]!r}: name the "
            "model that it was trained on with --model"
        )
    for name, shape in plain.shapes.items():
        here = shape.sizes if name in layers else features(found[name])
        if any(recorded not in (None, is_) for recorded, is_ in zip(shape.sizes, here, strict=True)):
            raise CheckpointError(
                f"layer {name!r} of {plain.name} has (in, out) features {shape.sizes}, that of base model {base!r} {here}: name the "
                "model that it was trained on with --model"
            )
    return [*layers, *(name for name in plain.states if name not in found)]


def short_names(model: nn.Module | None, layers: Iterable[str]) -> list[str]:
    """The layers by the last parts of their names, in their order, where no other module of the model ends in one; otherwise by their names.

    PEFT takes either. Readers that know a layer by its kind (older SGLang) take the first alone.
    """
    layers = list(layers)
    ends = list(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    if model is None:
        return layers
    named = {name for name, _ in model.named_modules(remove_duplicate=False) if name.rpartition(".")[2] in ends}
    return ends if named == set(layers) else layers


def remarks(plain: PlainAdapter, missing: Collection[str] | None, patterns: bool, name: str) -> list[str]:
    """What readers of the folder have to know, a sentence each.

    missing: see `missing_layers`, None where the base model is not here to be asked. patterns: whether ranks or scalings differ by
    layer. name: of the base model.
    """
    found = []
    if plain.kind != "lora":
        found.append("vLLM and llama.cpp take LoRAs only: this folder is for PEFT and transformers")
    elif plain.modules:
        found.append(
            f"vLLM and llama.cpp refuse modules_to_save ({', '.join(plain.modules)}): this folder is for PEFT and transformers, or "
            "write a plain model (--to model)"
        )
    elif patterns:
        found.append(
            "vLLM and llama.cpp ignore rank_pattern and alpha_pattern: with them this folder computes something else"
        )
    if missing is None and name:
        found.append(f"base model {name!r} is not here, so the layers were not compared with its own")
    elif missing:
        shown = ", ".join(list(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        found.append(
            f"base model {name!r} lacks {len(missing)} of what the adapter brings, which readers leave out: {shown}"
        )
    return [*found, *of_name(name)]


def of_name(name: str) -> list[str]:
    """What readers have to know of the name that a folder has for its base model, a sentence if anything."""
    if is_local(name):
        return [f"the base model is named by the path {name!r}: elsewhere, give readers the place where it lies there"]
    if name.startswith("builtin:"):
        return [f"the base model {name!r} has its name from mhr: other readers are given the model itself"]
    return []
