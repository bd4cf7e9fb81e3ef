"""Tasks that were never trained on: `python -m mhr_benchmarks.studies.unseen --output DIR [--setting minilm|t5 --tasks PATH]`.

What is trained and how it answers stands in unseen_plan.py, on what in unseen_settings.py, what is asked in unseen_claims.py. Three stages, of which
--workers processes of one thread each do the pieces side by side:

    trials   everything with every learning rate on tasks that no run is trained on and that judge nothing else, one seed; what they decide is
             written to benchmarks/studies/choices/unseen_SETTING.json, and the command ends: that file is to be committed
    seeds    everything with the rates that are committed there, seed by seed
    page     benchmarks/results/unseen_SETTING (JSON and Markdown)

What is done is kept, so the same command takes up an interrupted study; with --only-publish it makes the page of what is done,
and what another machine needs to go on from there (NAME.unfinished.json in benchmarks/results). With --quick all of it is small, and the choices and the page go into the output folder.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from mhr.data import TaskCollection, load_tasks
from mhr.experts import route_tokens
from mhr.files import read_json
from mhr.runs import RunFolder, load_config
from mhr.training import pretrain

from . import RESULTS
from .choices import best, freeze
from .paper_settings import default_tasks
from .stages import STATE, Stages
from .trials_first import command_of_setting, parser_of_settings, published_in, run_all, run_study
from .unseen_page import publish
from .unseen_plan import (
    EVALUATED,
    ROUTED,
    SEARCHED,
    TRIAL,
    Row,
    Setting,
    Unit,
    adapting_trials,
    few_shot,
    trials,
    units,
    zero_shot,
)
from .unseen_settings import SETTINGS


def do(unit: Unit, output: Path) -> None:
    """Make one unit, or what is missing of it."""
    plan, base = unit.setting.plan, unit.setting.base
    stages = Stages(output / unit.folder, {"unit": unit.name, "plan": asked(unit)})
    judged = load_tasks(unit.tasks.file, limit_test=plan.test).select(list(unit.tasks.judged))
    config = load_config(
        tasks=unit.tasks.file,
        method=unit.trained.method,
        steps=plan.steps,
        batch_size=plan.batch,
        save_every=10**6,
        lr=unit.lr,
        seed=unit.seed,
        **base,
        **unit.trained.settings,
    )
    work = partial(pretrain, config, str(stages.output / "run"), resume=True, progress=False)
    run = stages.timed("pretrain", work)
    stages.keep("pretrained", run)
    for row in unit.rows:
        _answered(unit, stages, run, row, judged)
    for row in unit.setting.rows(unit.trained):
        for rate in unit.rates.get(row.name, ()):
            name = f"{few_shot(row.name)} {rate:g}" if unit.kind == TRIAL else few_shot(row.name)
            settings = {"lr": rate, "steps": plan.adapt_steps, "batch_size": plan.adapt_batch, **unit.trained.adapting}
            _adapted(unit, stages, run, row, name, judged, **settings)
    stages.finish(unit.rates)


def asked(unit: Unit) -> dict[str, Any]:
    """What decides the results of a unit, but for the rates of a trial's adaptations, of which it gets more as it goes on."""
    plan = dataclasses.asdict(unit.setting.plan)
    for name in ("seeds", "rates", "adapt_rates", "trial_seed"):
        del plan[name]
    rates = {} if unit.kind == TRIAL else {row: list(rates) for row, rates in unit.rates.items()}
    trained = {"method": unit.trained.method, "settings": unit.trained.settings, "lr": unit.lr, "rates": rates}
    return {**trained, "judged": list(unit.tasks.judged), **plan}


