"""Pretraining runs in one process of several: `python sharded_worker.py JOBS`, a JSON list of {config, output, resume, stop, bfloat16}.

What each process holds of every parameter goes to OUTPUT.RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from mhr.runs import load_config
from mhr.training import preparing, pretrain, trainer
from mhr.training.signals import Interrupted

torch.set_num_threads(1)
jobs = json.loads(Path(sys.argv[1]).read_text("utf-8"))
job: dict[str, Any] = {}
step, load = trainer.RoutedTrainer.training_step, preparing.load_backbone


def training_step(self: trainer.RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
    self.stop.asked = self.state.global_step + 1 == job.get("stop")
    held = {
        name: [p.numel(), (p.to_local() if isinstance(p, DTensor) else p).numel(), str(p.dtype), p.requires_grad]
        for name, p in self.model.named_parameters()
    }
    Path(f"{job['output']}.{os.environ['RANK']}.json").write_text(json.dumps(held))
    return step(self, *args, **kwargs)


def load_backbone(*args: Any, **kwargs: Any) -> Any:
    model, tokenizer = load(*args, **kwargs)
    return (model.bfloat16() if job.get("bfloat16") else model), tokenizer


trainer.RoutedTrainer.training_step = training_step  # type: ignore[method-assign]
preparing.load_backbone = load_backbone
for job in jobs:
    try:
        pretrain(load_config(job["config"]), job["output"], resume=job.get("resume", False), progress=False)
    except Interrupted as error:
        print(error, file=sys.stderr)
