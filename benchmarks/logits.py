"""Peak memory and time of a training step of a decoder with a large vocabulary: logits of every position against logits where a
label is. `python -m mhr_benchmarks.logits`. Linux only."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

# A process for each way and number of labels: resident memory before the steps, and its peak during them.
PROGRAM = """
import json, re, sys, time
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
import mhr
from mhr.objectives import make_objective

def resident(which):
    return int(re.search(which + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

way, *numbers = sys.argv[1:]
batch, length, labelled, vocabulary, steps = map(int, numbers)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, use_cache=False
)
model = LlamaForCausalLM(config)
tasks = [f"t{i % 4}" for i in range(batch)]
mhr.attach(model, mhr.AdapterConfig(n_heads=2, n_skills=2, rank=4), sorted(set(tasks)))
ids = torch.randint(vocabulary, (batch, length))
labels = ids.clone()
labels[:, :length - labelled] = -100
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "task_ids": tasks}

def step():
    if way == "labels":
        loss = make_objective("causal")(model, {**inputs, "labels": labels}).sums.sum()
    else:
        logits = model(**inputs).logits[:, :-1].float().transpose(1, 2)
        loss = F.cross_entropy(logits, labels[:, 1:], ignore_index=-100, reduction="none").sum()
    loss.backward()
    model.zero_grad()
    return float(loss)

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before, seconds = resident("VmRSS"), []
for _ in range(steps):
    start = time.perf_counter()
    loss = step()
    seconds.append(time.perf_counter() - start)
print(json.dumps({"bytes": resident("VmHWM") - before, "seconds": min(seconds), "loss": loss}))
"""


def measure(way: str, batch: int, length: int, labelled: int, vocabulary: int, steps: int) -> dict[str, Any]:
    """Bytes added at the peak, seconds of the fastest step and the loss; `way` is "all" or "labels"."""
    numbers = map(str, (batch, length, labelled, vocabulary, steps))
    done = subprocess.run([sys.executable, "-c", PROGRAM, way, *numbers], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="The ways take turns so often.")
    asked = parser.parse_args()
    for labelled in (64, asked.length):
        found: dict[str, list[dict[str, Any]]] = {"all": [], "labels": []}
        for _ in range(asked.rounds):
            for way, runs in found.items():
                runs.append(measure(way, asked.batch, asked.length, labelled, asked.vocabulary, asked.steps))
        for way, runs in found.items():
            peak, seconds = (statistics.median(run[key] for run in runs) for key in ("bytes", "seconds"))
            print(
                f"{labelled} labels a row, logits of {way}: peak {peak / 2**20:.0f} MiB, {seconds:.2f} s, loss {runs[0]['loss']:.2f}"
            )


if __name__ == "__main__":
    main()
