"""The settings of the study of unseen tasks: the skills suite with the built-in T5, and real tasks with the MiniLM encoder and with that T5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mhr.backbones import load_backbone
from mhr.data import Task, load_tasks
from mhr.runs import load_config
from mhr.training import pretrain

from . import paper_settings
from .fitting import fits
from .paper_settings import encoder
from .task_files import Tasks, spread_over, training_file
from .unseen_plan import Plan, Setting

SMALL = Plan(
    steps=2, batch=4, adapt_steps=1, adapt_batch=4, hub_steps=2, rates=(1e-3, 3e-3), adapt_rates=(1e-3, 3e-3), test=4,
    seeds=(1,),
)  # fmt: skip
"""Of --quick."""
ABOUT = " Definitions and shots are embedded by {}."
BYTES = 128


def suite(output: Path, path: str = "", quick: bool = False) -> Setting:
    """The tasks of the study of the paper's claims: 12 of the suite's training tasks judge the trials, its held-out ones the questions."""
    paper = paper_settings.suite(output, quick=quick)
    (tests,) = paper.folds
    return Setting(
        "suite",
        paper.title,
        "Unseen tasks are new compositions of skills that training tasks share." + ABOUT.format("the MiniLM encoder"),
        SMALL if quick else Plan(),
        paper.base,
        encoder(),
        paper.trials,
        tests,
    )


def minilm(output: Path, path: str, quick: bool = False) -> Setting:
    """Tasks of two choices with short inputs, of which the MiniLM encoder ranks pairs of an input and a choice."""
    plan = Plan(steps=220, batch=8, adapt_steps=24, adapt_batch=8, test=100, rates=(5e-4, 1e-3, 3e-3))
    _, tokenizer = load_backbone(encoder(), "encoder")
    length = paper_settings.LENGTH
    tasks = [task for task in _read(path) if len(task.choices) == 2 and fits(task, tokenizer, length)]
    trials, tests = _shared_out(output, "minilm", tasks, plan, quick)
    return Setting(
        "minilm",
        "Super-NaturalInstructions, MiniLM encoder",
        f"{len(tests.training)} tasks of two choices are trained on, as pairs of an input and a choice with one score; "
        f"{len(tests.judged)} held-out ones are judged." + ABOUT.format("the model itself"),
        SMALL if quick else plan,
        {
            "model": encoder(),
            "kind": "encoder",
            "head": "rank",
            "max_input_length": length,
            "precision": "bf16",
            "sampler": "uniform",
        },
        "backbone",
        trials,
        tests,
        generates=False,
    )


def t5(output: Path, path: str, quick: bool = False) -> Setting:
    """Tasks with choices and inputs of at most BYTES bytes, for the built-in T5, all of whose weights are trained on the training tasks first:
    here, unless that is done."""
    plan = Plan(steps=240, batch=16, adapt_steps=40, adapt_batch=8, test=100)
    _, tokenizer = load_backbone("builtin:t5-tiny")
    tasks = [task for task in _read(path) if 2 <= len(task.choices) <= 20 and fits(task, tokenizer, BYTES)]
    trials, tests = _shared_out(output, "t5", tasks, plan, quick)
    base = {"max_input_length": BYTES, "max_target_length": 32, "sampler": "uniform"}
    steps = 2 if quick else 1500
    whole = load_config(
        model="builtin:t5-tiny", tasks=tests.file, method="full", steps=steps, batch_size=16, lr=1e-3, **base
    )
    run = pretrain(whole, str(output / "t5" / "base"), resume=True, progress=False)
    return Setting(
        "t5",
        "Super-NaturalInstructions, built-in T5",
        f"All weights of the T5 are trained for {steps} steps first, on the same {len(tests.training)} training tasks as what is compared; "
        f"{len(tests.judged)} held-out ones are judged." + ABOUT.format("the MiniLM encoder"),
        SMALL if quick else plan,
        {"model": str(run.model), **base},
        encoder(),
        trials,
        tests,
    )


SETTINGS: dict[str, Callable[[Path, str, bool], Setting]] = {"suite": suite, "minilm": minilm, "t5": t5}


def _read(path: str) -> list[Task]:
    return list(load_tasks(path, definitions=False).values())


def _shared_out(output: Path, name: str, tasks: list[Task], plan: Plan, quick: bool) -> tuple[Tasks, Tasks]:
    """The tasks of the trials, four of the training split, and those of the test seeds, the held-out split: one file for both."""
    known = [task for task in tasks if not task.held_out and len(task.train) >= plan.shots]
    trials = spread_over(known, 2 if quick else 4)
    training = [task.name for task in known if task.name not in trials][: 6 if quick else None]
    tests = [task.name for task in tasks if task.held_out and len(task.train) >= plan.shots][: 2 if quick else None]
    judged = (*trials, *tests)
    sizes = dict.fromkeys(training, (400, 1)) | dict.fromkeys(judged, (100, plan.test))
    chosen = [replace(task) for task in tasks if task.name in sizes]
    file = training_file(output, name, chosen, training, sizes)
    return Tasks(file, tuple(training), tuple(trials)), Tasks(file, tuple(training), tuple(tests))
