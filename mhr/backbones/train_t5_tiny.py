"""The command that made the weights of `builtin:t5-tiny`: `python -m mhr.backbones.train_t5_tiny [--output DIR]`.

A byte-level T5 of about one million parameters learns the single skills of the built-in suite ("rev: bcdh" -> "hdcb"), all
weights, from a random start. It never sees two skills together: compositions are left for adapters to learn.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import torch
from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration, get_cosine_schedule_with_warmup

from mhr.data.example import Example
from mhr.data.skills import SKILLS, draw_examples

CONFIG = {
    "vocab_size": 384,
    "d_model": 128,
    "d_kv": 32,
    "num_heads": 4,
    "d_ff": 384,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def single_skill_batches(size: int, seed: int) -> Iterator[list[Example]]:
    """Batches without end, every skill alone and in turn."""
    streams = cycle([draw_examples((name,), seed) for name in SKILLS])
    while True:
        yield [next(next(streams)) for _ in range(size)]


def accuracy(model: T5ForConditionalGeneration, tokenizer: ByT5Tokenizer, examples: list[Example]) -> float:
    """Share of examples whose greedy answer is the target."""
    model.eval()
    batch = tokenizer([e.input for e in examples], return_tensors="pt", padding=True)
    output = model.generate(**batch, max_new_tokens=16, do_sample=False)
    answers = tokenizer.batch_decode(output, skip_special_tokens=True)
    model.train()
    return sum(a == e.targets[0] for a, e in zip(answers, examples, strict=True)) / len(examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "t5_tiny")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dff", type=int, default=384)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = ByT5Tokenizer()
    model = T5ForConditionalGeneration(T5Config(**{**CONFIG, "d_ff": args.dff}))
    print(sum(p.numel() for p in model.parameters()))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    start = time.perf_counter()
    batches = single_skill_batches(args.batch, args.seed)
    for step in range(1, args.steps + 1):
        examples = next(batches)
        batch = tokenizer([e.input for e in examples], text_target=[e.targets[0] for e in examples], return_tensors="pt", padding=True)
        batch["labels"][batch["labels"] == 0] = -100
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(step, round(loss.item(), 4), round(time.perf_counter() - start), flush=True)
            if step % 1000==0:
                model.to(torch.bfloat16).save_pretrained(args.output); model.to(torch.float32)
                print({n: accuracy(model, tokenizer, [e for e, _ in zip(draw_examples((n,), 99), range(60))]) for n in SKILLS})
    model.to(torch.bfloat16).save_pretrained(args.output)


if __name__ == "__main__":
    main()
