"""Runs to be pretrained, side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mhr.runs import RunFolder
from mhr.runs.settings import RunConfig
from mhr.training import pretrain

from .workers import side_by_side

Key = TypeVar("Key")


@dataclass(frozen=True)
class Job(Generic[Key]):
    """One run. key: what the study knows it by."""

    key: Key
    config: RunConfig
    folder: str


def train(jobs: Sequence[Job[Key]], workers: int) -> Iterator[tuple[Job[Key], RunFolder, float]]:
    """The runs in the order of their jobs, and the seconds of CPU time that each took now; what is done is only opened."""
    for job, seconds in side_by_side(_run, jobs, workers):
        yield job, RunFolder.open(job.folder), seconds


def _run(job: Job[Key]) -> float:
    start = time.process_time()
    pretrain(job.config, job.folder, resume=True, progress=False)
    return time.process_time() - start
