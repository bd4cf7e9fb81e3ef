"""The processes that train together: one, or those that torchrun has started."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from mhr.data.truncation import Truncation
from mhr.errors import ConfigError, MhrError

FSDP = "ACCELERATE_USE_FSDP"
"""The variable by which `accelerate launch` asks for FSDP."""

OTHERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What else `accelerate launch` may ask for, which is not supported."""


def on_gpu() -> bool:
    """Whether there is an accelerator to train on."""
    return torch.accelerator.is_available()


def processes() -> PartialState:
    """This process among its fellows. Without an accelerator they talk by gloo, which Accelerate needs to know.

    Raises ConfigError where `accelerate launch` was asked for several and, as it does without GPUs, has started one, and for
    ways of it to train that are not supported.
    """
    for variable, name in OTHERS.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"accelerate launch was asked for {name}, which is not supported: shard the base by --fsdp, or train without shards"
            )
    asked = _asked_of_accelerate()
    if asked > 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"accelerate launch was asked for {asked} processes and started one, as it does without GPUs: use torchrun "
            f"--nproc-per-node {asked} -m mhr_cli ..., or ask for one"
        )
    return PartialState(cpu=not on_gpu())


def raise_together(error: MhrError | None) -> None:
    """Raise the user error of any process in all of them, which come here together; without one, go on. Else the others would wait
    for the one that has ended, and fail by losing it."""
    found = next((e for e in gather_object([error]) if e is not None), None)
    if found is not None:
        raise found


def _asked_of_accelerate() -> int:
    """The --num_processes of the `accelerate launch` that started this process; 0 where it was not, or cannot be known."""
    if "ACCELERATE_USE_CPU" not in os.environ:
        return 0
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    except OSError:
        return 0
    if (
        not any(Path(word).name.startswith("accelerate") for word in words[:3])
        and "accelerate.commands.launch" not in words
    ):
        return 0
    found = re.search(r"\0--num[-_]processes[=\0](\d+)\0", "\0".join(words))
    return int(found[1]) if found else 0


def over_processes(truncation: Truncation) -> Truncation:
    """The counts of all processes together."""
    total = Truncation()
    for part in gather_object([truncation]):
        total.add(part)
    return total


def check_precision(precision: str) -> None:
    """Raise ConfigError for a precision that there is no device for, or that `accelerate launch` was not asked for, before anything
    is written."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        raise ConfigError(
            f"accelerate launch was asked for mixed precision {launched!r}, and the run's precision is {precision!r}: set "
            f"mixed_precision to 'no' in its config file, and --precision to what is wanted"
        )
    if precision == "fp16" and not on_gpu():
        raise ConfigError("precision is 'fp16', which needs a GPU, and there is none: use 'bf16' or 'no'")
