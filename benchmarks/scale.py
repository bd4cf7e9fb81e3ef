"""The table of docs/scale.md, memory by arithmetic for decoders of three sizes: `python -m mhr_benchmarks.scale`. Nothing is run."""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mhr import AdapterConfig, attach
from mhr.analysis.memory import training_memory

SHAPES = {  # hidden, feed-forward, blocks, heads, key-value heads, tied embeddings
    "1 B": (2048, 8192, 16, 32, 8, True),
    "8 B": (4096, 14336, 32, 32, 8, False),
    "70 B": (8192, 28672, 80, 64, 8, False),
}
VOCABULARY = 128_256
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {"attention": LINEAR[:4], "all Linears": LINEAR}
WAYS = {  # processes, sharded, 4 bits
    "bf16, one GPU": (1, False, False),
    "4-bit, one GPU": (1, False, True),
    "bf16, eight GPUs, whole": (8, False, False),
    "4-bit, eight GPUs, whole": (8, False, True),
    "bf16, eight GPUs, sharded": (8, True, False),
}


def table(batch: int, length: int, rank: int, n_skills: int, n_tasks: int) -> list[str]:
    """Its lines in Markdown, in GB of 10**9 bytes on each GPU."""
    lines = [
        "| base | adapted | trained parameters | way | base | gathered | bank, gradients, AdamW | activations | logits | together |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (width, inner, depth, heads, kv_heads, tied) in SHAPES.items():
        for targets, layers in TARGETS.items():
            config = LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=width,
                intermediate_size=inner,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                tie_word_embeddings=tied,
            )
            with torch.device("meta"):
                model = LlamaForCausalLM(config).to(torch.bfloat16)
                attach(
                    model, AdapterConfig(rank=rank, n_skills=n_skills, targets=layers), [str(i) for i in range(n_tasks)]
                )
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            for way, (n, sharded, four_bit) in WAYS.items():
                found = training_memory(
                    model, batch=batch, length=length, n_processes=n, sharded=sharded, four_bit=four_bit
                )
                parts = (found.base, found.gathered, found.trained, found.activations, found.logits, found.total)
                figures = " | ".join(f"{part / 1e9:.1f}" for part in parts)
                lines.append(f"| {name} | {targets} | {trained / 1e6:,.0f} M | {way} | {figures} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--n-skills", type=int, default=8)
    parser.add_argument("--n-tasks", type=int, default=50)
    asked = parser.parse_args()
    print("\n".join(table(asked.batch_size, asked.length, asked.rank, asked.n_skills, asked.n_tasks)))


if __name__ == "__main__":
    main()
