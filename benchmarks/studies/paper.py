"""The questions of the MHR paper at small size: `python -m mhr_benchmarks.studies.paper --output DIR [--setting real|decoder --tasks PATH]`.

What is trained stands in paper_plan.py, on what in paper_settings.py, what is asked in paper_claims.py; all was written down before the
runs. Three stages, of which --workers processes of one thread each do the pieces side by side:

    trials   every variant with every learning rate on tasks that judge nothing else, one seed; what they decide is written to
             benchmarks/studies/choices/paper_SETTING.json, and the command ends: that file is to be committed
    seeds    every variant with the rates that are committed there, seed by seed
    page     benchmarks/results/study_SETTING.json with every score, and docs/study.md (others: docs/study_SETTING.md)

What is done is kept, so the same command takes up an interrupted study; with --only-publish it makes the page of what is done,
and what another machine needs to go on from there (NAME.unfinished.json in benchmarks/results). With --quick
all of it is small, and the choices and the page go into the output folder.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from mhr.files import read_json

from . import RESULTS
from .choices import best, freeze
from .paper_page import publish
from .paper_plan import SCREEN, TEST, TRIAL, Setting, Unit, further_trials, rates_of, screening, trials, units
from .paper_settings import SETTINGS, default_tasks
from .stages import STATE, Stages
from .trials_first import command_of_setting, parser_of_settings, published_in, run_all, run_study

ROOT = Path(__file__).resolve().parents[2]
LEAST, MOST = 0.1, 0.95
"""Headroom of a task: how far a score has to be above the most frequent answer, and the highest score."""


def do(unit: Unit, output: Path) -> None:
    """Make one unit, or what is missing of it. A trial whose loss is not finite is done: what it has no loss or score of counts as the
    worst."""
    from mhr.errors import DivergedError

    stages = Stages(output / unit.folder, {"unit": unit.name, "plan": asked(unit)})
    try:
        _make(unit, stages)
    except DivergedError as error:
        if unit.kind != TRIAL:
            raise
        print(f"{unit.folder}: {error}", file=sys.stderr)
    stages.finish(unit.rates)


def _make(unit: Unit, stages: Stages) -> None:
    from mhr.data import load_tasks

    plan = unit.setting.plan
    tasks = load_tasks(unit.tasks.file, limit_test=plan.test)
    run = _pretrained(unit, stages, "run", plan.steps)
    judged = tasks.select(list(unit.judged))
    zero_shot = unit.kind == TEST and unit.setting.zero_shot
    if unit.kind != SCREEN:
        _losses(unit, stages, run, tasks.select(list(unit.tasks.training)))
    if zero_shot:
        stages.score("zero-shot", run.path, judged, unit.seed)
    for mode, rates in unit.rates.items():
        for rate in rates:
            _adapted(unit, stages, run, mode, rate, judged)
    if zero_shot and plan.more_steps and unit.variant.continued:
        more = {"continue_from": str(run.path), "continue_as": unit.variant.continued}
        further = _pretrained(unit, stages, "further", plan.more_steps, **more)
        stages.score("further zero-shot", further.path, judged, unit.seed)


def asked(unit: Unit) -> dict[str, Any]:
    """What decides the results of a unit, but for the rates of a trial's adaptations, of which it gets more as it goes on."""
    plan = dataclasses.asdict(unit.setting.plan)
    for name in ("seeds", "rates", "adapt_rates", "router_rates", "trial_seed"):
        del plan[name]
    rates = {} if unit.kind == TRIAL else {mode: list(rates) for mode, rates in unit.rates.items()}
    known = {"method": unit.variant.method, "settings": unit.variant.settings, "lr": unit.lr, "rates": rates}
    return {**known, "judged": list(unit.judged), "base": unit.setting.reading, **plan}


