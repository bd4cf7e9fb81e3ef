"""Routing by token: LoRAs that are finished, made into a run in which each token chooses among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mhr.adapters.base import describe_base, kind_of
from mhr.adapters.checkpoint import AdapterCheckpoint, attach_checkpoint, write_adapter
from mhr.adapters.experts import gather, names_of
from mhr.adapters.importing.run import fitted
from mhr.adapters.plain import PlainAdapter
from mhr.backbones import load_backbone
from mhr.errors import ConfigError
from mhr.experts.gates import as_one_task, tasks_of, train_gates
from mhr.experts.sources import bank_of_experts, check_alike
from mhr.files import prepare_output, writing_folder
from mhr.loading import Loading
from mhr.locks import one_writer
from mhr.methods import BY_TOKEN, method_of
from mhr.ops.checks import accumulator
from mhr.routing import TokenRouter, make_router, routers
from mhr.runs.route_settings import RouteConfig
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import NO_TASKS, read_tasks
from mhr.runs.train_settings import TrainConfig
from mhr.setting import read_by

GATES = "gates"
"""Folder of a run: how each gate was trained."""


@one_writer
def route_tokens(
    inputs: str | Path | Sequence[str | Path],
    *,
    output: str | Path,
    base: str | None = None,
    kind: str | None = None,
    loading: Loading | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: object,
) -> RunFolder:
    """Make a run in `output` in which each token, in each layer, chooses among the LoRAs that `inputs` stand for.

    inputs    runs, adapter checkpoints and PEFT LoRA folders, or folders of these: `mhr.adapters.experts.gather`
    base, kind, loading    the base model where the LoRAs do not name it or it lies elsewhere, what it is asked to do, and how it is
              loaded
    progress  show a bar on standard error where gates are trained
    settings  those of `RouteConfig`

    The run reads the collection of the first input that is a run. Raises MergeError for LoRAs of unequal shapes or base models,
    ConfigError for settings that do not fit, such as a top_k above their number, CheckpointError for what cannot be read, before
    anything is written.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    asked = RouteConfig.from_dict(given)
    asked.refuse_idle(given)
    paths = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    output = prepare_output(output, overwrite, [*paths, *read_by(asked), base])
    sources = gather(paths, asked.experts)
    general = gather(asked.subtract) if asked.subtract else []
    check_alike([*sources, *general], asked.method, base)
    if "top_k" in asked.own_settings and asked.top_k > len(sources):
        raise ConfigError(
            f"top_k is {asked.top_k}, but {'1 LoRA is' if len(sources) == 1 else f'{len(sources)} LoRAs are'} there to choose from: expected 1 "
            f"to {len(sources)}, or more inputs"
        )
    bank = bank_of_experts(sources, asked, general)
    name = bank.base.where(base, sources[0].name)
    config = _settings(sources, bank, name, kind, bank.base.loading(loading, base), base)
    prepare_output(output, overwrite, [config.model, config.tasks])  # which only the LoRAs may have named
    own = None
    if BY_TOKEN[asked.method].gates:
        if asked.tasks is None and all(source.run is None for source in sources):
            raise ConfigError(_without_tasks(paths, asked.method))
        collection = read_tasks(asked.tasks or config.tasks, config.data)
        config = dataclasses.replace(config, tasks=asked.tasks or config.tasks)
        if BY_TOKEN[asked.method].joint:
            own = as_one_task(collection, bank.tasks[0])
        else:
            own = tasks_of(bank.tasks, [names_of([source])[0] for source in sources], collection, asked.method)
    model, tokenizer = load_backbone(name, config.kind, Loading.of(config))
    bank = with_directions(fitted(bank, model, name), asked.seed)
    attached = attach_checkpoint(bank, model)  # which raises for another base model
    bank = dataclasses.replace(bank, base=describe_base(model, name))
    gates = attached.rows_of_tasks() | attached.shared_routing()
    with writing_folder(output) as folder:
        run = RunFolder(folder, {})
        run.start(
            config,
            kind="pretrain",
            method=config.method,
            mode=None,
            base=name,
            model_kind=kind_of(model),
            tasks=bank.tasks,
            routed={
                "experts": [source.name for source in sources],
                **({"subtracted": [source.name for source in general]} if general else {}),
            },
            notes=[],
            parameters={
                "trained": 0 if own is None else sum(t.numel() for t in gates.values()),
                "all": sum(p.numel() for p in model.parameters()),
            },
        )
        if own is not None:
            train_gates(model, tokenizer, own, config, asked, folder / GATES, progress=progress)
            gates = attached.rows_of_tasks() | attached.shared_routing()
            found = {name: tensor.detach().clone() for name, tensor in gates.items()}
            bank = dataclasses.replace(bank, tensors={**bank.tensors, **found})
        write_adapter(bank, run.adapter)
        run.write(status="done", steps=0 if own is None else asked.steps)
    return RunFolder.open(output)


def with_directions(bank: AdapterCheckpoint, seed: int) -> AdapterCheckpoint:
    """A bank of LoRAs with the directions that its method finds in these, [S, I] in each layer; zeros where they are trained, and what
    is drawn by the seed where tokens attend to all."""
    router = routers[bank.config.method]
    found: dict[str, Tensor] = {}
    for index, (layer, group) in enumerate(bank.groups.items()):
        if not issubclass(router, TokenRouter):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + index)
                inputs, outputs = bank.layers[layer]
                drawn = make_router(bank.config, bank.tasks, index, sizes=(inputs or 0, outputs or 0))
            found |= {f"routers.{group}.{name}": tensor for name, tensor in drawn.state_dict().items()}
            continue
        a, b = (bank.tensors[f"layers.{layer}.{name}"][0] for name in ("bank_a", "bank_b"))
        directions = router.directions_of(a, b)
        if directions is None:  # which are trained
            directions = torch.zeros(a.shape[:2], dtype=accumulator(a.dtype))
        found[f"routers.{group}.directions"] = directions
    return dataclasses.replace(bank, tensors={**bank.tensors, **found})


def _without_tasks(paths: Sequence[str | Path], method: str) -> str:
    shown = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    called = "" if BY_TOKEN[method].joint else " that calls the task of each adapter as its folder is called"
    return (
        f"method {method!r} is trained on tasks, and no input is a run, which would say where its tasks are, but adapters alone ({shown}): add "
        f"--tasks with a collection{called}"
    )


def _settings(
    sources: Sequence[PlainAdapter],
    bank: AdapterCheckpoint,
    name: str,
    kind: str | None,
    loading: Loading,
    base: str | None,
) -> RunConfig:
    """The settings of the run: what is read, and how the base is loaded, as of the first input that is a run."""
    run = next((source.run for source in sources if source.run is not None), None)
    before = RunConfig(tasks=NO_TASKS) if run is None else run.config()
    options = loading.over(before, base)
    return RunConfig(
        model=name,
        kind=kind or bank.base.kind or before.kind,
        tasks=before.tasks,
        method=method_of(bank.config.method, bank.config.adapter),
        adapter=bank.config,
        data=before.data,
        train=TrainConfig(length_norm=before.train.length_norm, precision=before.train.precision),
        adapt=before.adapt,
        **{
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(options)
            if getattr(options, field.name) is not None
        },
    )
