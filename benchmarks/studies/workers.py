"""Pieces of work side by side, each in a process of one thread."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")

GRACE = 60.0
"""Seconds that a worker whose parent is gone has for a checkpoint."""


def side_by_side(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], workers: int, say: Callable[[Piece], str] | None = None
) -> Iterator[tuple[Piece, Result]]:
    """Each piece with what `work` made of it, in the order of the pieces, `workers` at a time.

    work, pieces   go to new processes, so both have to be picklable
    say            names a piece in a line on standard error that is printed when it is done, with the time that is left

    What raises ends it: pieces that have not begun are not begun. Where this process is killed its workers end too, within `GRACE` seconds; what
    they train leaves a checkpoint.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read as the processes start
    begun = time.perf_counter()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        jobs = [pool.submit(partial(_on_one_thread, work), piece) for piece in pieces]
        for done, (piece, job) in enumerate(zip(pieces, jobs, strict=True), 1):
            result = job.result()
            if say is not None:
                passed = time.perf_counter() - begun
                left = passed / done * (len(pieces) - done)
                print(
                    f"{done}/{len(pieces)} {say(piece)}; {passed / 60:.0f} minutes passed, about {left / 60:.0f} left",
                    file=sys.stderr,
                    flush=True,
                )
            yield piece, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Have this process end when its parent does, however that ends: a pool's workers would wait for pieces for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # upon which training stops at a checkpoint
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_one_thread(work: Callable[[Piece], Result], piece: Piece) -> Result:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return work(piece)
