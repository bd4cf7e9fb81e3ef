"""Load whatever can be evaluated, recognised by what its folder holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mhr.adapters import attach_checkpoint, is_adapter, is_peft, kind_of, load_checkpoint, read_bank
from mhr.adapters.index import check_no_index
from mhr.backbones import is_builtin, is_gguf, load_backbone
from mhr.errors import CheckpointError, ConfigError
from mhr.evaluation.loaded import LoadedModel
from mhr.loading import Loading
from mhr.objectives.fit import check_fit
from mhr.runs.run import RUN_FILE, RunFolder


def load_model(
    path: str | Path,
    base: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    *,
    loading: Loading | None = None,
) -> LoadedModel:
    """The model at `path`, in evaluation mode.

    path   a run folder (pretrained or adapted), an adapter checkpoint, a PEFT folder (LoRA, IA3 or Poly), a folder or hub id of a
           transformers model, or a built-in model such as "builtin:t5-tiny"
    base   path or hub id of the base model, where the one that the adapter names is not at hand
    kind   "seq2seq", "causal", "encoder" or "masked" of a plain model whose own configuration does not tell it
    task   route every example as this task of the bank; None routes each as its own
    loading  how the base model is loaded, see `load_backbone`; what it leaves open is as in the run's settings, but for trusting
             code, and for the revision as the adapter names it

    Raises CheckpointError for what is missing, unfinished, damaged or none of these, ConfigError for settings that do not
    fit what was found, MhrError for a base model that cannot be loaded.
    """
    name, description = str(path), str(path)
    as_trained: dict[str, Any] = {}
    folder = Path(path)
    if (folder / RUN_FILE).is_file() or (folder / "adapt.json").is_file():
        run = RunFolder.open(folder)
        config = run.config()
        loading = (loading or Loading()).over(config, base)
        folder, kind = run.result(), kind or run.info.get("model_kind")
        as_trained = {
            "trained_with": (config.data.max_input_length, config.data.max_target_length),
            "chat": config.data.chat,
            "length_norm": config.train.length_norm,
            "protocol": run.info.get("protocol"),
        }
        name, description = (
            str(folder),
            f"{path} ({run.info.get('kind')} {run.info.get('mode') or run.info.get('method')})",
        )
    if is_adapter(folder):
        model, tokenizer = load_checkpoint(folder, base, kind, loading=loading)
    elif is_peft(folder):
        bank = read_bank(folder)
        where = bank.base.where(base, str(folder))
        model, tokenizer = load_backbone(where, kind or bank.base.kind or None, bank.base.loading(loading, base))
        attach_checkpoint(bank, model)
    elif base is not None:
        raise ConfigError(f"base is {base!r}, but {path} names a whole model, not an adapter: leave base out")
    else:
        if not is_builtin(name):
            check_model(name)
        model, tokenizer = load_backbone(name, kind, loading)
    found = kind_of(model)
    if kind is not None and kind != found:
        raise ConfigError(f"kind is {kind!r}, but {path} is of kind {found!r}: leave kind out")
    loaded = LoadedModel(model, tokenizer, found, description, task, **as_trained)
    if task is not None and loaded.bank is not None and not loaded.bank.needs_tasks:
        raise ConfigError(f"task is {task!r}, but the bank of {path} does the same for all tasks: leave task out")
    loaded.check_trained()
    check_fit(model, tokenizer, found)
    return loaded


def check_model(name: str) -> None:
    """Raise CheckpointError for a name that is clearly no model: a path without a folder, a folder without a model, or with adapters
    for each task."""
    expected = "expected a run (run.json), an adapter (mhr_config.json or adapter_config.json) or a model (config.json)"
    folder = Path(name)
    check_no_index(folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:4]) or "nothing"
            raise CheckpointError(f"no model at {name}: the folder holds {held}; {expected}")
    elif is_gguf(name):
        if not folder.is_file():
            raise CheckpointError(f"no model at {name}: there is no such file")
    elif folder.is_file():
        raise CheckpointError(
            f"no model at {name}: it is a file; {expected}, each of them a folder, or a GGUF file; mhr import takes "
            "checkpoints that other programs wrote into a run"
        )
    elif not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise CheckpointError(f"no model at {name}: there is no such folder; {expected}")
