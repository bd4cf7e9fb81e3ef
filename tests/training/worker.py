"""A pretraining run in a process of its own: `python worker.py CONFIG OUTPUT [--resume] [--die WHERE STEP]`.

`--die step 6` is killed by SIGKILL at the beginning of step 6; `--die checkpoint 8` in the middle of writing checkpoint 8.
"""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

import torch

from mhr.evaluation import choice_scorer
from mhr.runs import load_config
from mhr.training import pretrain, trainer

torch.set_num_threads(1)


def die(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(step: int) -> None:
    work = trainer.RoutedTrainer.training_step

    def training_step(self: trainer.RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
        return die() if self.state.global_step + 1 == step else work(self, *args, **kwargs)

    trainer.RoutedTrainer.training_step = training_step  # type: ignore[method-assign]


def die_in_checkpoint(step: int) -> None:
    save = trainer.RoutedTrainer._save_scaler

    def save_scaler(self: trainer.RoutedTrainer, folder: str) -> None:
        # The adapter and the optimizer are written, the random numbers and the mark are not.
        return die() if self.state.global_step == step else save(self, folder)

    trainer.RoutedTrainer._save_scaler = save_scaler  # type: ignore[method-assign]


parser = argparse.ArgumentParser()
parser.add_argument("config")
parser.add_argument("output")
parser.add_argument("--resume", action="store_true")
parser.add_argument("--die", nargs=2)
asked = parser.parse_args()
if asked.die:
    {"step": die_at_step, "checkpoint": die_in_checkpoint}[asked.die[0]](int(asked.die[1]))
pretrain(load_config(asked.config), asked.output, resume=asked.resume, progress=False, scorer=choice_scorer)
