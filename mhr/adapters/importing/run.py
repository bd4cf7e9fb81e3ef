"""An import: what another program trained, written as a run, so that every command takes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mhr.adapters.base import describe_base, kind_of
from mhr.adapters.checkpoint import AdapterCheckpoint, attach_checkpoint, routing_keys, write_adapter
from mhr.adapters.importing.formats import ForeignBank, formats, recognised, with_names
from mhr.adapters.importing.source import ForeignPath
from mhr.backbones import load_backbone
from mhr.errors import CheckpointError, ConfigError, DataError, TargetError
from mhr.files import prepare_output, writing_folder
from mhr.layers.linear import features, is_adaptable
from mhr.layers.targets import routing_group
from mhr.loading import Loading
from mhr.locks import one_writer
from mhr.methods import method_of
from mhr.runs.run import RUN_FILE, RunFolder
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import NO_TASKS
from mhr.runs.train_settings import TrainConfig

UNKNOWN = "how it was trained is not known: the settings of train and data in config.yaml are defaults"
"""What every import has to say."""


@one_writer
def import_run(
    path: str | Path,
    *,
    output: str | Path,
    task_names: str | None = None,
    tasks: str | None = None,
    base: str | None = None,
    kind: str | None = None,
    loading: Loading | None = None,
    overwrite: bool = False,
) -> RunFolder:
    """Make a run of the bank at `path` in the folder `output`, exactly as it is, in its dtype.

    path        what one of `formats` reads
    task_names  file with the name of a task in each line, in the order of the routing table. None: as the bank has them, or else
                task-0, task-1 ...
    tasks       the collection that it was trained on, for config.yaml; None: unknown, and whoever reads the run names one
    base, kind, loading    the base model where the file does not name it or it lies elsewhere, what it is asked to do, and how it is
                           loaded; it is loaded to see that the bank fits it

    The run says in run.json where it comes from (`imported`) and what is not known (`notes`). Everything is checked before anything is
    written. Raises CheckpointError for what cannot be read or taken exactly and for another base model, TaskError for names that do not
    fit, MhrError for a base model that cannot be loaded and for an output folder that cannot be used.
    """
    source = ForeignPath(path)
    if source.is_folder and (source.path / RUN_FILE).is_file():
        raise ConfigError(f"{path} is a run already: every command takes it as it is")
    output = prepare_output(output, overwrite, [path, base, task_names, tasks])
    name = recognised(source)
    found = with_names(formats[name].read(source), _names(task_names), str(path))
    model_name = found.bank.base.where(base, str(path))
    config = _settings(found, model_name, kind, tasks, found.bank.base.loading(loading, base))
    prepare_output(output, overwrite, [model_name])  # which only the bank may have named
    model = load_backbone(model_name, kind or found.bank.base.kind or None, Loading.of(config))[0]
    bank = fitted(found.bank, model, model_name)
    attach_checkpoint(bank, model)
    # Only now, when it is known what of the model belongs to the bank.
    bank = dataclasses.replace(bank, base=describe_base(model, model_name), info={"imported": str(path)} | bank.info)
    with writing_folder(output) as folder:
        run = RunFolder(folder, {})
        run.start(
            config,
            kind="pretrain",
            method=config.method,
            mode=None,
            base=model_name,
            model_kind=kind_of(model),
            tasks=bank.tasks,
            imported={"path": str(path), "format": name},
            notes=[*found.notes, UNKNOWN],
            parameters=_parameters(model),
        )
        write_adapter(bank, run.adapter)
        run.write(status="done", steps=found.steps)
    return RunFolder.open(output)


def fitted(bank: AdapterCheckpoint, model: PreTrainedModel, name: str) -> AdapterCheckpoint:
    """A bank as one of the base model `name`: its layers in that one's order and its groups called as they are there.

    Raises CheckpointError, naming the layer, where the model does not have the layers, where heads do not divide them, and where
    its layers share routing in another way.
    """
    modules = dict(model.named_modules())
    missing = [layer for layer in bank.layers if layer not in modules or not is_adaptable(modules[layer])]
    if missing:
        raise CheckpointError(
            f"{bank.name} adapts layer {missing[0]!r}, which base model {name!r} does not have as a Linear ({len(missing)} of its "
            f"{len(bank.layers)} layers are missing): name the model that it was trained on with --model"
        )
    heads = bank.config.n_heads or 1
    layers = [layer for layer in modules if layer in bank.layers]
    for layer in layers:
        for what, size in zip(("input", "output"), features(modules[layer]), strict=True):
            if size % heads and (what == "output" or bank.config.adapter == "lora"):
                raise CheckpointError(
                    f"{bank.name} has {heads} heads (n_splits), which do not divide the {size} {what} features of layer {layer!r} of base "
                    f"model {name!r}"
                )
    base = dataclasses.replace(bank.base, name_or_path=name)
    return _regrouped(
        dataclasses.replace(bank, base=base, layers={layer: bank.layers[layer] for layer in layers}), model
    )


def _regrouped(bank: AdapterCheckpoint, model: PreTrainedModel) -> AdapterCheckpoint:
    """Groups of layers by the names that the bank's granularity gives them on this model."""
    granularity = bank.config.granularity
    try:
        groups = {layer: routing_group(model, layer, granularity) for layer in bank.layers}
    except TargetError as fault:
        raise CheckpointError(f"{bank.name} does not fit: {fault}") from None
    pairs = {(bank.groups[layer], groups[layer]) for layer in bank.layers}
    renamed = dict(pairs)
    if not len(pairs) == len(renamed) == len(set(renamed.values())):
        odd = next(
            layer
            for layer in bank.layers
            if renamed[bank.groups[layer]] != groups[layer] or _joined(pairs, groups[layer])
        )
        raise CheckpointError(
            f"layer {odd!r} of {bank.name} does not share its routing with the same layers as on the base model, where granularity is "
            f"{granularity!r}"
        )
    keys = routing_keys(bank, bank.tensors)
    names = {
        key: f"routers.{renamed[group] or 'all'}.{name}" for group, own in keys.items() for name, key in own.items()
    }
    tensors = {names.get(key, key): tensor.contiguous() for key, tensor in bank.tensors.items()}
    return dataclasses.replace(bank, groups=groups, tensors=tensors)


