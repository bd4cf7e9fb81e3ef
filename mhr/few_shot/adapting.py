"""Few-shot adaptation: from a pretraining run to unseen tasks, one adapted checkpoint per task and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mhr.data import TaskCollection
from mhr.data.choice_collators import beginnings
from mhr.errors import ConfigError, DataError, TrainingError, nearest
from mhr.few_shot.adaptation import Adaptation, Preparation, copies_rows, finished, frozen_heap, make, ranks
from mhr.few_shot.selecting import grid_points, read_dev
from mhr.few_shot.starts import check_mode, head_of_run, load_start
from mhr.files import folder_name, held_in, make_folder, prepare_output, read_json, write_json_atomically
from mhr.loading import Loading
from mhr.locks import one_writer
from mhr.methods import METHODS, MODES, idle_settings, predicts_rows
from mhr.objectives import objective_of
from mhr.objectives.fit import notes_on
from mhr.objectives.lengths import fit_data
from mhr.objectives.usable import usable_tasks
from mhr.runs.adapt_settings import AdaptConfig, OptimizationConfig
from mhr.runs.config import Said, assignments, differences, to_dict
from mhr.runs.run import RunFolder, clear
from mhr.runs.settings import RunConfig, paths_read, with_chat_template
from mhr.runs.tasks import read_tasks, tell
from mhr.runs.unused import refuse_unused
from mhr.setting import settings_of
from mhr.training.processes import check_precision, processes
from mhr.training.watch import ProgressBar

ADAPT_FILE = "adapt.json"

HELD_AS = ("dtype", "quantize")
"""How the base model's weights are held, which decides what is adapted."""

SERVES = {"lr": "train the adapter", "router_lr": "train routing", "full_lr": "train all weights"}
"""What a mode does that a setting is for; the others are for gradient steps."""

OF_STEPS = {"full_lr", *settings_of(OptimizationConfig)} - {"steps", "length_norm"}
"""Settings that change nothing where no step is trained."""


