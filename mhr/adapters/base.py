"""The base model that an adapter belongs to: how it is described, and how another one is found out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mhr.adapters.layer import Sizes
from mhr.adapters.sharing import check_copies
from mhr.backbones import is_builtin, is_gguf, is_masked
from mhr.errors import CheckpointError
from mhr.layers import AdapterBank
from mhr.layers.attach import bank_of
from mhr.layers.linear import features, is_adaptable, is_linear
from mhr.layers.routed import RoutedLayer
from mhr.loading import Loading

# Elements of each parameter that a fingerprint samples: little enough to take well under a second on a large model.
SAMPLES = 256


@dataclass(frozen=True)
class BaseModel:
    """Which model an adapter belongs to. A string is empty where it is not known, as for adapters made by others.

    name_or_path  built-in name, folder or hub id
    kind          "seq2seq", "causal", "encoder" or "masked"
    model_type    architecture, as in the configuration of transformers
    fingerprint   see `fingerprint`
    revision      branch, tag or commit of it on the hub; "" for its main branch too
    """

    name_or_path: str
    kind: str = ""
    model_type: str = ""
    fingerprint: str = ""
    revision: str = ""

    @property
    def foreign(self) -> bool:
        """Whether the adapter was made by another program, which records little of its base model."""
        return not self.model_type

    def where(self, given: str | None, name: str) -> str:
        """Where the model is: as it is `given`, or as the adapter records. Raises CheckpointError for neither, naming the adapter."""
        if not (given or self.name_or_path):
            raise CheckpointError(f"{name} does not say which base model it belongs to: name that with --model (base)")
        return given or self.name_or_path

    def loading(self, asked: Loading | None, given: str | None = None) -> Loading:
        """How the model is loaded: as it is asked, and where that says no revision at the adapter's own. given: another model in its place,
        of which that says nothing."""
        asked = asked or Loading()
        return asked if given else replace(asked, revision=asked.revision or self.revision or None)


def describe_base(model: nn.Module, name_or_path: str) -> BaseModel:
    """The description of a model, with or without a bank. A folder or GGUF file is named by its full path."""
    local = not is_builtin(name_or_path) and (Path(name_or_path).is_dir() or is_gguf(name_or_path))
    name = str(Path(name_or_path).resolve()) if local else name_or_path
    return BaseModel(name, kind_of(model), _model_type(model), fingerprint(model))


def check_base(
    model: nn.Module,
    base: BaseModel,
    layers: Mapping[str, Sizes],
    modules: Iterable[str] = (),
    name: str = "the adapter",
) -> None:
    """Raise CheckpointError, naming what differs, where `model` is not the `base` that an adapter was made for.

    layers: adapted layer -> (in, out) features. modules: what the adapter brings whole. name: what errors call the adapter.
    """
    wrong = f"{name} belongs to another base model ({base.name_or_path})"
    model_type = _model_type(model)
    if base.model_type and model_type != base.model_type:
        raise CheckpointError(f"{wrong}: its architecture is {base.model_type!r}, this model's is {model_type!r}")
    found = dict(model.named_modules())
    for layer, sizes in layers.items():
        if layer not in found or not is_adaptable(found[layer]):
            raise CheckpointError(f"{wrong}: it adapts layer {layer!r}, which this model does not have as a Linear")
        here = features(found[layer])
        if any(recorded not in (None, is_) for recorded, is_ in zip(sizes, here, strict=True)):
            raise CheckpointError(
                f"{wrong}: its layer {layer!r} has {_arrow(sizes)} features, this model's {_arrow(here)}"
            )
    for module in modules:
        if module not in found:
            raise CheckpointError(f"{wrong}: it brings module {module!r}, which this model does not have")
    if base.foreign:
        check_copies(model, modules, name)
    found_print = fingerprint(model, modules)
    if base.fingerprint and found_print and not same_base(base.fingerprint, found_print):
        narrow = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
        drawn = _drawn(model, modules)
        rounded = "; if it was trained beside the other 16-bit dtype, load the model in that or in float32 (--dtype)"
        raise CheckpointError(
            f"{wrong}: the architecture is the same, but the weights are not{drawn}{rounded if narrow and not drawn else ''}"
        )


def fingerprint(model: nn.Module, without: Iterable[str] = ()) -> str:
    """A short string that distinguishes base models: hashes of names and shapes, and of sampled values of the parameters.

    The same with and without a bank; parameters of the modules that the bank (or `without`) names are left out. The values
    are hashed as float32, bfloat16 and float16, so that `same_base` knows a model again that was loaded in a narrower dtype.
    Empty for a model with quantised layers, whose values say nothing about those of the model that was quantised.
    """
    if any(is_quantised(module) for module in model.modules()):
        return ""
    bank = getattr(model, "mhr", None)
    if isinstance(bank, AdapterBank) and bank.base_fingerprint is not None:
        return bank.base_fingerprint
    layers: set[str] = set()
    skipped = tuple(f"{name}." for name in without)
    if isinstance(bank, AdapterBank):
        layers = set(bank.layers)
        skipped += ("mhr.", *(f"{name}." for name in bank.saved))
    structure = hashlib.sha256()
    values = {dtype: hashlib.sha256() for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    # By identity: a parameter that modules share (tied weights) has a name in each of them.
    changes = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name.startswith(skipped)}
    for name, parameter in model.named_parameters():
        if id(parameter) in changes:
            continue
        owner, _, last = name.rpartition(".")
        if owner in layers:
            continue  # a parameter of the bank: those of the layer itself are one step further down, in `base`
        layer = owner.removesuffix(".base")
        if layer in layers:
            name = f"{layer}.{last}"
        structure.update(f"{name} {tuple(parameter.shape)};".encode())
        sample = _sample(parameter)
        for dtype, digest in values.items():
            cast = sample.to(dtype) if sample.is_floating_point() else sample
            digest.update(cast.contiguous().view(torch.uint8).numpy().tobytes())
    return "-".join(digest.hexdigest()[:16] for digest in (structure, *values.values()))


def weights_digest(model: nn.Module) -> str:
    """A short string that distinguishes models as they stand: a hash of names, dtypes, shapes and sampled values of all parameters.

    Unlike `fingerprint` it tells a bank, how it is trained, and how the weights are held. Of parameters that are elsewhere (offloaded) or
    in a format of another library their names, shapes and types count alone.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        kind = type(parameter.data)
        digest.update(f"{name} {kind.__name__} {parameter.dtype} {tuple(parameter.shape)};".encode())
        if not parameter.is_meta and kind.__module__.partition(".")[0] == "torch":
            digest.update(_sample(parameter).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(parameter: Tensor) -> Tensor:
    """About SAMPLES values of a parameter, in order, on the CPU; all of a small one."""
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)].cpu()