def _joined(pairs: set[tuple[str, str]], group: str) -> bool:
    """Whether several groups of a bank are one on its base model."""
    return sum(ours == group for _, ours in pairs) > 1


def _settings(found: ForeignBank, model: str, kind: str | None, tasks: str | None, loading: Loading) -> RunConfig:
    """The settings of the run: what is known, and defaults."""
    adapter = found.bank.config
    given: dict[str, Any] = {name: value for name, value in loading.said().items() if name != "trust_remote_code"}
    if adapter.routing.drawn and adapter.n_skills == 1:  # whose passes cannot differ
        given["train"] = TrainConfig(consistency=0.0)
    config = RunConfig(
        model=model,
        kind=kind or found.bank.base.kind or None,
        tasks=tasks or NO_TASKS,
        method=method_of(adapter.method, adapter.adapter),
        adapter=adapter,
        trust_remote_code=loading.trust_remote_code,
        **given,
    )
    said = {name.removeprefix("data."): value for name, value in found.settings.items()}
    try:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **said))
    except ConfigError as fault:
        raise CheckpointError(f"{found.bank.name} names lengths that cannot be: {fault}") from None


def _names(file: str | None) -> list[str] | None:
    if file is None:
        return None
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except OSError as fault:
        raise DataError(f"cannot read {file}: {fault.strerror or fault}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is no text in UTF-8: expected the name of a task in each line") from None
    return [line.strip() for line in lines if line.strip()]


def _parameters(model: nn.Module) -> dict[str, int]:
    parameters = list(model.parameters())
    return {"trained": sum(p.numel() for p in parameters if p.requires_grad), "all": sum(p.numel() for p in parameters)}