def _pretrained(unit: Unit, stages: Stages, name: str, steps: int, **more: Any) -> Any:
    from mhr.methods import idle_rates
    from mhr.runs import load_config
    from mhr.training import pretrain

    plan = unit.setting.plan
    rates = {} if "router_lr" in idle_rates("mhr", unit.variant.method) else {"router_lr": plan.router_lr}
    config = load_config(
        tasks=unit.tasks.file,
        method=unit.variant.method,
        steps=steps,
        save_every=plan.save_every,
        keep_checkpoints=max(plan.steps // plan.save_every, 1),
        batch_size=plan.batch,
        lr=unit.lr,
        seed=unit.seed,
        **unit.setting.base,
        **unit.variant.settings,
        **rates,
        **more,
    )
    work = partial(pretrain, config, str(stages.output / name), resume=True, progress=False)
    run = stages.timed(f"pretrain {name}", work)
    stages.keep("pretrained" if name == "run" else name, run)
    return run


def _losses(unit: Unit, stages: Stages, run: Any, seen: Any) -> None:
    """Loss on examples of the training tasks that were not trained on, by step, and the arithmetic of a step; of a trial the
    loss at the end alone."""
    from .flops import flops_of_run
    from .seen_loss import seen_losses

    if "losses" not in stages.state:
        found = stages.timed("losses", partial(seen_losses, run, seen, at_end=unit.kind == TRIAL))
        stages.state["losses"] = {str(step): losses for step, losses in found.items()}
        if unit.kind != TRIAL:
            stages.state["flops"] = flops_of_run(run, seen, unit.setting.plan.batch)
        stages.save()


def _adapted(unit: Unit, stages: Stages, run: Any, mode: str, rate: float, judged: Any) -> None:
    """Adapt a run to each of the judged tasks and score what came out: as row MODE, of trials as row "MODE RATE", which may end without a
    score."""
    from mhr.errors import DivergedError
    from mhr.methods import idle_rates

    plan = unit.setting.plan
    row = f"{mode} {rate:g}" if unit.kind == TRIAL else mode
    rates = {"router_lr": plan.adapt_router_lr} | {rates_of(plan, mode)[0]: rate}
    idle = idle_rates(mode, unit.variant.method)
    try:
        stages.adapt(
            row,
            run,
            mode,
            judged,
            unit.seed,
            shots=plan.shots,
            steps=plan.adapt_steps,
            batch_size=plan.adapt_batch,
            select="best",
            eval_every=plan.look_every,
            **{name: value for name, value in rates.items() if name not in idle},
        )
    except DivergedError as error:
        if unit.kind != TRIAL:
            raise
        print(f"{unit.folder}, {row}: {error}", file=sys.stderr)


# ---- what is chosen --------------------------------------------------------------------------------------------------


def choose(setting: Setting, output: Path, file: Path, workers: int) -> None:
    """Run the trials and freeze what they decide: for each variant the rate of pretraining and of each mode, and the tasks that are
    tested."""
    plan, first = setting.plan, trials(setting)
    run_all(do, first, output, workers)
    scores = {unit.name: trial_scores(unit, output) for unit in first}
    units_of = {(unit.variant.name, unit.lr): unit for unit in first}
    chosen = {
        variant.name: best({lr: max(scores[f"{variant.name}-{lr:g}"][variant.modes[0]].values()) for lr in plan.rates})
        for variant in setting.variants
    }
    further = further_trials(setting, chosen)
    run_all(do, further, output, workers)
    scores |= {unit.name: trial_scores(unit, output) for unit in further}
    methods = {
        variant.name: {
            "lr": chosen[variant.name],
            "modes": {mode: best(own) for mode, own in scores[f"{variant.name}-{chosen[variant.name]:g}"].items()},
            "losses": {f"{lr:g}": trial_loss(units_of[variant.name, lr], output) for lr in plan.rates},
            "trials": {
                f"{lr:g}": {
                    mode: {f"{rate:g}": score for rate, score in own.items()}
                    for mode, own in scores[f"{variant.name}-{lr:g}"].items()
                }
                for lr in plan.rates
            },
        }
        for variant in setting.variants
    }
    for name in methods:
        for mode, found in scores[f"{name}-{chosen[name]:g}"].items():
            if not any(found.values()):
                raise SystemExit(f"{name}: no trial of mode {mode!r} scored above 0, so there is no rate to choose")
    decided: dict[str, Any] = {"methods": methods}
    if setting.screens:
        looked_at = screening(setting, methods)
        run_all(do, looked_at, output, workers)
        decided |= screened(looked_at, output)
    freeze(file, plan_of_trials(setting), decided)


def trial_scores(unit: Unit, output: Path) -> dict[str, dict[float, float]]:
    """Mode -> rate -> mean score over the tasks of the trials, 0 where the loss was not finite."""
    scores = read_json(output / unit.folder / STATE)["scores"]

    def score(row: str) -> float:
        found = [own[str(unit.seed)]["score"] for own in scores.get(row, {}).values()]
        return mean(found) if len(found) == len(unit.judged) else 0.0

    return {mode: {rate: score(f"{mode} {rate:g}") for rate in rates} for mode, rates in unit.rates.items()}


def trial_loss(unit: Unit, output: Path) -> float | None:
    """Mean loss on unseen examples of the training tasks, which chooses the rate that losses are compared at; None where it was not
    finite."""
    losses = read_json(output / unit.folder / STATE).get("losses")
    return mean(next(iter(losses.values())).values()) if losses else None


def screened(looked_at: Iterable[Unit], output: Path) -> dict[str, Any]:
    """Every task's score, the mean over variants, and those that are kept: with at least LEAST above the most frequent answer, and at most MOST."""
    measured: dict[str, list[dict[str, float]]] = {}
    for unit in looked_at:
        (scores,) = read_json(output / unit.folder / STATE)["scores"].values()
        for task, seeds in scores.items():
            measured.setdefault(task, []).append(seeds[str(unit.seed)])
    found = {
        task: {name: mean(measures[name] for measures in own) for name in ("score", "majority")}
        for task, own in measured.items()
    }
    kept = [task for task, own in found.items() if own["majority"] + LEAST <= own["score"] <= MOST]
    return {"screening": found, "kept": kept}


def plan_of_trials(setting: Setting) -> dict[str, Any]:
    """What the trials depend on, for the file that their choices are frozen in: not the test seeds."""
    known = dataclasses.asdict(setting.plan)
    for name in ("seeds", "more_steps"):
        del known[name]
    return {
        **known,
        "base": setting.reading,
        "judged": list(setting.trials.judged),
        "folds": [list(tasks.judged) for tasks in setting.folds],
        "variants": [dataclasses.asdict(variant) for variant in setting.variants],
    }


def main() -> None:
    parser = parser_of_settings(__doc__, SETTINGS)
    parser.add_argument("--docs", type=Path, help="where the page goes (default docs; --quick: the output)")
    args = parser.parse_args()
    setting = SETTINGS[args.setting](args.output, args.tasks or str(default_tasks()), args.quick)
    results, docs = published_in(args, args.results, RESULTS), published_in(args, args.docs, ROOT / "docs")
    command = command_of_setting("paper", args)
    run_study(
        "paper",
        args,
        plan=plan_of_trials(setting),
        trials=lambda file: choose(setting, args.output, file, args.workers),
        do=do,
        pieces=lambda chosen, seeds: units(setting, chosen, seeds),
        publish=lambda chosen, pieces: publish(setting, pieces, chosen, args.output, results, docs, command),
    )


if __name__ == "__main__":
    main()
