"""The processes of torchrun among one another: what one of them has said, the others need not."""

from __future__ import annotations

import os
from datetime import timedelta
from hashlib import sha256

RANK = int(os.environ.get("RANK") or 0)
"""Which of several processes this is, as torchrun says; the first one speaks for all."""

WAIT = timedelta(seconds=3)
"""How long the others wait for the first process to say the same."""


def said_by_another(line: str) -> bool:
    """Whether another process says this line, so that it shall not be said here: the first one, or one that came before it.

    They know by the store that torchrun keeps while its processes come and go; where there is none, each speaks for itself.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from torch.distributed import TCPStore

    key = f"mhr/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{sha256(line.encode()).hexdigest()}"
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False, timeout=WAIT
        )
        if RANK == 0:
            store.set(key, "said")
            return False
        try:
            store.wait([key], WAIT)
        except RuntimeError:  # the first one has nothing of the kind to say
            return store.add(f"{key}/others", 1) > 1
    except (RuntimeError, KeyError, ValueError):
        return False
    return True
