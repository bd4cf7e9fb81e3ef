"""What a sweep is asked to do: which runs, modes, tasks and seeds go together, and what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhr.backbones import check_loading, load_tokenizer
from mhr.data import TaskCollection
from mhr.errors import ConfigError
from mhr.few_shot.adaptation import Adaptation
from mhr.few_shot.adapting import check_given, few_shot_settings, fitting_tasks, named_tasks
from mhr.few_shot.selecting import data_of, read_dev, share_out
from mhr.few_shot.starts import check_mode, head_of_run
from mhr.files import folder_name
from mhr.loading import Loading
from mhr.methods import MODES
from mhr.runs.config import to_dict
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig, paths_read
from mhr.sweeps.worker import Study


@dataclass(frozen=True)
class SweepPlan:
    """study: what all adaptations share; adaptations: run by run, mode by mode, task by task; data: what distinguishes the examples
    of each; notes: what is left out; reads: the runs and what they are adapted with, as far as these are paths."""

    study: Study
    adaptations: list[Adaptation]
    data: list[str]
    notes: list[str]
    reads: list[str]

    def units(self) -> list[list[Any]]:
        """What was asked for: [run, mode, task, seed] of each adaptation, as `mhr.sweeps.table.key_of` has them."""
        return [[self.study.names[one.run], one.mode, one.task, one.seed] for one in self.adaptations]


def plan(
    runs: Sequence[str],
    known: Mapping[str, str],
    tasks: Sequence[str] | None,
    modes: Sequence[str],
    output: Path,
    changed: dict[str, Any],
    limit: int | None,
    few: dict[str, Any],
) -> SweepPlan:
    """The arguments of `mhr.sweeps.sweep` made definite. known: path of a run -> its name in the table that is resumed; changed:
    settings of `few_shot_settings` that are not as the runs say.

    Nothing is written. Raises ConfigError, TaskError, DataError and CheckpointError for what does not fit.
    """
    paths = _names(runs, known)
    sources = {name: RunFolder.open_pretrained(run) for name, run in paths.items()}
    configs = {name: few_shot_settings(run.config(), few, **changed) for name, run in sources.items()}
    for name, source in sources.items():
        source.result()
        check_loading(Loading.of(configs[name]))
    allowed, notes = _allowed(paths, configs, modes)
    asked = [(mode, configs[name]) for name, modes in allowed.items() for mode in modes]
    check_given(few, asked, [source.info["model_kind"] for source in sources.values()])
    adaptations: list[Adaptation] = []
    data: list[str] = []
    shared: dict[str, Any] = {}
    read: dict[str, tuple[TaskCollection, TaskCollection | None]] = {}  # once for all runs that read the same
    for name, config in configs.items():
        run = paths[name]
        shared[name] = {
            "path": str(sources[name].path.resolve()),
            "trained": sources[name].fingerprint(),
            "adapt": {k: v for k, v in to_dict(config)["adapt"].items() if k != "seeds"},
        }
        key = repr((config.tasks, config.data, config.adapt.shots_for, config.adapt.dev))
        if key not in read:
            read[key] = named_tasks(config, tasks), read_dev(config)
        collection, validation = read[key]
        fitting, left_out = _fitting(collection, sources[name], config, tasks is not None)
        notes += [f"left out: task {task!r} of run {run}: {reason}" for task, reason in left_out.items()]
        for mode in allowed[name]:
            for task in fitting.values():
                for seed in config.adapt.seeds:
                    # Too few examples are refused before anything is done.
                    shots = share_out(task, config, seed, mode, validation)
                    data.append(data_of(task, shots, task.test[:limit]))
                    folder = output / "units" / name / mode / folder_name(task.name) / str(seed)
                    adaptations.append(Adaptation(run, mode, task.name, seed, folder))
    identity = {"runs": shared, **{name: changed[name] for name in ("tasks", "template", "on_bad_row")}, "limit": limit}
    identity |= {name: changed[name] for name in ("prompt", "verbalizers") if changed[name] is not None}
    identity |= {"loading": said} if (said := changed["loading"].said()) else {}
    names = {path: name for name, path in paths.items()}
    reads = [*paths.values(), *(path for config in configs.values() for path in paths_read(config))]
    return SweepPlan(Study(names, changed, limit, few, identity), adaptations, data, notes, reads)


def _fitting(
    collection: TaskCollection, source: RunFolder, config: RunConfig, named: bool
) -> tuple[TaskCollection, dict[str, str]]:
    """The tasks that a run can be adapted to, and why others are left out. The tokenizer is loaded only where inputs have to be measured."""
    kind = source.info["model_kind"]
    measured = config.data.fit and not named
    tokenizer = load_tokenizer(config.model, Loading.of(config)) if measured else None
    return fitting_tasks(collection, named, kind, tokenizer, config, head_of_run(source, config))


def _names(runs: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """A short name for every run: the one that is known, or the last part of its path and as much before it as makes it unique."""
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ConfigError("a run is given twice: name each run once")
    for n in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = [known.get(str(path)) or "/".join(path.parts[-n:]) for path in paths]
        others = [name for path, name in known.items() if Path(path) not in paths]
        if len({*names, *others}) == len(names) + len(others):
            return dict(zip(names, map(str, runs), strict=True))
    raise ConfigError("no run is given: name at least one")


def _allowed(
    names: Mapping[str, str], configs: Mapping[str, RunConfig], modes: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The modes of each run, and a note for every combination that does not go together."""
    if not modes:
        raise ConfigError(f"modes is empty: name at least one of {', '.join(MODES)}")
    allowed: dict[str, list[str]] = {name: [] for name in names}
    faults: dict[str, ConfigError] = {}
    for mode in dict.fromkeys(modes):
        for name, run in names.items():
            try:
                checked = check_mode(mode, configs[name], run)
                allowed[name] = list(dict.fromkeys([*allowed[name], checked]))  # a mode may be asked for by two names
            except ConfigError as error:
                faults[f"{name} {mode}"] = error
        if not any(f"{name} {mode}" not in faults for name in names):
            raise next(error for key, error in faults.items() if key.endswith(f" {mode}"))
    for name in names:
        if not allowed[name]:
            raise next(error for key, error in faults.items() if key.startswith(f"{name} "))
    return allowed, [f"left out: {error}" for error in faults.values()]
