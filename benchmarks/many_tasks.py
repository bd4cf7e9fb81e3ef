"""Training with 10, 1,000 and 10,000 tasks: time of a step and what is held, the table of docs/scale.md: `python -m mhr_benchmarks.many_tasks`.

    step   a step of MHR on the T5 of `mhr benchmark train`: routing, forward, backward, clipping, AdamW; with rows of tasks trained lazily
           (train.lazy_rows) and with whole tables
    run    `mhr pretrain --lazy-rows` of the built-in T5: what begins a run, reading, tokenising and attaching, and a step of the Trainer

Every batch has 8 examples of as many tasks. One thread and its CPU time; sizes take turns, and ratios are of times within a turn.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

import mhr
from mhr.data.samplers import TaskSampler
from mhr.files import write_json_atomically
from mhr.layers.parameter_groups import parameter_groups
from mhr.runs import load_config
from mhr.runs.run import RunFolder
from mhr.training.lazy_rows import LazyRows
from mhr.training.preparing import prepare
from mhr.training.processes import processes
from mhr.training.trainer import RoutedTrainer

from .measure import interleave, machine, quiet_machine
from .train import BATCH, HEADS, INPUT, RANK, SKILLS, TARGET, TARGETS, VOCABULARY, backbone, small

SIZES = (10, 1_000, 10_000)
LOG_EVERY = 10
RESULT = Path(__file__).parent / "results" / "many_tasks.json"


class Stepping:
    """Steps of one training; called, it takes the next."""

    def __init__(self, tasks: int, lazy: bool, width: int):
        self.model = model = backbone(small(width))
        config = mhr.AdapterConfig(n_heads=HEADS, n_skills=SKILLS, rank=RANK, targets=TARGETS["t5"])
        self.tasks = tasks
        self.bank = mhr.attach(model, config, [f"task{i}" for i in range(tasks)])
        self.rows = LazyRows(self.bank, BATCH) if lazy else None
        groups = parameter_groups(model, lr=1e-6, router_lr=1e-6, weight_decay=0.0, decaying=())
        self.optimizer = torch.optim.AdamW([group.to_optimizer() for group in groups])
        if self.rows is not None:
            self.rows.follow(self.optimizer)
        self.inputs = {
            "input_ids": torch.randint(3, VOCABULARY, (BATCH, INPUT)),
            "attention_mask": torch.ones(BATCH, INPUT, dtype=torch.long),
            "labels": torch.randint(3, VOCABULARY, (BATCH, TARGET)),
        }
        self.draw = random.Random(0)
        self.held: dict[str, int] = {}
        model.train()

    def __call__(self) -> None:
        ids = self.draw.sample(range(self.tasks), BATCH)
        if self.rows is not None:
            self.rows.load(ids)
        self.model(**self.inputs, task_ids=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_((p for g in self.optimizer.param_groups for p in g["params"]), 1.0)
        self.optimizer.step()
        if not self.held:
            self.held = self.bytes()
        self.optimizer.zero_grad()

    def bytes(self) -> dict[str, int]:
        """What routing holds, in bytes: its tables, their gradients, and the states of the optimizer."""
        own = [parameter for parameter, _ in self.bank.row_parameters()]
        states = [t for p in own for t in self.optimizer.state[p].values() if isinstance(t, Tensor) and t.dim()]
        kept = 0 if self.rows is None else self.rows.state_bytes()
        whole = own if self.rows is None else [table.whole for table in self.rows.tables]
        return {
            "tables": sum(t.nbytes for t in whole),
            "gradients": sum(p.grad.nbytes for p in own if p.grad is not None),
            "states": sum(t.nbytes for t in states) + kept,
        }


class DistinctTasks(TaskSampler):
    """Batches of examples of as many tasks, so that all numbers of tasks have the same to mix."""

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(self.epoch)
        while True:
            yield from (2 * task + draw.randrange(2) for task in draw.sample(range(len(self.sizes)), BATCH))


class StepTimes(TrainerCallback):
    """CPU seconds from step to step of the Trainer, whatever it does between them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.thread_time_ns()
        self.seconds.append((now - self._last) * 1e-9)
        self._last = now