def is_quantised(layer: nn.Module) -> bool:
    """Whether a layer stands for a Linear without holding its weights in floating point."""
    if isinstance(layer, RoutedLayer) or not is_linear(layer):
        return False
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or type(weight.data).__module__.partition(".")[0] != "torch":
        return True  # torchao's tensors say that they are of floating point
    return not (weight.is_floating_point() and weight.numel() == math.prod(features(layer)))


def check_reopens(model: nn.Module) -> None:
    """Raise CheckpointError where what is trained on `model` could not be opened again on its base: before it is trained.

    What an adapter is known by must be what training leaves alone: every parameter that the fingerprint covers is frozen.
    """
    bank = bank_of(model)
    inside = {id(p) for p in (*bank.parameters(), *bank.adapter_parameters(), *bank.saved_parameters())}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in inside:
            raise CheckpointError(
                f"parameter {name!r} is trained but is no part of the adapter, so that its checkpoint could not be opened again: "
                "freeze it, or name its module in modules_to_save when attaching"
            )
    base = describe_base(model, "the base model")
    sizes = {name: (layer.in_features, layer.out_features) for name, layer in bank.layers.items()}
    check_base(model, base, sizes, bank.saved, "what is trained")


def same_base(one: str, other: str) -> bool:
    """Whether two fingerprints are of one base model, up to its rounding to a narrower dtype."""
    a, b = one.split("-"), other.split("-")
    return a[0] == b[0] and any(x == y for x, y in zip(a[1:], b[1:], strict=False))


def kind_of(model: nn.Module) -> str:
    """What a model is asked to do: "seq2seq", "causal", "encoder" or "masked" (see `mhr.config.MODEL_KINDS`)."""
    if not getattr(model, "can_generate", lambda: False)():
        return "masked" if is_masked(model) else "encoder"
    return "seq2seq" if model.config.is_encoder_decoder else "causal"  # type: ignore[union-attr]


def _model_type(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)


def _drawn(model: nn.Module, modules: Iterable[str]) -> str:
    """What is to be known of modules that the base model's own checkpoint lacks and that the adapter does not bring."""
    brought = tuple(f"{module}." for module in modules)
    drawn = [name for name in getattr(model, "mhr_untrained", ()) if not f"{name}.".startswith(brought)]
    return (
        f"; its checkpoint does not hold {' and '.join(map(repr, drawn))}, drawn at random each time it is loaded: name that in "
        "modules_to_save when attaching, to store it with the adapter"
        if drawn
        else ""
    )


def _arrow(sizes: Sizes) -> str:
    return f"{sizes[0] or '?'} -> {sizes[1] or '?'}"
