"""Who does the adaptations of a sweep: processes of this machine, or the actors of a Ray cluster. Both run `Worker.work`."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from transformers.utils import logging

from mhr.checks import check_whole
from mhr.errors import ConfigError
from mhr.few_shot.adaptation import Adaptation
from mhr.registry import Registry
from mhr.sweeps.table import Row
from mhr.sweeps.worker import Study, Worker

THREADS = "OMP_NUM_THREADS"
"""The variable by which a user says how many threads each process has."""

PATIENCE = 10.0
"""Seconds that a process without work has to leave before it is ended."""

Launch = Callable[[Study, Sequence[Adaptation]], Generator[Row, None, None]]

launchers: Registry[Callable[[int | None], Launch]] = Registry("launcher")
"""By name, functions of the number of workers (None: as many as there is room for) that check what they need and return
`(study, adaptations) -> rows as they are done`. Closing what that returns ends its processes."""


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


def _launch_local(workers: int | None, study: Study, adaptations: Sequence[Adaptation]) -> Generator[Row, None, None]:
    """Processes of this machine, one for each GPU, or else for each core that this process may use.

    They share nothing, so one that is killed (for want of memory, say) fails the adaptation that it was at, and another process
    takes its place. They end when this process does, however it ends. Each has as many threads as OMP_NUM_THREADS says, or,
    where it says nothing, its share of the cores.
    """
    gpus = _visible_gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = _number(workers, len(gpus) or cores, len(adaptations))
    threads = None if THREADS in os.environ else max(cores // number, 1)
    places = deque(gpus[i % len(gpus)] if gpus else None for i in range(number))
    left = deque(adaptations)
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


def _launch_ray(workers: int | None, study: Study, adaptations: Sequence[Adaptation]) -> Generator[Row, None, None]:
    """Actors of the Ray cluster that RAY_ADDRESS names, or of one on this machine: one for each GPU, or else for each core.

    Ray gives an actor of one core one thread; here it has as many as OMP_NUM_THREADS says, or else its share of the cores.
    """
    import ray
    from ray.exceptions import RayError

    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        number = _number(workers, gpus or cores, len(adaptations))
        threads = os.environ.get(THREADS, str(max(cores // number, 1)))
        environment = {"env_vars": {THREADS: threads}}
        actor: Any = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, runtime_env=environment)(Worker)
        idle = [actor.remote(study) for _ in range(number)]
        left = deque(adaptations)
        at_work: dict[Any, tuple[Any, Adaptation]] = {}
        while left or at_work:
            while left and idle:
                worker, adaptation = idle.pop(), left.popleft()
                at_work[worker.work.remote(adaptation)] = worker, adaptation
            (done,), _ = ray.wait(list(at_work))
            worker, adaptation = at_work.pop(done)
            try:
                row = ray.get(done)
            except RayError as error:  # an actor that ended fails its adaptation alone, and another takes its place
                row = study.failed(adaptation, f"its Ray actor failed: {str(error).strip().splitlines()[0]}")
                worker = actor.remote(study)
            idle.append(worker)
            yield row
    finally:
        if began:
            ray.shutdown()


class _Hand:
    """One worker process and the adaptation it is at."""

    def __init__(self, study: Study, gpu: str | None, threads: int | None):
        context = _context()
        self.study = study
        self.gpu = gpu
        self.adaptation: Adaptation | None = None
        self.connection, other = context.Pipe()
        given = other, study, gpu, threads, dict(os.environ)
        self.process: BaseProcess = context.Process(target=_serve, args=given, daemon=True)
        self.process.start()
        other.close()

    def take(self, adaptation: Adaptation) -> None:
        self.adaptation = adaptation
        try:
            self.connection.send(adaptation)
        except OSError:
            return  # it died while it waited; `row` finds out

    def row(self) -> Row:
        """The row of the adaptation; with status "lost" where the process has ended."""
        assert self.adaptation is not None
        try:
            row: Row = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            error = f"its process ended with {how}" + (
                ", perhaps for want of memory" if code == -signal.SIGKILL else ""
            )
            return {**self.study.failed(self.adaptation, error), "status": "lost"}
        self.adaptation = None
        return row

    def end(self) -> None:
        """End the process: one that waits leaves by itself; one at work is killed, since its adaptation will be repeated."""
        self.connection.close()
        if self.adaptation is None:
            self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()


def _context() -> SpawnContext | ForkServerContext:
    """How processes are begun: on Linux as copies of one that has the libraries imported, which takes a moment and shares their
    memory; elsewhere a library may not survive that, and each imports them by itself."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _serve(
    connection: Connection, study: Study, gpu: str | None, threads: int | None, environment: dict[str, str]
) -> None:
    """The life of a worker process. environment: of the process that it serves; its own may be of an earlier time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that we serve, which ends us
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if threads is not None:
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
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        visible.split(",")[: torch.cuda.device_count()]
        if visible
        else [str(i) for i in range(torch.cuda.device_count())]
    )


def _check(workers: int | None) -> None:
    if workers is not None:
        check_whole("workers", workers, at_least=1)


def _number(asked: int | None, usual: int, most: int) -> int:
    return max(min(asked or usual, most), 1)
