"""What training a bank on a frozen decoder takes of each GPU's memory, by arithmetic: nothing is run, and a model on the meta device will do.

Of a model with n blocks of width D and feed-forward width F, a bank of P trained parameters, B rows of T tokens in each process:

    base         bytes of the frozen weights: those in blocks divided by the processes where they are sharded, the rest whole
    gathered     two blocks whole, the one at work and the one that is fetched meanwhile, where they are sharded
    trained      4 P (float32 weights) + 4 P (gradients) + 8 P (two moments of AdamW), and 4 P (buckets) with several processes
    activations  2 B T (n D + 16 D + 4 F): with gradient checkpointing, in 16 bits, the input of each block, and what the one block
                 that is computed again keeps (two norms in float32, query, key, value, attention, and four of the feed-forward part)
    logits       10 bytes (16 bits, float32, its gradient) for each of those that exist at once

It leaves out what the allocator and the libraries take, and what attention without a fused kernel does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mhr.training.sharding import blocks_of

LOGITS_AT_ONCE = 2**25
"""Logits of a batch that exist at once, at most."""
FOUR_BIT = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits: its half byte, and a float32 scale for each 64."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on each GPU: see the module."""

    base: float
    gathered: float
    trained: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.base + self.gathered + self.trained + self.activations + self.logits


def training_memory(
    model: Any, *, batch: int, length: int, n_processes: int = 1, sharded: bool = False, four_bit: bool = False
) -> TrainingMemory:
    """What a process takes to train the bank on `model`, a decoder, with gradient checkpointing.

    batch, length   B rows of T tokens in each process
    sharded         the blocks' frozen weights are sharded over the processes
    four_bit        the Linear layers in blocks are in 4 bits; all else of the base is in 16
    """
    blocks = list(blocks_of(model))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sizes = [_frozen_bytes(block, four_bit) for block in blocks]
    in_blocks = {id(p) for block in blocks for p in block.parameters()}
    around = sum(2 * p.numel() for p in model.parameters() if not p.requires_grad and id(p) not in in_blocks)
    config = model.config.get_text_config()
    width, inner = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    return TrainingMemory(
        base=sum(sizes) / (n_processes if sharded else 1) + around,
        gathered=2 * max(sizes) if sharded else 0,
        trained=trained * (16 + 4 * (n_processes > 1)),
        activations=2 * batch * length * (len(blocks) * width + 16 * width + 4 * inner),
        logits=10 * min(batch * length * config.vocab_size, LOGITS_AT_ONCE),
    )


def _frozen_bytes(block: nn.Module, four_bit: bool) -> float:
    linear = {id(m.weight) for m in block.modules() if four_bit and isinstance(m, nn.Linear)}
    return sum(p.numel() * (FOUR_BIT if id(p) in linear else 2) for p in block.parameters() if not p.requires_grad)