@one_writer
def adapt(
    run: str,
    tasks: Sequence[str] | None = None,
    *,
    mode: str,
    output: str,
    tasks_path: str | None = None,
    template: str | None = None,
    prompt: str | None = None,
    verbalizers: dict[str, str] | None = None,
    on_bad_row: str | None = None,
    chat_template: str | None = None,
    train_on: str | None = None,
    system: str | None = None,
    base: str | None = None,
    loading: Loading | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **few: Any,
) -> list[RunFolder]:
    """Adapt the pretraining run in the folder `run` to each of `tasks` with each of the seeds, from a few examples.

    mode         loaded                                                     trained
    mhr (poly)   the bank, a fresh routing row for the task                 both
    z            the same                                                   that row
    head         the bank, a fresh head for the task (method hra)           that head
    mu           the bank's uniform factor average: one plain LoRA          that LoRA
    lora         the shared adapter                                         that adapter
    lorahub      LoRAs of the run, averaged                                 their weights, by a search: `mhr.few_shot.lorahub`
    full         the backbone                                               all of it (at `lr`, or AdaptConfig.full_lr)
    random       a fresh bank with the run's settings, a fresh row          both

    tasks        names; None takes every held-out task that the model can be trained on
    tasks_path   another collection than the run's
    template     other prompt templates than the run's; prompt, verbalizers, on_bad_row, chat_template, train_on and system
                 likewise
    base         base model, where it is no longer at the place that the run names
    loading      how the base model is loaded, where not as in the run; that the run trusts code does not count
    resume       skip what is done in `output` already; tasks that are not named now stay listed there
    few          fields of AdaptConfig (shots, seeds, steps, lr, grid, protocol ...); None and what is not given are as the
                 run's `adapt` settings say

    Without a grid and without selection of the best step, each adaptation is one training, and its last step counts. With
    one, the protocol gives the validation examples: `mhr.few_shot.selecting.share_out`.

    Returns the run folders OUTPUT/TASK/SEED, task by task; OUTPUT/adapt.json lists them, and each run.json says the protocol
    and how it was chosen. Shots are drawn by `mhr.few_shot.shots.draw_shots`, the same for all modes and methods. Raises
    MhrError for settings, tasks or folders that do not fit, before anything is written; TrainingError for a loss that is not
    finite; Interrupted on Ctrl-C.
    """
    if processes().num_processes > 1:
        raise ConfigError("adapt runs in one process: start it without torchrun")
    source = RunFolder.open_pretrained(run)
    config = few_shot_settings(
        source.config(),
        few,
        tasks=tasks_path,
        model=base,
        loading=loading,
        template=template,
        prompt=prompt,
        verbalizers=verbalizers,
        on_bad_row=on_bad_row,
        chat_template=chat_template,
        train_on=train_on,
        system=system,
    )
    reads = [run, *paths_read(config)]
    config = with_chat_template(config)
    own, now = vars(source.config().data), vars(config.data)
    mode = check_mode(mode, config, run)
    kind = source.info["model_kind"]
    check_given(few, [(mode, config)], [kind])
    check_precision(config.train.precision)
    if not (resume and held_in(output)):
        prepare_output(output, overwrite, reads)
    described = {
        "mode": mode,
        "source": str(source.path.resolve()),
        "trained": source.fingerprint(),
        "settings": to_dict(config)["adapt"],
        "tasks": config.tasks,
        "template": config.data.template,
        "prompt": config.data.prompt,
        "verbalizers": config.data.verbalizers or None,
        "on_bad_row": on_bad_row,
        **{name: now[name] if now[name] != own[name] else None for name in ("chat_template", "train_on", "system")},
        **{name: getattr(config, name) for name in HELD_AS},
    }
    if resume:
        _check_same(Path(output), described)
    source.result()
    collection = named_tasks(config, tasks)
    validation = read_dev(config)
    start = load_start(source, config, mode)
    kind = source.info["model_kind"]
    data, lowered = fit_data(start.model, start.tokenizer, kind, config.data, config.model)
    config = dataclasses.replace(config, data=data)
    head = head_of_run(source, config)
    collection, left_out = fitting_tasks(collection, tasks is not None, kind, start.tokenizer, config, head)
    prepared = Preparation(source, config, start, collection, validation)
    adaptations = [
        Adaptation(str(source.path), mode, task, seed, Path(output) / folder_name(task) / str(seed))
        for task in collection
        for seed in config.adapt.seeds
    ]
    prepared.check_batches(adaptations)
    prepared.check_beginnings(adaptations)
    for one in adaptations if resume else ():
        finished(one, prepared)
    folder = make_folder(output)
    if overwrite and not resume:
        clear(folder)
    described["left_out"] = left_out
    described["notes"] = [*([lowered] if lowered else []), *notes_on(start.tokenizer, kind)]
    bank = getattr(start.model, "mhr", None)
    described["notes"] += [] if bank is None else bank.notes
    if objective_of(kind).generates and ranks(config, mode):
        described["notes"] += ranking_notes(collection)
    described["runs"] = [
        {"task": one.task, "seed": one.seed, "path": str(one.folder.relative_to(folder))} for one in adaptations
    ]
    write_json_atomically(folder / ADAPT_FILE, _with_earlier(folder, described))
    steps = sum(map(prepared.steps_of, adaptations))
    with ProgressBar(steps, f"adapt {mode}", progress) as bar, frozen_heap():
        return [make(one, prepared, bar) for one in adaptations]


