"""Who does the units of a sweep: processes of this machine, or the actors of a Ray cluster. Both run `Worker.work`."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from transformers.utils import logging

from mhr.checks import check_whole
from mhr.errors import ConfigError
from mhr.few_shot.units import Study, Unit, Worker
from mhr.registry import Registry

PATIENCE = 10.0
"""Seconds that a process without work has to leave before it is ended."""

Row = dict[str, Any]
Launch = Callable[[Study, Sequence[Unit]], Generator[Row, None, None]]

launchers: Registry[Callable[[int | None], Launch]] = Registry("launcher")
"""By name, functions of the number of workers (None: as many as there is room for) that check what they need and return
`(study, units) -> rows as they are done`. Closing what that returns ends its processes."""


@launchers.register("local")
def local_launcher(workers: int | None = None) -> Launch:
    """Processes of this machine. Raises ConfigError for a number of workers that cannot be."""
    _check(workers)
    return partial(_launch_local, workers)


@launchers.register("ray")
def ray_launcher(workers: int | None = None) -> Launch:
    """Actors of a Ray cluster. Raises ConfigError where Ray is not installed, and for a number of workers that cannot be."""
    _check(workers)
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError("launcher 'ray' needs Ray: pip install 'mhr[ray]', or use launcher 'local'") from None
    return partial(_launch_ray, workers)


def _launch_local(workers: int | None, study: Study, units: Sequence[Unit]) -> Generator[Row, None, None]:
    """Processes of this machine, one for each GPU, or else for each core that this process may use.

    They share nothing, so one that is killed (for want of memory, say) fails the unit that it was at, and another process
    takes its place. They end when this process does, however it ends.
    """
    gpus = _visible_gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = _number(workers, len(gpus) or cores, len(units))
    threads = max(cores // number, 1)
    places = deque(gpus[i % len(gpus)] if gpus else None for i in range(number))
    left = deque(units)
    team: dict[Connection, _Hand] = {}
    try:
        while left or team:
            while left and places:
                hand = _Hand(study, places.popleft(), threads)
                team[hand.connection] = hand
                hand.take(left.popleft())
            for connection in wait(list(team)):
                assert isinstance(connection, Connection)
                hand = team[connection]
                row = hand.row()
                if row["status"] == "lost" or not left:
                    del team[connection]
                    hand.end()
                    places.append(hand.gpu)
                else:
                    hand.take(left.popleft())
                yield {**row, "status": "failed"} if row["status"] == "lost" else row
    finally:
        for hand in team.values():
            hand.end()


def _launch_ray(workers: int | None, study: Study, units: Sequence[Unit]) -> Generator[Row, None, None]:
    """Actors of the Ray cluster that RAY_ADDRESS names, or of one on this machine: one for each GPU, or else for each core."""
    import ray
    from ray.util import ActorPool

    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        found = ray.cluster_resources()
        gpus, cores = int(found.get("GPU", 0)), int(found.get("CPU", 1))
        number = _number(workers, gpus or cores, len(units))
        actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(Worker)
        pool = ActorPool([actor.remote(study) for _ in range(number)])
        for unit in units:
            pool.submit(lambda worker, unit: worker.work.remote(unit), unit)
        while pool.has_next():
            yield pool.get_next_unordered()
    finally:
        if began:
            ray.shutdown()


class _Hand:
    """One worker process and the unit it is at."""

    def __init__(self, study: Study, gpu: str | None, threads: int):
        context = multiprocessing.get_context("spawn")
        self.gpu = gpu
        self.unit: Unit | None = None
        self.connection, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(other, study, gpu, threads), daemon=True)
        self.process.start()
        other.close()

    def take(self, unit: Unit) -> None:
        self.unit = unit
        try:
            self.connection.send(unit)
        except OSError:
            return  # it died while it waited; `row` finds out

    def row(self) -> Row:
        """The row of the unit; with status "lost" where the process has ended."""
        assert self.unit is not None
        try:
            row: Row = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            error = f"its process ended with {how}" + (
                ", perhaps for want of memory" if code == -signal.SIGKILL else ""
            )
            return {**self.unit.failed(error), "status": "lost"}
        self.unit = None
        return row

    def end(self) -> None:
        """End the process: one that waits leaves by itself; one at work is killed, since its unit will be made anew."""
        self.connection.close()
        if self.unit is None:
            self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, study: Study, gpu: str | None, threads: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that we serve, which ends us
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gc.freeze()
    worker = Worker(study)
    try:
        while True:
            connection.send(worker.work(connection.recv()))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return


def _leave_with_parent() -> None:
    """End this process as soon as the one that started it has ended, so that nobody writes where a resumed sweep does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, one a GPU that this process sees."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",")[: torch.cuda.device_count()] if told else [str(i) for i in range(torch.cuda.device_count())]


def _check(workers: int | None) -> None:
    if workers is not None:
        check_whole("workers", workers, at_least=1)


def _number(asked: int | None, usual: int, most: int) -> int:
    return max(min(asked or usual, most), 1)
