"""A LoRA out of a model that was fine-tuned whole: the difference from its base, factored layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mhr.adapters.base import BaseModel
from mhr.adapters.base_name import name_as_given
from mhr.adapters.layer import LoraFactors
from mhr.adapters.model_card import Origin, name_for_others, write_card
from mhr.adapters.peft_export import PeftWriter
from mhr.adapters.plain import Lazy, PlainAdapter
from mhr.adapters.refactor import Loss, refactor_dense
from mhr.errors import ConfigError, MergeError, nearest
from mhr.files import prepare_output, write_json_atomically, writing_folder
from mhr.layers.linear import is_linear
from mhr.locks import one_writer
from mhr.merging.extract_settings import ExtractConfig
from mhr.merging.model_files import ModelFiles, model_files
from mhr.merging.on_disk import held_on_disk
from mhr.ops.checks import accumulator

EXTRACT_REPORT = "extract_report.json"
"""Beside an extracted LoRA: names of the `fine_tuned` model and its `base`, the relative `error` "overall" and by "layers", the `ranks` of
layers, `modules_to_save`, and of what was `ignored` how far the fine-tuned F is from the base B, `||F - B||_F / ||B||_F`."""


@dataclass
class Differences:
    """Where two models differ.

    layers   Linear layers whose weight differs, in the model's order
    other    parameters that differ and that no LoRA holds
    ignored  parameters that differ and are to stay as in the base -> how far, `||F - B||_F / ||B||_F`; None where B is 0
    """

    layers: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    ignored: dict[str, float | None] = field(default_factory=dict)


@one_writer
def extract(
    full: str | Path,
    base: str | Path,
    *,
    output: str | Path,
    rank: int | None = None,
    rank_energy: float | None = None,
    modules_to_save: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    dtype: str | None = None,
    patterns: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the difference of two models as a PEFT LoRA folder, with a model card and EXTRACT_REPORT; returns the folder.

        D = (W_full - W_base)^T = U S V^T,   A = U_R sqrt(S_R) [I, R],   B = sqrt(S_R) V_R^T [R, O],   alpha = R

    for each Linear layer (and Conv1D) where they differ: the nearest LoRA of that rank, and the difference itself where its rank is no
    higher. Differences are taken in float32 at least, from `base` rounded to the dtype that `full` is stored in.

    full, base       folders, hub ids or built-in names of two models of one architecture, in safetensors. Of both one parameter at a
                     time is in memory
    rank             of all layers; rank_energy: the least rank of each layer that keeps this share of `||D||_F^2`, up to `rank`
    modules_to_save  modules that are taken whole from `full`, by names or their last parts: norms, embeddings, layers with biases
    ignore           modules or parameters that stay as in `base` although they differ
    dtype            of what is written, one of STORED_DTYPES; None: that of `full`
    patterns         keep each layer's own rank, see `mhr.adapters.PeftWriter`

    Everything is compared before anything is factored. Raises ConfigError for settings out of range or names that are none, MergeError
    for models that differ in more than a LoRA can hold, or not at all, CheckpointError for what cannot be read, MhrError for an output
    folder that cannot be used.
    """
    saved = None if modules_to_save is None else list(modules_to_save)
    left = None if ignore is None else list(ignore)
    ExtractConfig(rank, rank_energy, saved, left, dtype, patterns)
    output = prepare_output(output, overwrite, [full, base])
    theirs, ours = model_files(full), model_files(base)
    check_same_architecture(theirs, ours)
    names = [*theirs.first_names, *dict(theirs.skeleton.named_modules(remove_duplicate=False))]
    whole = _modules(theirs.skeleton, saved or [], "modules_to_save")
    skipped = _named(names, left or [], "ignore")
    found = compare_models(theirs, ours, whole, skipped)
    _refuse_others(found, theirs, ours)
    if not found.layers and not whole:
        if found.ignored:
            raise MergeError(
                f"{theirs.name} differs from {ours.name} in nothing but what --ignore leaves as in the base: there is no difference to make a "
                "LoRA of; ignore less"
            )
        raise MergeError(
            f"{theirs.name} and {ours.name} hold the same weights: there is no difference to make a LoRA of"
        )
    if not found.layers:
        raise MergeError(
            f"{theirs.name} differs from {ours.name} in no Linear layer outside modules_to_save: without a LoRA there is no adapter to write"
        )
    losses: dict[str, Loss] = {}
    layers, shapes = held_on_disk(_factored(theirs, ours, found.layers, rank, rank_energy, losses))
    plain = PlainAdapter(
        layers=layers,
        base=BaseModel(ours.name, ours.kind, ours.config.model_type),
        modules=Lazy(whole, lambda name: {key: theirs.read(f"{name}.{key}") for key in whole[name]}),
        shapes=shapes,
        states=whole,
        name=f"the difference of {theirs.name} and {ours.name}",
    )
    plain = plain if dtype is None else plain.cast(getattr(torch, dtype))
    writer = PeftWriter(base=name_as_given(plain.base, given=str(base)), patterns=patterns)
    total = Loss()
    for loss in losses.values():
        total.add(loss)
    report = {
        "fine_tuned": str(full),
        "base": str(base),
        "error": {"overall": total.relative, "layers": {name: loss.relative for name, loss in losses.items()}},
        "ranks": {name: shape.rank for name, shape in plain.shapes.items()},
        "modules_to_save": list(whole),
        "ignored": found.ignored,
    }
    how = f"the difference of {name_for_others(str(full))} and the base model, factored by singular value decomposition"
    with writing_folder(output) as folder:
        written = writer.write(plain, folder)
        write_card(written, plain, Origin(how=how, name=output.name, cites=False))
        write_json_atomically(folder / EXTRACT_REPORT, report | {"remarks": written.remarks})
    return output