def few_shot_settings(
    config: RunConfig,
    few: dict[str, Any],
    *,
    tasks: str | None = None,
    model: str | None = None,
    loading: Loading | None = None,
    **reading: Any,
) -> RunConfig:
    """The settings of a run with other few-shot ones, and with what is given of the others (`reading`: of its section data); that a
    run trusts the code of its base model does not count. A number of shots is for all tasks, unless shots_for comes with it; a value of
    what the run has a grid of is not searched. Raises ConfigError for an unknown setting, and for another base of a run that trained all
    weights."""
    known = [f.name for f in dataclasses.fields(AdaptConfig)]
    for name in few:
        if name not in known:
            raise ConfigError(f"unknown few-shot setting {name!r}: {nearest(name, known)}")
    if model is not None and METHODS[config.method].routing is None:
        raise ConfigError(
            f"base is {model!r}, but the run has method {config.method!r}, whose weights are all its own: leave it out"
        )
    given = {name: value for name, value in few.items() if value is not None}
    if "lr" in given:
        given.setdefault("full_lr", given["lr"])
    # What is said now takes the place of what the run has of the same.
    if "shots" in given:
        given.setdefault("shots_for", {})
    said = {*given, *({"lr"} if "full_lr" in given else ())}
    given.setdefault("grid", {name: values for name, values in config.adapt.grid.items() if name not in said})
    data: dict[str, Any] = {name: value for name, value in reading.items() if value is not None}
    if "template" in data:
        data = {"prompt": None, "verbalizers": {}} | data
    elif "prompt" in data or "verbalizers" in data:
        data = {"template": None} | data
    return dataclasses.replace(
        config,
        model=model or config.model,
        **vars((loading or Loading()).over(config)),
        tasks=tasks or config.tasks,
        data=dataclasses.replace(config.data, **data),
        adapt=dataclasses.replace(config.adapt, **given),
    )


def check_given(few: dict[str, Any], modes: Sequence[tuple[str, RunConfig]], kinds: Sequence[str]) -> None:
    """Raise ConfigError for a few-shot setting that was given and would change nothing: by the modes (each with the settings of
    its run) and by the kinds of models that are adapted."""
    given = [name for name, value in few.items() if value is not None]
    grid = few.get("grid") or {}
    for name in [*given, *grid]:
        if all(name in idle_settings(mode, config.trained_as) for mode, config in modes):
            shown = " or ".join(dict.fromkeys(repr(mode) for mode, _ in modes))
            said = f"{name} is {few[name]}" if name in given else f"grid has {name} {list(grid[name])}"
            raise ConfigError(
                f"{said}, but mode {shown} does not {SERVES.get(name, 'take gradient steps')}: leave it out"
            )
        if name in OF_STEPS and not any(config.adapt.steps for _, config in modes):
            raise ConfigError(
                f"{name} is {few[name]}, but steps is 0, so that nothing is trained: leave one of the two out"
            )
    refuse_unused({f"adapt.{name}": Said(few[name]) for name in given}, *(config for _, config in modes))
    for name in ("candidates", "experts"):
        if name in given and not any(MODES[mode].searches for mode, _ in modes):
            searching = " or ".join(repr(name) for name, row in MODES.items() if row.searches)
            raise ConfigError(
                f"{name} is {few[name]!r}, but mode {modes[0][0]!r} weighs no LoRAs: use mode {searching}, or leave it out"
            )
    copying = [config for mode, config in modes if copies_rows(mode, config)]
    if few.get("start") not in (None, "fresh") and not copying:
        mode, config = modes[0]
        raise ConfigError(
            f"start is {few['start']!r}, but a run of method {config.method!r} in mode {mode!r} begins with no row of its own, which that "
            "of another task could be: leave it out"
        )
    unpredicted = [config.method for config in copying if not predicts_rows(config.method)]
    if few.get("start") == "predicted" and unpredicted:
        raise ConfigError(
            f"start is 'predicted', which is of logits whose sigmoids route, but a row of method {unpredicted[0]!r} is none: use nearest, average "
            "or random"
        )
    if kinds and all(kind in ("encoder", "masked") for kind in kinds):
        for name in ("length_norm", "mc_loss", "unlikely_loss"):
            if name in given:
                raise ConfigError(
                    f"{name} is {few[name]}, but an encoder is trained by ranking choices and has no other loss: leave it out"
                )
    chooses = any(config.adapt.picks_step or len(grid_points(config, mode)) > 1 for mode, config in modes)
    for name, usual in (("dev", None), ("dev_shots", 0), ("protocol", AdaptConfig.protocol)):
        if few.get(name) not in (None, usual) and not chooses:
            raise ConfigError(
                f"{name} is {few[name]}, but nothing is chosen: add grid, eval_every, patience or select 'best', or leave it out"
            )