def _answered(unit: Unit, stages: Stages, run: RunFolder, row: Row, judged: TaskCollection) -> None:
    """Score the unseen tasks without training on them."""
    name, plan = zero_shot(row.name), unit.setting.plan
    if row.answers == EVALUATED:
        stages.score(name, run.path, judged, unit.seed)
    elif row.answers == ROUTED:
        folder = stages.output / "routed"
        if not (folder / "run.json").is_file():
            work = partial(route_tokens, run.path, output=folder, overwrite=True, progress=False, top_k=plan.top_k)
            stages.timed(f"route {row.name}", work)
        stages.score(name, folder, judged, unit.seed)
    elif row.answers == SEARCHED:
        _adapted(unit, stages, run, row, name, judged, steps=plan.hub_steps)
    else:
        _adapted(unit, stages, run, row, name, judged, steps=0)


def _adapted(
    unit: Unit, stages: Stages, run: RunFolder, row: Row, name: str, judged: TaskCollection, **settings: Any
) -> None:
    """Adapt a run to each of the judged tasks and score what came out as `name`."""
    mode = "lorahub" if row.answers == SEARCHED else row.mode
    assert mode is not None
    stages.adapt(name, run, mode, judged, unit.seed, shots=unit.setting.plan.shots, **settings, **row.settings)


# ---- what is chosen --------------------------------------------------------------------------------------------------


def choose(setting: Setting, output: Path, file: Path, workers: int) -> None:
    """Run the trials and freeze what they decide: the rate of all that is pretrained, and of each row's adaptation."""
    run_all(do, trials(setting), output, workers)
    tried = {
        one.name: {unit.lr: _mean(unit, output, zero_shot(unit.rows[0].name)) for unit in own}
        for one in setting.trained
        for own in ([unit for unit in trials(setting) if unit.trained.name == one.name],)
    }
    chosen = {name: best(own) for name, own in tried.items()}
    further = adapting_trials(setting, chosen)
    run_all(do, further, output, workers)
    adapted = {
        unit.trained.name: {
            row: {rate: _mean(unit, output, f"{few_shot(row)} {rate:g}") for rate in rates}
            for row, rates in unit.rates.items()
        }
        for unit in further
    }
    decided = {
        name: {
            "lr": lr,
            "trials": {f"{rate:g}": score for rate, score in tried[name].items()},
            "rows": {row: best(own) for row, own in adapted.get(name, {}).items()},
            "row_trials": {
                row: {f"{rate:g}": score for rate, score in own.items()} for row, own in adapted.get(name, {}).items()
            },
        }
        for name, lr in chosen.items()
    }
    freeze(file, plan_of_trials(setting), {"trained": decided})


def _mean(unit: Unit, output: Path, row: str) -> float:
    """The mean score over the tasks of the trials."""
    scores = read_json(output / unit.folder / STATE)["scores"][row]
    return mean(own[str(unit.seed)]["score"] for own in scores.values())


def plan_of_trials(setting: Setting) -> dict[str, Any]:
    """What the trials depend on, for the file that their choices are frozen in: not the test seeds, nor where things lie."""
    known = dataclasses.asdict(setting.plan)
    for name in ("seeds", "hub_steps"):
        del known[name]
    return {
        **known,
        "judged": list(setting.trials.judged),
        "training": list(setting.trials.training),
        "trained": [{"name": one.name, "rows": [row.name for row in setting.rows(one)]} for one in setting.trained],
    }


def main() -> None:
    args = parser_of_settings(__doc__, SETTINGS).parse_args()
    setting = SETTINGS[args.setting](args.output, args.tasks or str(default_tasks()), args.quick)
    results, command = published_in(args, args.results, RESULTS), command_of_setting("unseen", args)
    run_study(
        "unseen",
        args,
        plan=plan_of_trials(setting),
        trials=lambda file: choose(setting, args.output, file, args.workers),
        do=do,
        pieces=lambda chosen, seeds: units(setting, chosen, seeds),
        publish=lambda chosen, pieces: publish(setting, pieces, chosen, args.output, results, command),
    )


if __name__ == "__main__":
    main()
