"""The questions of the MHR paper, asked again at small size: `python -m mhr_benchmarks.studies.paper --output DIR [--tasks PATH]`.

Two settings (the built-in suite with the built-in T5, real tasks with the MiniLM encoder), several variants and seeds: each
pretraining run with what is made from it is a unit, and --workers processes of one thread make them side by side. What is done is
kept, so the same command takes up an interrupted study. Without real tasks (--tasks, or beside the repository) only the suite is run.

At its end, or with --only-publish from the units that are done: benchmarks/results/study_SETTING.json with every score, the
verdicts on the claims, and the page docs/study.md with its plots.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from . import RESULTS
from .paper_plan import Setting, Unit, default_tasks, real, suite, units_of

ROOT = Path(__file__).resolve().parents[2]


def do(unit: Unit, output: Path) -> float:
    """Make one unit, or what is missing of it. Returns the seconds that it took now."""
    import torch

    from mhr.analysis.alignment import align_run
    from mhr.few_shot import adapt
    from mhr.methods import idle_rates
    from mhr.runs import load_config
    from mhr.training import pretrain

    from .stages import Stages

    torch.set_num_threads(1)
    start = time.perf_counter()
    setting, variant = unit.setting, unit.variant
    stages = Stages(folder_of(unit, output), {"unit": unit.name, "plan": _plan(unit)})
    if stages.state.get("status") == "done":
        return 0.0
    config = load_config(
        preset=setting.pretrain.get("preset"),
        method=variant.method,
        seed=unit.seed,
        **{key: value for key, value in setting.pretrain.items() if key != "preset"},
        **variant.settings,
    )
    run = stages.timed("pretrain", lambda: pretrain(config, str(stages.output / "run"), resume=True, progress=False))
    stages.keep("pretrained", run)
    collection = _collection(setting)
    held_out = collection.select(list(setting.held_out))
    stages.score("zero-shot", run.path, held_out, unit.seed, **setting.evaluate)
    for mode in variant.modes:
        runs = stages.timed(
            f"adapt {mode}",
            lambda mode=mode: adapt(
                str(run.path),
                list(setting.held_out),
                mode=mode,
                output=str(stages.output / "adapted" / mode),
                seeds=[unit.seed],
                resume=True,
                progress=False,
                **{key: value for key, value in setting.adapt.items() if key not in idle_rates(mode, variant.method)},
            ),
        )
        stages.keep(f"adapted {mode}", runs[0])
        for one in runs:
            alone = held_out.select(one.info["tasks"])
            stages.score(mode, one.path, alone, unit.seed, **setting.evaluate)
    if variant.aligned and "alignment" not in stages.state:
        known = [task for task in collection if task in run.info["tasks"]]
        compared = collection.select(known[:: max(len(known) // setting.aligned_tasks, 1)][: setting.aligned_tasks])
        found = stages.timed("align", lambda: align_run(run.path, compared))
        stages.state["alignment"] = [{"step": one.step, "mean": one.mean, "layers": one.layers} for one in found]
    stages.state["status"] = "done"
    stages.save()
    return time.perf_counter() - start


def folder_of(unit: Unit, output: Path) -> Path:
    return output / unit.setting.name / unit.name


def _plan(unit: Unit) -> dict[str, Any]:
    """What decides the results of a unit."""
    setting, variant = unit.setting, unit.variant
    return {
        "method": variant.method,
        "settings": variant.settings,
        "modes": list(variant.modes),
        "pretrain": setting.pretrain,
        "adapt": setting.adapt,
        "evaluate": setting.evaluate,
        "held_out": list(setting.held_out),
    }


def _collection(setting: Setting) -> Any:
    from mhr.data import load_tasks

    return load_tasks(setting.pretrain.get("tasks", "builtin:skills"), definitions=False)


def run_units(units: list[Unit], output: Path, workers: int) -> None:
    """Make the units, `workers` at a time, each in a process of one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    begun = time.perf_counter()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        jobs = {pool.submit(do, unit, output): unit for unit in units}
        for done, job in enumerate(as_completed(jobs), 1):
            unit, seconds = jobs[job], job.result()
            passed = time.perf_counter() - begun
            left = passed / done * (len(units) - done)
            print(
                f"{done}/{len(units)} {unit.setting.name} {unit.name}: {seconds:.0f} s; "
                f"{passed / 60:.0f} minutes passed, about {left / 60:.0f} left",
                file=sys.stderr,
                flush=True,
            )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="runs and scores so far; the same folder resumes")
    parser.add_argument(
        "--tasks",
        help="a folder of real tasks in the layout of Super-NaturalInstructions; default: ../shared/data/superni beside the repository",
    )
    parser.add_argument(
        "--setting", choices=("suite", "real"), help="only this one; default: both, where there are real tasks"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes side by side, of one thread each (default 2)")
    parser.add_argument("--quick", action="store_true", help="a few steps and tasks: to see that everything runs")
    parser.add_argument("--only-publish", action="store_true", help="train nothing; publish what is done")
    parser.add_argument("--docs", type=Path, help="where the page and its plots go (default docs; --quick: the output)")
    parser.add_argument(
        "--results", type=Path, help="where the results go (default benchmarks/results; --quick: the output)"
    )
    args = parser.parse_args()
    results = args.results or (args.output if args.quick else RESULTS)
    docs = args.docs or (args.output if args.quick else ROOT / "docs")
    tasks = args.tasks or default_tasks()
    if args.setting is None and args.tasks is None and not Path(tasks).is_dir():
        print(f"no real tasks at {tasks}: only the suite is run; name their folder with --tasks", file=sys.stderr)
        args.setting = "suite"
    settings = []
    if args.setting != "real":
        settings.append(suite(args.quick))
    if args.setting != "suite":
        settings.append(real(tasks, args.quick))
    if not args.only_publish:
        try:
            run_units([unit for setting in settings for unit in units_of(setting)], args.output, args.workers)
        except KeyboardInterrupt:
            sys.exit("Interrupted: the same command goes on where it was.")
    from .paper_page import publish

    flags = "".join(
        [
            "" if args.setting == "suite" else " --tasks PATH",
            f" --setting {args.setting}" if args.setting else "",
            " --quick" * args.quick,
        ]
    )
    command = f"python -m mhr_benchmarks.studies.paper --output DIR{flags}"
    for line in publish(settings, args.output, results, docs, command, quick=args.quick):
        print(line)


if __name__ == "__main__":
    main()