def check_said(overrides: Sequence[str], modes: Sequence[tuple[str, RunConfig]]) -> None:
    """Raise ConfigError for a setting that overrides ("adapt.steps=50") name and that changes nothing where runs, each with its settings,
    are trained and then adapted in these modes."""
    said = assignments(overrides)
    refuse_unused(said, *(config for _, config in modes))
    values = modes[0][1].adapt
    named = {key.split(".")[1] for key in said if key.startswith("adapt.")}
    check_given({name: getattr(values, name) for name in settings_of(AdaptConfig) if name in named}, modes, [])


def named_tasks(config: RunConfig, names: Sequence[str] | None) -> TaskCollection:
    """The tasks of a collection by their names, or those that it holds out. Raises TaskError and DataError."""
    collection = read_tasks(config.tasks, config.data)
    for name in config.adapt.shots_for:
        if not set(name) & set("*?["):
            collection[name]  # a name that is no pattern and no task is a slip of the pen
        elif not any(fnmatchcase(task, name) for task in collection):
            tell(
                [f"shots_for has {name!r}, which fits no task of {config.tasks}"]
            )  # a recipe names tasks that users may lack
    if names is not None and not names:
        raise DataError(
            "tasks is empty: name at least one, or leave it out to take those that the collection holds out"
        )
    if names is not None:
        return collection.select(list(dict.fromkeys(names)))
    held_out = collection.held_out()
    if not len(held_out):
        raise DataError(f"{config.tasks} has no held-out tasks: name the tasks to adapt to")
    return held_out


def fitting_tasks(
    collection: TaskCollection,
    named: bool,
    kind: str,
    tokenizer: PreTrainedTokenizerBase | None,
    config: RunConfig,
    head: str,
) -> tuple[TaskCollection, dict[str, str]]:
    """The tasks that the model can be trained on, and why others are left out; an error where those were asked for by name."""
    data = dataclasses.replace(config.data, fit=config.data.fit and not named)
    kept, left_out = usable_tasks(collection, kind, tokenizer, data, head)
    if named and left_out:
        name, reason = next(iter(left_out.items()))
        raise DataError(f"cannot adapt to task {name!r}: {reason}")
    return kept, left_out


def ranking_notes(collection: TaskCollection) -> list[str]:
    """A line for every task on whose choices a ranking loss has a hard time."""
    notes = []
    for task in collection.values():
        pair = next(filter(None, (beginnings(example) for example in task.train)), None)
        if pair is not None:
            notes.append(
                f"task {task.name!r}: choice {pair[0]!r:.40} is the beginning of choice {pair[1]!r:.40}; only the end token "
                "distinguishes them, and unlikely_loss pushes against both"
            )
    return notes


def _with_earlier(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """What adapt.json says of `described` adaptations and of earlier ones of other tasks in the same folder."""
    if not (folder / ADAPT_FILE).is_file():
        return described
    before = read_json(folder / ADAPT_FILE, TrainingError)
    earlier = [run for run in before.get("runs", []) if run not in described["runs"]]
    return described | {
        "left_out": before.get("left_out", {}) | described["left_out"],
        "notes": list(dict.fromkeys([*before.get("notes", []), *described["notes"]])),
        "runs": [*earlier, *described["runs"]],
    }


def _check_same(folder: Path, described: dict[str, Any]) -> None:
    """Raise TrainingError where `folder` holds adaptations that were made in another way."""
    if not (folder / ADAPT_FILE).is_file():
        return
    before = read_json(folder / ADAPT_FILE, TrainingError)
    before["settings"] = AdaptConfig().to_dict() | before.get(
        "settings", {}
    )  # one written without a setting had its default
    untold = {name: described[name] for name in ("trained", *HELD_AS)}  # by an earlier release
    before = untold | before
    changed = [
        f"{key.replace('settings.', 'adapt.')} {one!r}, not {other!r}"
        for key in described
        for key, one, other in differences({key: before.get(key)}, {key: described[key]})
    ]
    if changed:
        raise TrainingError(
            f"{folder} holds adaptations with {'; '.join(changed)}: resume them with the same settings, or choose another "
            "output folder"
        )