def check_same_architecture(full: ModelFiles, base: ModelFiles) -> None:
    """Raise MergeError, naming what differs, where two models do not have the same parameters in the same shapes; nothing is read."""
    if full.config.model_type != base.config.model_type:
        raise MergeError(
            f"{full.name} is a {full.config.model_type}, {base.name} a {base.config.model_type}: expected a model and the base that it was "
            "fine-tuned from"
        )
    for model in (full, base):
        if model.kind == "encoder":
            raise MergeError(
                f"{model.name} is an encoder that classifies or has no head, whose head is not a part of its base: expected a decoder, an "
                "encoder-decoder or a masked language model"
            )
    for one, other in ((full, base), (base, full)):
        for name, names in one.aliases.items():
            if other.aliases.get(name) != names:
                raise MergeError(
                    f"{one.name} has parameter {name!r}, shared by {len(names)} modules, where {other.name} has none like it: expected one "
                    "architecture with the same weights tied"
                    if len(names) > 1
                    else f"{one.name} has a parameter {name!r} of its own, {other.name} has not: expected one architecture, with the same "
                    "weights tied"
                )
    shapes = {name: tuple(t.shape) for name, t in base.skeleton.state_dict(keep_vars=True).items()}
    for name, tensor in full.skeleton.state_dict(keep_vars=True).items():
        if tuple(tensor.shape) != shapes[name]:
            resized = (
                len(tensor.shape) == 2 and tensor.shape[1] == shapes[name][1] and _is_vocabulary(full.skeleton, name)
            )
            raise MergeError(
                f"{name!r} has shape {tuple(tensor.shape)} in {full.name} and {shapes[name]} in {base.name}"
                + (
                    ": its embeddings were resized, which no LoRA holds; resize them back, or resize those of the base the same way"
                    if resized
                    else ": expected a model and the base that it was fine-tuned from"
                )
            )


