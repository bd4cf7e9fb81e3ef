"""A training step of context-mhr, or of generated adapters, beside one of MHR, on the same T5 and batch in turn: `python -m mhr_benchmarks.contexts`.

The shapes of `mhr benchmark train`. One thread; its CPU time, so that other work on the machine counts for little.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mhr

from .measure import interleave, quiet_machine
from .train import BATCH, DISTINCT, HEADS, INPUT, RANK, SKILLS, TARGET, TARGETS, TASKS, VOCABULARY, backbone, small

SIZE = 384
"""Length of a context: that of MiniLM's embeddings."""

POOL, TOKENS = 64, 64
"""Examples of a task, and tokens of each, where adapters are generated from them: as unless set otherwise."""


METHODS: dict[str, dict[str, Any]] = {
    "mhr": {"n_heads": HEADS, "n_skills": SKILLS},
    "context-mhr": {"n_heads": HEADS, "n_skills": SKILLS, "router": {"size": SIZE}},
    "hyper-lora": {"method": "hyperformer++"},
    "hyperformer++": {"adapter": "bottleneck"},
    "generative-adapter": {"router": {"size": SIZE}},
}
"""What may be compared with mhr -> its settings; those of the method itself are its defaults."""


def stepping(method: str, width: int) -> Callable[[], None]:
    """A function that takes a training step: routing, forward, backward to the embeddings, AdamW."""
    setting = small(width)
    model = backbone(setting)
    names = [f"task{i}" for i in range(TASKS)]
    config = mhr.AdapterConfig(**{"method": method, **METHODS[method]}, rank=RANK, targets=TARGETS["t5"])
    bank = mhr.attach(model, config, names)
    torch.manual_seed(0)
    if bank.contexts is not None and bank.contexts.embedded:
        size = (POOL, TOKENS, SIZE) if bank.contexts.takes_examples else (SIZE,)
        bank.set_contexts({name: torch.randn(size) for name in names}, center=True)
    for layer in bank.layers.values():
        nn.init.normal_(layer.bank()["bank_b"], std=width**-0.5)
    inputs: dict[str, Tensor] = {
        "input_ids": torch.randint(3, VOCABULARY, (BATCH, INPUT)),
        "attention_mask": torch.ones(BATCH, INPUT, dtype=torch.long),
        "labels": torch.randint(3, VOCABULARY, (BATCH, TARGET)),
    }
    ids = [names[(i % DISTINCT) * (TASKS // DISTINCT)] for i in range(BATCH)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    model.train()

    def step() -> None:
        model(**inputs, task_ids=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="d of the T5; default: %(default)s")
    others = [method for method in METHODS if method != "mhr"]
    parser.add_argument("--method", choices=others, default=others[0], help="beside mhr; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each; default: %(default)s")
    asked = parser.parse_args()
    with quiet_machine():
        steps = {method: stepping(method, asked.width) for method in ("mhr", asked.method)}
        times = interleave(steps, budget=0.0, least=asked.rounds)
    ratios = sorted(b / a for a, b in zip(times["mhr"], times[asked.method], strict=True))
    print(f"T5 of d {asked.width}, 4 + 4 blocks, {BATCH} examples of {DISTINCT} tasks, {asked.rounds} rounds")
    for method, own in times.items():
        print(f"{method}: {statistics.median(own) * 1e3:.0f} ms a step")
    quarter = len(ratios) // 4
    print(
        f"{asked.method} / mhr: {statistics.median(ratios):.3f} (middle half {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})"
    )


if __name__ == "__main__":
    main()
