"""Expert soups that microsoft/AdaMix released: pytorch_model_TASK_expert_soup.bin, for BERT and RoBERTa on a task of GLUE.

A state dict of what was trained, the copies of the adapter and the classification head:

    {block}.output.ExpertSoup.MoA_A.deepspeed_experts.{s}.weight [R, O], bias [R]    layers.{block}.output.dense.bank_a [1, S, O, R], bias_a
    {block}.output.ExpertSoup.MoA_B.deepspeed_experts.{s}.weight [O, R], bias [O]    layers.{block}.output.dense.bank_b [1, S, R, O], bias_b
    classifier.*                                                                     modules.classifier.*

where one of the two projections mostly has one copy for all (sharing_up, sharing_down). It computes, as we do, h + gelu(h A + a) B + b behind the
Linear {block}.output.dense, by the averages of the copies (inference_level 3).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mhr.adapters.base import BaseModel
from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.importing.formats import ForeignBank, reads_bank
from mhr.adapters.importing.source import ForeignPath
from mhr.adapters.layer import Sizes
from mhr.config import AdapterConfig
from mhr.data.forms.glue import GLUE, glue_name
from mhr.errors import CheckpointError
from mhr.methods import DRAWN
from mhr.task_heads import CLASSIFY, REGRESS, TaskHead, TaskHeads

PROJECTIONS = {"A": "a", "B": "b"}
COPY = re.compile(r"(.+)\.ExpertSoup\.MoA_([AB])\.deepspeed_experts\.(\d+)\.(weight|bias)")
SCORES = re.compile(r".+\.ExpertSoup\.MoA_[AB]\.expert_score_weight")
HEAD = "classifier"

PAIRS = (
    "it was trained on sentences and pairs of them as the tokenizer joins them, without the words that the rows of GLUE get here: the inputs decide "
    "its score"
)
"""What whoever evaluates one has to know."""


def _is_soup(source: ForeignPath) -> bool:
    return any(".ExpertSoup." in str(key) for key in source.held)


@reads_bank("expert-soup", "an expert soup of microsoft/AdaMix (pytorch_model_TASK_expert_soup.bin)", _is_soup)
def read_soup(source: ForeignPath) -> ForeignBank:
    """The bank in a soup. Raises CheckpointError where copies are missing or weighted, and for a file that is not called after a task of GLUE."""
    where = str(source.path)
    copies, head = _sort(source.held, where)
    tensors: dict[str, Tensor] = {}
    counts: dict[str, set[int]] = {side: set() for side in PROJECTIONS.values()}
    for block, sides in copies.items():
        for side in PROJECTIONS.values():
            held = sides.get(side, {})
            if not held or sorted(held) != list(range(len(held))) or any(len(one) != 2 for one in held.values()):
                raise CheckpointError(
                    f"{where} lacks copies of projection {side.upper()} in {block!r}: it is incomplete"
                )
            counts[side].add(len(held))
            ordered = [held[s] for s in range(len(held))]
            try:
                tensors[f"layers.{block}.dense.bank_{side}"] = torch.stack([one["weight"].T for one in ordered])[None]
                tensors[f"layers.{block}.dense.bias_{side}"] = torch.stack([one["bias"][None] for one in ordered])[None]
            except RuntimeError:
                raise CheckpointError(f"{where} has copies of several sizes in {block!r}: expected one") from None
    layers: dict[str, Sizes] = {
        f"{block}.dense": (None, tensors[f"layers.{block}.dense.bank_a"].shape[2]) for block in copies
    }
    down, up = (counts[side] for side in PROJECTIONS.values())
    if len(down) != 1 or len(up) != 1 or not (down == up or 1 in down | up):
        raise CheckpointError(
            f"{where} has {sorted(down)} copies of the down and {sorted(up)} of the up projection: expected the same number of both, or one"
        )
    n_down, n_up = down.pop(), up.pop()
    ranks = {tensor.shape[-1] for key, tensor in tensors.items() if key.endswith("bank_a")}
    if len(ranks) != 1:
        raise CheckpointError(f"{where} has adapters of widths {sorted(ranks)}: expected one")
    config = AdapterConfig(
        method=DRAWN,
        adapter="bottleneck",
        n_skills=max(n_down, n_up),
        rank=ranks.pop(),
        targets=list(layers),
        modules_to_save=[HEAD],
        share="none" if n_down == n_up else "up" if n_up == 1 else "down",
    )
    task, heads = _heads(source, head)
    return ForeignBank(
        AdapterCheckpoint(
            config=config,
            tasks=[task],
            base=BaseModel("", "encoder"),
            layers=layers,
            groups={layer: layer for layer in layers},
            modules=[HEAD],
            tensors=tensors | {f"modules.{HEAD}.{key}": tensor for key, tensor in head.items()},
            name=where,
            heads=heads,
        ),
        notes=[PAIRS],
    )


Copies = dict[str, dict[str, dict[int, dict[str, Tensor]]]]
"""Block -> projection -> number of the copy -> its weight and bias."""


def _sort(held: Mapping[str, Any], where: str) -> tuple[Copies, dict[str, Tensor]]:
    """The copies, and the state of the head."""
    copies: Copies = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    head: dict[str, Tensor] = {}
    for key, tensor in held.items():
        copy = COPY.fullmatch(key)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where} holds {key!r}, which is no tensor")
        if copy:
            copies[copy[1]][PROJECTIONS[copy[2]]][int(copy[3])][copy[4]] = tensor
        elif key.startswith(f"{HEAD}."):
            head[key.removeprefix(f"{HEAD}.")] = tensor
        elif not SCORES.fullmatch(key):
            raise CheckpointError(
                f"{where} holds {key!r}, which is no part of an expert soup or its classification head"
            )
        elif not (tensor == tensor.flatten()[0]).all():
            raise CheckpointError(
                f"{where} weighs its copies by {key!r}, which is not the same for all: the average of a bank here is uniform"
            )
    return copies, head


def _heads(source: ForeignPath, head: Mapping[str, Tensor]) -> tuple[str, TaskHeads]:
    """The task that the name of a file tells, and what the outputs of its head stand for."""
    task = glue_name(source.path.stem.replace("_", " "))
    if task is None:
        raise CheckpointError(
            f"{source.path} is not called after a task of GLUE, whose labels it does not hold: call it as it was released, such as "
            "pytorch_model_mnli_expert_soup.bin"
        )
    weights = [key for key, tensor in head.items() if key.endswith("weight") and tensor.dim() == 2]
    if not weights:
        raise CheckpointError(f"{source.path} holds no classification head ({HEAD}): it is incomplete")
    layer = min(weights, key=lambda key: key != "weight" and "out_proj" not in key).rpartition(".")[0]
    labels = GLUE[task].labels
    outputs = head[f"{layer}.weight" if layer else "weight"].shape[0]
    one = TaskHead(CLASSIFY, labels) if labels else TaskHead(REGRESS)
    if outputs != one.size:
        raise CheckpointError(f"{source.path} has a head of {outputs} outputs, but {task} has {one.size}")
    return task, TaskHeads((one,), {task: 0}, f"{HEAD}.{layer}" if layer else HEAD)
