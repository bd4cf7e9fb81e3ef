"""Answering a batch of mixed tasks: against a batch of one task of the same size, and against the bare model.

All three generate the same number of tokens for the same prompts on the same decoder, SmolLM2-135M-Instruct (extra `smollm2`): without
a bank, with a bank and one task for all rows, and with a bank and another task in each row. Tokenising, routing and decoding count.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import mhr
from mhr.backbones import load_backbone
from mhr.data import Example
from mhr.evaluation import LoadedModel, generate_answers

from .measure import interleave, machine, median_difference, quiet_machine, rms_error

MODEL = "builtin:smollm2-135m"
RANK, HEADS, SKILLS, TASKS = 4, 8, 8, 64
PROMPT = 64
BATCHES = (1, 8, 16)
NEW_TOKENS = 32
OF_ONE_TASK, OF_BARE = 1.10, 1.15
"""What a mixed batch may cost: of a batch of one task, and of the bare model's."""

# Largest RMS error of the logits of a mixed batch against each row alone, in float32, with which it is timed.
AGREEMENT = 1e-4

Load = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


@dataclass(frozen=True)
class Peers:
    """The bare model and the model with a bank, and the same prompts as rows of one task and of many."""

    bare: LoadedModel
    ours: LoadedModel
    one: list[Example]
    mixed: list[Example]

    @classmethod
    def make(cls, load: Load, batch: int) -> Peers:
        """Peers with `batch` prompts of about PROMPT tokens."""
        names = [f"task{i}" for i in range(TASKS)]
        bare, tokenizer = load()
        model, _ = load()
        torch.manual_seed(0)
        bank = mhr.attach(model, mhr.AdapterConfig(n_heads=HEADS, n_skills=SKILLS, rank=RANK), names)
        with torch.no_grad():
            for parameter in bank.adapter_parameters():
                nn.init.normal_(parameter, std=0.02)
            for parameter in bank.router_parameters():
                nn.init.normal_(parameter)
        draw = random.Random(0)
        known = [token for token in range(tokenizer.vocab_size) if tokenizer.decode([token]).strip().isalpha()]
        texts = [tokenizer.decode([draw.choice(known) for _ in range(PROMPT)]).strip() for _ in range(batch)]
        one, mixed = (
            [Example(task, text, ("",), (), str(i)) for i, (task, text) in enumerate(zip(tasks, texts, strict=True))]
            for tasks in ([names[0]] * batch, [names[i * TASKS // batch] for i in range(batch)])
        )
        plain, routed = (LoadedModel(m, tokenizer, "causal", MODEL) for m in (bare, model))
        return cls(plain, routed, one, mixed)

    def error(self) -> float:
        """The largest RMS error of a row's last logits in the mixed batch, against the row alone."""
        inputs = self.ours.collator(*self.ours.lengths()).encode_inputs(self.mixed)
        tasks = [example.task for example in self.mixed]

        def logits(rows: list[int]) -> torch.Tensor:
            ids, mask = self.ours.pad([inputs.ids[i] for i in rows], left=True)
            places = (mask.cumsum(1) - 1).clamp(min=0)
            with self.ours.judging(), self.ours.routing([tasks[i] for i in rows], "error"):
                out = self.ours.model(input_ids=ids, attention_mask=mask, position_ids=places)
            return out.logits[:, -1].double()

        together = logits(list(range(len(tasks))))
        return max(rms_error(together[i], logits([i])[0]) for i in range(len(tasks)))

    def steps(self, new_tokens: int) -> dict[str, Callable[[], Any]]:
        """One batch of answers in each way."""

        def ask(loaded: LoadedModel, examples: list[Example]) -> Callable[[], Any]:
            return lambda: generate_answers(
                loaded,
                examples,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                batch_size=len(examples),
            )

        return {
            "bare": ask(self.bare, self.mixed),
            "one task": ask(self.ours, self.one),
            "mixed": ask(self.ours, self.mixed),
        }


def measure(
    batch: int, new_tokens: int, budget: float, least: int, limit: float = float("inf"), load: Load | None = None
) -> dict[str, Any]:
    """Error and times of one size of batch; no time where the rows of a mixed batch are not what they are alone."""
    peers = Peers.make(load or (lambda: load_backbone(MODEL)), batch)
    error = peers.error()
    result: dict[str, Any] = {
        "batch": batch,
        "new_tokens": new_tokens,
        "layers": len(peers.ours.model.mhr.layers),
        "error": error,
        "agrees": error <= AGREEMENT,
    }
    if not result["agrees"]:
        return result
    times = interleave(peers.steps(new_tokens), budget, least=least, limit=limit)
    middle = {name: statistics.median(values) for name, values in times.items()}
    over = {name: median_difference(times["mixed"], times[name]) for name in ("bare", "one task")}
    return result | {
        "repetitions": len(times["mixed"]),
        "ms": {name: value * 1e3 for name, value in middle.items()},
        "of_one_task": 1 + over["one task"] / middle["one task"],
        "of_bare": 1 + over["bare"] / middle["bare"],
    }


def run(quick: bool = False, batches: Sequence[int] | None = None, load: Load | None = None) -> dict[str, Any]:
    """Measures each size of batch; returns the machine, every result, and a table for people. Raises MhrError where the model is not
    installed."""
    budget, least, limit = (10.0, 3, 60.0) if quick else (120.0, 15, float("inf"))
    chosen = batches or (BATCHES[1:2] if quick else BATCHES)
    new_tokens = NEW_TOKENS // 4 if quick else NEW_TOKENS
    with quiet_machine():
        results = [measure(batch, new_tokens, budget, least, limit, load) for batch in chosen]
        host = machine()
    return {
        "benchmark": "predict",
        "quick": quick,
        "machine": host,
        "results": results,
        "tables": [_table(results, new_tokens)],
    }


def _table(results: list[dict[str, Any]], new_tokens: int) -> dict[str, Any]:
    columns = ["batch", "bare, ms", "one task, ms", "mixed, ms", "mixed / one task", "mixed / bare", "error"]
    rows = []
    for r in results:
        times = [*r["ms"].values(), r["of_one_task"], r["of_bare"]] if r["agrees"] else ["ours is off"] * 5
        rows.append([r["batch"], *times, f"{r['error']:.1e}"])
    return {
        "title": "Answers of a decoder: a batch of mixed tasks, of one task, and of the bare model",
        "columns": columns,
        "rows": rows,
        "note": (
            f"{MODEL}, prompts of {PROMPT} tokens, {new_tokens} new tokens, rank {RANK}, {HEADS} heads, {SKILLS} skills, {TASKS} tasks, "
            f"one thread. Targets: {OF_ONE_TASK:g} of one task, {OF_BARE:g} of the bare model. Repetitions: "
            f"{min((r['repetitions'] for r in results if r['agrees']), default=0)} or more."
        ),
    }
