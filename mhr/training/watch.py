"""What shows how a run goes: a progress bar on the terminal, and TensorBoard files."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressBar(TrainerCallback):
    """A bar of `total` steps on standard error, over one run or several; the last logged loss, and what the last validation
    found, stand beside it."""

    def __init__(self, total: int, title: str, shown: bool = True):
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}{task.fields[validation]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self.bar = self.progress.add_task(title, total=total, loss="", validation="")

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def title(self, text: str) -> None:
        self.progress.update(self.bar, description=text)

    def note(self, line: str) -> None:
        """One line above the bar, where that is shown."""
        if not self.progress.disable:
            self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def skip(self, steps: int) -> None:
        """Count steps that were done before."""
        self.progress.advance(self.bar, steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress.advance(self.bar)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        self.progress.update(self.bar, loss=f"loss {logs['loss']:.4f}")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        score = f", score {100 * metrics['eval_score']:.1f} %" if "eval_score" in metrics else ""
        self.progress.update(self.bar, validation=f", validation loss {metrics['eval_loss']:.4f}{score}")


class BarOnDemand:
    """Called with how much is done since the last call, it shows a ProgressBar, from the first call on."""

    def __init__(self, total: int, title: str, shown: bool = True):
        self.bar = ProgressBar(total, title, shown)

    def __enter__(self) -> BarOnDemand:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.progress.stop()

    def __call__(self, done: int) -> None:
        self.bar.progress.start()
        self.bar.skip(done)


class TensorBoard(TrainerCallback):
    """Loss, consistency, learning rates and gradient norm under `train/`, the loss of each task under `tasks/`, what validations find under
    `validation/`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            # What an interrupted run wrote about steps that are now repeated disappears.
            self.writer = SummaryWriter(str(self.folder), purge_step=state.global_step + 1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self.writer is None:
            return
        for name in ("loss", "consistency", "lr", "router_lr", "grad_norm"):
            if logs[name] is not None:
                self.writer.add_scalar(f"train/{name}", logs[name], logs["step"])
        for task, loss in logs["tasks"].items():
            self.writer.add_scalar(f"tasks/{task}", loss, logs["step"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(f"validation/{name.removeprefix('eval_')}", value, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.writer is not None:
            self.writer.close()
