"""A run that is interrupted and taken up."""

from __future__ import annotations

from pathlib import Path

import torch

from mhr.adapters import read_adapter
from mhr.runs import RunConfig, RunFolder
from mhr.training import pretrain


def resumed_after_a_break(config: RunConfig, folder: Path) -> RunFolder:
    """A run of 4 steps with a checkpoint every 2 that was broken off after step 2 and taken up, once it is seen to end where one without a
    break does."""
    whole = pretrain(config, str(folder / "run"), progress=False)
    expected = read_adapter(whole.adapter).tensors
    (whole.checkpoints / "checkpoint-4").rename(folder / "gone")
    RunFolder.open(whole.path).write(status="interrupted")
    resumed = pretrain(config, str(folder / "run"), resume=True, progress=False)
    assert resumed.info["resumed_from"] == "checkpoint-2"
    found = read_adapter(resumed.adapter).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return resumed