def write_tasks(path: Path, tasks: int) -> None:
    """Sums, two of each task and all as long as each other, so that no number of tasks has more tokens."""
    rows = (
        {"task": f"task{t}", "input": f"{t:05} + {i}", "targets": f"{t + i:05}", "split": "train"}
        for t in range(tasks)
        for i in range(2)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def running(folder: Path, tasks: int, steps: int) -> tuple[float, float]:
    """CPU seconds of what begins a run, and of a step."""
    config = load_config(
        model="builtin:t5-tiny",
        tasks=str(folder / f"{tasks}.jsonl"),
        lazy_rows=True,
        steps=steps,
        batch_size=BATCH,
        log_every=LOG_EVERY,
        max_input_length=32,
        max_target_length=8,
    )
    begin = time.thread_time()
    ready = prepare(config, processes())
    prepared = time.thread_time() - begin
    times = StepTimes()
    with tempfile.TemporaryDirectory() as output:
        run = RunFolder.create(output, overwrite=True)
        trainer = RoutedTrainer(
            ready.model, ready.tokenizer, ready.objective, ready.examples, DistinctTasks(ready.examples.sizes), ready.collator, run,
            config.model, feed=ready.feed, resumable=False, callbacks=[times],
        )  # fmt: skip
        trainer.fit()
    # Of windows of a log each, since what a log costs is part of it; the first one warms up.
    windows = [statistics.mean(times.seconds[i : i + LOG_EVERY]) for i in range(LOG_EVERY, steps, LOG_EVERY)]
    return prepared, statistics.median(windows)


def ratios(of: list[float], to: list[float]) -> list[float]:
    """Median, and the ends of the middle half, of the ratios within turns."""
    found = sorted(a / b for a, b in zip(of, to, strict=True))
    quarter = len(found) // 4
    return [round(x, 3) for x in (statistics.median(found), found[quarter], found[-1 - quarter])]


def measure(width: int, rounds: int, runs: int, steps: int) -> dict[str, Any]:
    trainings = {(lazy, tasks): Stepping(tasks, lazy, width) for lazy in (True, False) for tasks in SIZES}
    named: dict[str, Callable[[], Any]] = {f"{lazy} {tasks}": step for (lazy, tasks), step in trainings.items()}
    times = interleave(named, budget=0.0, least=rounds)
    found: dict[str, Any] = {"machine": machine(), "width": width, "rounds": rounds, "step": [], "run": []}
    for (lazy, tasks), training in trainings.items():
        own = times[f"{lazy} {tasks}"]
        found["step"].append(
            {
                "lazy": lazy,
                "tasks": tasks,
                "ms": round(statistics.median(own) * 1e3, 1),
                "ratio": ratios(own, times[f"{lazy} {SIZES[0]}"]),
                "to_whole": ratios(own, times[f"{False} {tasks}"]),
                "bytes_after_1": training.held,
                "bytes_after_all": _after(training),
                "drawn": tasks if training.rows is None else len(training.rows.drawn),
            }
        )
    found["run"] = run_times(runs, steps) if runs else []
    return found


def run_times(runs: int, steps: int) -> list[dict[str, Any]]:
    """What begins a run, and a step of it, for each number of tasks in turn."""
    prepared: dict[int, list[float]] = {tasks: [] for tasks in SIZES}
    seconds: dict[int, list[float]] = {tasks: [] for tasks in SIZES}
    with tempfile.TemporaryDirectory() as name:
        for tasks in SIZES:
            write_tasks(Path(name) / f"{tasks}.jsonl", tasks)
            running(Path(name), tasks, 2 * LOG_EVERY)
        for turn in range(runs):
            for tasks in SIZES if turn % 2 == 0 else reversed(SIZES):
                begin, step = running(Path(name), tasks, steps)
                prepared[tasks].append(begin)
                seconds[tasks].append(step)
    found: list[dict[str, Any]] = []
    for tasks in SIZES:
        found.append(
            {
                "tasks": tasks,
                "prepare_s": round(statistics.median(prepared[tasks]), 2),
                "ms": round(statistics.median(seconds[tasks]) * 1e3, 1),
                "ratio": ratios(seconds[tasks], seconds[SIZES[0]]),
            }
        )
    return found


def _after(training: Stepping) -> dict[str, int]:
    return training.held | {"states": training.bytes()["states"]}


def table(found: dict[str, Any]) -> list[str]:
    """Its lines in Markdown, bytes in MB of 10**6."""
    lines = [
        "| tasks | rows | CPU ms a step | to 10 tasks | to whole tables | tables | gradients | states, step 1 | states, last step (tasks drawn) |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["step"]:
        one, last = row["bytes_after_1"], row["bytes_after_all"]
        held = [f"{b / 1e6:.2f}" for b in (one["tables"], one["gradients"], one["states"], last["states"])]
        lines.append(
            f"| {row['tasks']:,} | {'lazy' if row['lazy'] else 'whole'} | {row['ms']:.0f} | {_share(row['ratio'])} | "
            f"{_share(row['to_whole'])} | {' | '.join(held)} ({row['drawn']:,}) |"
        )
    lines += ["", "| tasks | begin, CPU s | CPU ms a step | to 10 tasks |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {row['tasks']:,} | {row['prepare_s']:.1f} | {row['ms']:.0f} | {_share(row['ratio'])} |"
        for row in found["run"]
    ]
    return lines


def _share(found: list[float]) -> str:
    middle, low, high = found
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="d of the T5; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each; default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="runs of each; default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, help="steps of a run; default: %(default)s")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name} beside the other results")
    asked = parser.parse_args()
    with quiet_machine():
        found = measure(asked.width, asked.rounds, asked.runs, asked.steps)
    print("\n".join(table(found)))
    if asked.write:
        write_json_atomically(RESULT, found)


if __name__ == "__main__":
    main()