def compare_models(
    full: ModelFiles,
    base: ModelFiles,
    whole: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Differences:
    """Where two models of one architecture differ, leaving out modules that are taken `whole`; one parameter after the other is read."""
    found, whole, ignore = Differences(), tuple(whole), tuple(ignore)
    for name, owner, module in full.owners():
        if _within(name, whole):
            continue
        other, own = _pair(full, base, name)
        if torch.equal(other, own):
            continue
        if _within(name, ignore):
            found.ignored[name] = _apart(other, own)
        elif is_linear(module) and name == f"{owner}.weight" and other.dim() == 2:
            found.layers.append(owner)
        else:
            found.other.append(name)
    return found


def _factored(
    full: ModelFiles,
    base: ModelFiles,
    layers: Sequence[str],
    rank: int | None,
    energy: float | None,
    losses: dict[str, Loss],
) -> Mapping[str, LoraFactors]:
    """The factors of every layer, computed when they are asked for; `losses` gets what each lost."""
    modules = dict(full.skeleton.named_modules())

    def factor(name: str) -> LoraFactors:
        other, own = _pair(full, base, f"{name}.weight")
        wide = accumulator(other.dtype)
        delta = other.to(wide) - own.to(wide)
        if not delta.isfinite().all():
            raise MergeError(f"layer {name!r} of {full.name} or {base.name} holds values that are not finite")
        delta = delta if isinstance(modules[name], Conv1D) else delta.T
        factors, losses[name] = refactor_dense(delta, rank or min(delta.shape), other.dtype, energy)
        return factors

    return Lazy(layers, factor)


def _pair(full: ModelFiles, base: ModelFiles, name: str) -> tuple[Tensor, Tensor]:
    """A parameter of both, that of the base rounded to the dtype that the other one is stored in: a model that was loaded in 16 bits and
    trained differs from its base of 32 by rounding, too, in every number."""
    other = full.read(name)
    return other, base.read(name).to(other.dtype)


def _apart(other: Tensor, own: Tensor) -> float | None:
    norm = float(own.double().norm())
    return float((other.double() - own.double()).norm()) / norm if norm > 0 else None


def _refuse_others(found: Differences, full: ModelFiles, base: ModelFiles) -> None:
    if not found.other:
        return
    shown = ", ".join(map(repr, found.other[:3])) + (
        f" and {len(found.other) - 3} more" if len(found.other) > 3 else ""
    )
    ends = list(dict.fromkeys(_shortest(name) for name in found.other))
    raise MergeError(
        f"{full.name} differs from {base.name} in what no LoRA holds: {shown}: take their modules whole with --modules-to-save "
        f"{','.join(ends)}, or leave them as in the base with --ignore"
    )


def _shortest(parameter: str) -> str:
    """The last part of the name of a parameter's module."""
    return parameter.rpartition(".")[0].rpartition(".")[2]


def _modules(model: nn.Module, wanted: Sequence[str], setting: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """The modules that are meant by names or their last parts -> the shapes of what each holds. Raises ConfigError for a name of none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = _named([name for name, module in modules.items() if module.state_dict()], wanted, setting)
    return {name: {key: tuple(t.shape) for key, t in modules[name].state_dict().items()} for name in names}


def _named(names: Iterable[str], wanted: Sequence[str], setting: str) -> list[str]:
    """Those names that one of `wanted` is, or is the end of. Raises ConfigError for one that is neither."""
    known = [name for name in names if name]
    found: list[str] = []
    for want in wanted:
        meant = [name for name in known if f".{name}".endswith(f".{want}")]
        if not meant:
            ends = sorted({name.rpartition(".")[2] for name in known})
            raise ConfigError(f"{setting} names {want!r}, which the model does not have: {nearest(want, ends)}")
        found += meant
    return list(dict.fromkeys(found))


def _within(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter is one of these, or belongs to a module of these."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _is_vocabulary(model: nn.Module, parameter: str) -> bool:
    owner = model.get_submodule(parameter.rpartition(".")[0])
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    return isinstance(owner, nn.Embedding) or owner is outputs
