"""The command that made the weights of `builtin:t5-tiny`: `python -m mhr.backbones.train_t5_tiny [--output DIR]`.

A byte-level T5 of about one million parameters learns the single skills of the built-in suite ("rev: bcdh" -> "hdcb"),
all weights, from a random start. It never sees two skills together: compositions are left for adapters to learn.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path

import torch
import transformers
from rich.progress import track
from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration, get_cosine_schedule_with_warmup

from mhr.backbones.source import BUILTIN
from mhr.data.example import Example
from mhr.data.skills import SKILLS, draw_examples
from mhr.files import writing_folder

CONFIG = T5Config(
    vocab_size=384,
    d_model=128,
    d_kv=32,
    num_heads=4,
    d_ff=384,
    num_layers=2,
    num_decoder_layers=2,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    dropout_rate=0.0,
    decoder_start_token_id=0,
    pad_token_id=0,
    eos_token_id=1,
)


def single_skill_batches(size: int, seed: int) -> Iterator[list[Example]]:
    """Batches without end, every skill alone and in turn."""

    def endless(name: str) -> Iterator[Example]:
        for again in count(seed):
            yield from draw_examples((name,), again)

    streams = cycle([endless(name) for name in SKILLS])
    while True:
        yield [next(next(streams)) for _ in range(size)]


@torch.no_grad()
def accuracy(model: T5ForConditionalGeneration, tokenizer: ByT5Tokenizer, examples: list[Example]) -> float:
    """Share of examples whose greedy answer is the target."""
    batch = tokenizer([e.input for e in examples], return_tensors="pt", padding=True)
    longest = max(len(e.targets[0]) for e in examples) + 2
    answers = tokenizer.batch_decode(model.generate(**batch, max_new_tokens=longest), skip_special_tokens=True)
    return sum(a == e.targets[0] for a, e in zip(answers, examples, strict=True)) / len(examples)


def exact_match_by_task(model: T5ForConditionalGeneration, seed: int) -> dict[str, float]:
    """Accuracy on 200 examples of each skill. With another seed than training's, most of the long strings are unseen."""
    examples = {name: list(islice(draw_examples((name,), seed), 200)) for name in SKILLS}
    return {name: accuracy(model, ByT5Tokenizer(), drawn) for name, drawn in examples.items()}


def train(steps: int, batch: int, learning_rate: float, seed: int) -> T5ForConditionalGeneration:
    """AdamW with warm-up over a twentieth of the steps and cosine decay; gradients clipped at norm 1."""
    torch.manual_seed(seed)
    tokenizer = ByT5Tokenizer()
    model = T5ForConditionalGeneration(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    batches = single_skill_batches(batch, seed)
    for _ in track(range(steps), "single skills"):
        examples = next(batches)
        inputs = tokenizer([e.input for e in examples], return_tensors="pt", padding=True)
        labels = tokenizer([e.targets[0] for e in examples], return_tensors="pt", padding=True).input_ids
        loss = model(**inputs, labels=labels.masked_fill(labels == tokenizer.pad_token_id, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the weights of builtin:t5-tiny on the single skills of the suite."
    )
    parser.add_argument("--output", type=Path, default=BUILTIN["builtin:t5-tiny"], help="folder to write")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start = time.perf_counter()
    model = train(args.steps, args.batch, args.learning_rate, args.seed)
    seconds = round(time.perf_counter() - start)
    with writing_folder(args.output) as folder:
        # bfloat16 halves the package; the accuracies below are those of the rounded weights.
        model.to(torch.bfloat16).save_pretrained(folder)
        record = {
            "command": f"python -m mhr.backbones.train_t5_tiny --steps {args.steps} --batch {args.batch} "
            f"--learning-rate {args.learning_rate} --seed {args.seed}",
            "parameters": model.num_parameters(),
            "exact_match": exact_match_by_task(model.float(), args.seed + 1),
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["exact_match"], indent=2))


if __name__ == "__main__":
    main()
