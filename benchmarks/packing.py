"""Tokens a second of training steps with packed and with padded rows, on the same examples in turn: `python -m mhr_benchmarks.packing`.

One thread; its CPU time, so that other work on the machine counts for little.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import nn

import mhr
from mhr.backbones import load_backbone
from mhr.data.collators import Batch, CausalCollator
from mhr.data.tokens import TokenRow
from mhr.objectives import Objective, make_objective
from mhr.objectives.packing import packed_collator

from .measure import interleave, quiet_machine

TASKS = ["a", "b", "c", "d"]


def steps(
    model: nn.Module, objective: Objective, collator: CausalCollator, batches: Sequence[list[TokenRow]]
) -> Callable[[], None]:
    """A function that takes an optimizer step on the next of the batches, from rows to changed weights."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    waiting = cycle(batches)

    def step() -> None:
        losses = objective(model, collated(collator, next(waiting)))
        (losses.sums.sum() / losses.counts.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def collated(collator: CausalCollator, rows: list[TokenRow]) -> Batch:
    return collator.collate_rows(rows, [TASKS[i % len(TASKS)] for i in range(len(rows))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m", help="a decoder; default: %(default)s")
    parser.add_argument("--documents", type=int, default=16, help="of a step; default: %(default)s")
    parser.add_argument("--shortest", type=int, default=8, help="tokens of a document; default: %(default)s")
    parser.add_argument("--longest", type=int, default=128, help="the same; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="batches, each seen both ways; default: %(default)s")
    asked = parser.parse_args()
    model, tokenizer = load_backbone(asked.model)
    objective = make_objective("causal")
    padded = objective.collator(tokenizer)
    assert isinstance(padded, CausalCollator)
    ways = {"padded": padded, "packed": packed_collator(model, objective, padded)}
    mhr.attach(model, mhr.AdapterConfig(), TASKS)
    drawn = random.Random(0)
    batches = []
    for _ in range(asked.rounds):
        lengths = [drawn.randint(asked.shortest, asked.longest) for _ in range(asked.documents)]
        ids = [[drawn.randrange(len(tokenizer)) for _ in range(length)] for length in lengths]
        batches.append([TokenRow(row, row, False) for row in ids])
    # The call that warms up takes the last batch, so that round k takes batch k.
    turned = [batches[-1], *batches[:-1]]
    with quiet_machine():
        times = interleave(
            {way: steps(model, objective, collator, turned) for way, collator in ways.items()},
            budget=0.0,
            least=asked.rounds,
        )
    tokens = [sum(len(row.ids) for row in batch) for batch in batches]
    print(f"{asked.documents} documents of {asked.shortest} to {asked.longest} tokens a step, {asked.rounds} batches")
    for way, collator in ways.items():
        places = [collated(collator, batch)["input_ids"].numel() for batch in batches]
        full = statistics.mean(n / place for n, place in zip(tokens, places, strict=True))
        rate = statistics.median(n / seconds for n, seconds in zip(tokens, times[way], strict=True))
        print(f"{way}: {rate:.0f} tokens a second, {100 * full:.0f}% of the places are tokens")
    ratios = [slow / fast for slow, fast in zip(times["padded"], times["packed"], strict=True)]
    print(f"packed / padded: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
