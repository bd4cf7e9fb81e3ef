"""AdaMix's claim on real tasks, for the record: `python -m mhr_benchmarks.studies.adamix --output DIR [--tasks PATH]`.

What is trained stands in adamix_plan.py, what is asked in adamix_claims.py; both were written down before the runs. Three stages, of which
--workers processes of one thread each do the runs side by side:

    trials   every method with every learning rate; what they decide is written to benchmarks/studies/choices/adamix.json, and the command
             ends: that file is to be committed
    seeds    every method with the rate that is committed there, seed by seed, then the longer runs
    page     benchmarks/results/adamix (JSON and Markdown)

What is done is kept, so the same command takes up an interrupted study; with --only-publish it makes the page of what is done,
and what another machine needs to go on from there (NAME.unfinished.json in benchmarks/results). With --quick
all of it is small, and the choices and the page go into the output folder.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from mhr.data import load_tasks
from mhr.evaluation import Inference
from mhr.files import make_folder, read_json, write_text_atomically
from mhr.runs import load_config
from mhr.training import pretrain

from . import RESULTS
from .adamix_page import publish
from .adamix_plan import AVERAGE, METHODS, QUICK, TEST, TRIAL, TRIAL_TEST, Plan, Setting, Unit
from .choices import best, freeze
from .paper_settings import default_tasks, encoder
from .stages import STATE, Stages
from .task_files import lines_of
from .trials_first import command_of_setting, parser_of_settings, published_in, run_all, run_study

INFERENCE = {
    AVERAGE: Inference(),
    "per sentence": Inference("sentence"),
    "ensemble of 4": Inference("ensemble", 4),
}


def do(unit: Unit, output: Path) -> None:
    """Make one unit, or what is missing of it."""
    plan = unit.plan
    stages = Stages(output / unit.folder, {"unit": unit.folder, "plan": asked(unit)})
    config = load_config(
        model=unit.base,
        kind="encoder",
        head="classify",
        tasks=unit.file,
        steps=unit.steps,
        batch_size=plan.batch,
        precision=plan.precision,
        lr=unit.lr,
        seed=unit.seed,
        max_input_length=plan.max_length,
        save_every=10**6,
        **unit.method.settings,
    )
    work = partial(pretrain, config, str(stages.output / "run"), resume=True, progress=False)
    run = stages.timed("pretrain", work)
    stages.keep("run", run)
    tasks = load_tasks(unit.file, limit_test=TRIAL_TEST if unit.kind == TRIAL else sys.maxsize)
    for way, inference in INFERENCE.items():
        if way == AVERAGE or (unit.method.draws and unit.kind == TEST):
            judged = {"limit": plan.limit, "max_input_length": plan.max_length, "inference": inference}
            stages.score(way, run.path, tasks, unit.seed, **judged)
    stages.finish(unit.rates)


def asked(unit: Unit) -> dict[str, Any]:
    """What decides the results of a unit."""
    plan = dataclasses.asdict(unit.plan)
    names = ("n_train", "n_validation", "batch", "precision", "max_length", "limit")
    return {
        "settings": unit.method.settings,
        "lr": unit.lr,
        "steps": unit.steps,
        **{name: plan[name] for name in names},
    }


def make_setting(plan: Plan, tasks: str, output: Path) -> Setting:
    """The tasks in files, one for each; what is neither trained on nor for validation judges."""
    every = tuple(dict.fromkeys((*plan.trial_tasks, *plan.tasks)))
    folder = make_folder(output / "tasks")
    files = {}
    for name, task in load_tasks(tasks, definitions=False).select(list(every)).items():
        both = task.train + task.test
        train, rest = both[: plan.n_train], both[plan.n_train :]
        parts = {"train": train, "validation": rest[: plan.n_validation], "test": rest[plan.n_validation :]}
        text = "".join(lines_of(part, split) for split, part in parts.items())
        files[name] = str(write_text_atomically(folder / f"{name}.jsonl", text))
    return Setting(plan, encoder(), files)


def choose(setting: Setting, output: Path, file: Path, workers: int) -> None:
    """Run the trials and freeze what they decide: the rate of each method."""
    tried = setting.trials()
    run_all(do, tried, output, workers)
    found: dict[str, dict[float, float]] = {}
    for method in METHODS:
        for lr in method.rates:
            own = [_score(unit, output) for unit in tried if unit.method.name == method.name and unit.lr == lr]
            found.setdefault(method.name, {})[lr] = mean(own)
    methods = {
        name: {"lr": best(own), "trials": {f"{lr:g}": score for lr, score in own.items()}}
        for name, own in found.items()
    }
    freeze(file, plan_of_trials(setting.plan), {"methods": methods})


def _score(unit: Unit, output: Path) -> float:
    scores = read_json(output / unit.folder / STATE)["scores"]
    return float(scores[AVERAGE][unit.task][str(unit.seed)]["score"])


def plan_of_trials(plan: Plan) -> dict[str, Any]:
    """What the trials depend on, for the file that their choices are frozen in."""
    known = dataclasses.asdict(plan)
    for name in ("tasks", "long_tasks", "seeds", "steps", "long_steps", "limit"):
        del known[name]
    return known | {"methods": [dataclasses.asdict(method) for method in METHODS]}


def rates_of(choices: Mapping[str, Any]) -> dict[str, float]:
    return {name: own["lr"] for name, own in choices["methods"].items()}


def main() -> None:
    args = parser_of_settings(__doc__).parse_args()
    plan = QUICK if args.quick else Plan()
    setting = make_setting(plan, args.tasks or str(default_tasks()), args.output)
    results, command = published_in(args, args.results, RESULTS), command_of_setting("adamix", args)
    run_study(
        "adamix",
        args,
        plan=plan_of_trials(plan),
        trials=lambda file: choose(setting, args.output, file, args.workers),
        do=do,
        pieces=lambda chosen, seeds: setting.units(rates_of(chosen), seeds),
        publish=lambda chosen, units: publish(plan, units, chosen, args.output, results, command),
    )


if __name__ == "__main__":
    main()
