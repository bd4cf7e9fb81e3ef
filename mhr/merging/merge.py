"""The merge command: from a run or an adapter to a folder that stands on its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from mhr.backbones import load_backbone
from mhr.checkpoint import is_adapter, read_adapter, write_adapter
from mhr.checkpoint.plain import LoraFactors, PlainAdapter, PlainLora, plain_checkpoint
from mhr.errors import CheckpointError, MergeError, MhrError
from mhr.files import prepare_output, writing_folder
from mhr.interop.peft import is_peft, load_peft, save_peft
from mhr.merging.collapse import merge_methods
from mhr.merging.fold import fold_into

FORMS = ("mhr", "peft-lora", "model")
"""What a merge can write: an adapter checkpoint of ours, a PEFT folder, or a whole plain transformers model."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def merge(
    path: str | Path,
    *,
    method: str = "uniform",
    task: str | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    to: str = "mhr",
    output: str | Path,
    overwrite: bool = False,
    dtype: str | None = None,
    base: str | None = None,
) -> Path:
    """Merge the bank in `path` into one plain adapter and write it to the folder `output`, which it returns.

    path     a run folder, an adapter checkpoint, or a PEFT folder (which is plain already and only changes its form)
    method   name of a merge method; `task` and `weights` go to the methods that take them
    to       one of FORMS
    dtype    of the tensors written, one of DTYPES; None keeps them
    base     path or hub id of the base model; None takes the one that the adapter names. Only `to="model"` loads it

    Everything is computed before anything is written, and the folder appears whole. Raises MergeError for settings that
    do not go together, CheckpointError for what cannot be read, MhrError for an output folder that cannot be used.
    """
    if to not in FORMS:
        raise MergeError(f"cannot merge to {to!r}: expected one of {', '.join(FORMS)}")
    if dtype is not None and dtype not in DTYPES:
        raise MergeError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    output = prepare_output(output, overwrite)
    if Path(path).resolve().is_relative_to(output.resolve()):
        raise MergeError(f"output folder {output} holds the input {path}: choose another")
    plain = _plain(Path(path), method, task, weights)
    if base is not None:
        plain = replace(plain, base=replace(plain.base, name_or_path=base))
    if to == "model":
        return _write_model(plain, output, dtype)
    if dtype is not None:
        plain = _cast(plain, DTYPES[dtype])
    with writing_folder(output) as folder:
        if to == "mhr":
            write_adapter(plain_checkpoint(plain, task or "merged"), folder)
        else:
            save_peft(plain, folder)
    return output


def find_adapter(path: str | Path) -> Path:
    """The adapter in `path`: the folder itself, or the `adapter` folder of a run. Raises CheckpointError for neither."""
    path = Path(path)
    for folder in (path, path / "adapter"):
        if is_adapter(folder) or is_peft(folder):
            return folder
    if not path.is_dir():
        raise CheckpointError(f"no adapter at {path}: there is no such folder")
    inside = sorted(str(found.parent.parent.relative_to(path)) for found in path.glob("*/*/adapter/mhr_config.json"))
    if inside:
        raise CheckpointError(f"{path} holds {len(inside)} runs: name one of them, as in {path / inside[0]}")
    raise CheckpointError(f"no adapter at {path}: expected a run folder, an adapter checkpoint or a PEFT folder")


def _plain(
    path: Path, method: str, task: str | None, weights: Mapping[str, float] | Sequence[float] | None
) -> PlainAdapter:
    function = merge_methods[method]
    options = {name: value for name, value in (("task", task), ("weights", weights)) if value is not None}
    wanted = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in wanted:
            raise MergeError(f"merge method {method!r} takes no {name}: leave it out, or choose the method that does")
    for name in wanted:
        if name not in options:
            raise MergeError(f"merge method {method!r} needs {name}: give it with --{name}")
    folder = find_adapter(path)
    if is_adapter(folder):
        return function(read_adapter(folder), **options)
    if options:
        raise MergeError(f"{folder} is a PEFT adapter, which has no tasks to merge: leave out {', '.join(options)}")
    return load_peft(folder)


def _write_model(plain: PlainAdapter, output: Path, dtype: str | None) -> Path:
    model, tokenizer = load_backbone(plain.base.name_or_path, plain.base.kind or None)
    fold_into(model, plain)
    if dtype is not None:
        model.to(DTYPES[dtype])
    with writing_folder(output) as folder, _clear_write_errors(output):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return output


@contextmanager
def _clear_write_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as fault:
        raise MhrError(f"cannot write {output}: {fault}") from fault


def _cast(plain: PlainAdapter, dtype: torch.dtype) -> PlainAdapter:
    modules = {name: {key: _to(t, dtype) for key, t in state.items()} for name, state in plain.modules.items()}
    if isinstance(plain, PlainLora):
        layers = {n: LoraFactors(f.a.to(dtype), f.b.to(dtype), f.alpha) for n, f in plain.layers.items()}
        return PlainLora(layers, plain.base, modules)
    return replace(plain, layers={name: vector.to(dtype) for name, vector in plain.layers.items()}, modules=modules)


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A float tensor in another dtype; counters and the like stay what they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
