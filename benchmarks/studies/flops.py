"""Arithmetic of an optimizer step: multiplications and additions of the products, forward and backward."""

from __future__ import annotations

import random
from statistics import mean

import torch
from torch import nn

from mhr.adapters import attach_checkpoint, kind_of, read_adapter
from mhr.backbones import load_backbone
from mhr.data import TaskCollection
from mhr.data.collators import Batch
from mhr.layers import AdapterBank
from mhr.layers.routed import RoutedLayer
from mhr.loading import Loading
from mhr.objectives import Objective, make_objective
from mhr.runs import RunFolder


def flops_of_step(model: nn.Module, bank: AdapterBank, objective: Objective, batch: Batch) -> float:
    """FLOPs of one training step on a batch of a model whose weights are frozen but for a bank of LoRAs.

    A frozen Linear of I x O over N tokens takes 2 N I O forward and as many backward (to its input). An adapted layer takes, beside
    that, 3 x 2 N r (I + O) with the mixed factors of rank r, and 3 x 2 U S r (I + O) to mix the S skills for U distinct tasks.
    Attention scores and all that is not a product of matrices are left out: they are the same for every method.
    """
    tasks = len(set(batch["task_ids"])) if bank.needs_tasks else 1
    total = 0.0
    inside = {id(layer.base) for layer in bank.layers.values()}

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, RoutedLayer):
            i, o = module.in_features, module.out_features
            rank, skills = module.config.rank, module.router.n_skills
            n = inputs[0].numel() // i
            total += 4 * n * i * o + 6 * rank * (i + o) * (n + (tasks * skills if skills > 1 else 0))
        elif isinstance(module, nn.Linear) and id(module) not in inside:
            total += 4 * (inputs[0].numel() // module.in_features) * module.in_features * module.out_features

    with torch.no_grad():
        objective(model, batch)  # the first call also asks what kind of model it is
    handles = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            objective(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return total


def flops_of_run(run: RunFolder, tasks: TaskCollection, size: int) -> dict[str, float]:
    """Of a step of a run, the mean over ten batches of `size` examples, the same for every run: "flops", and "tokens", those of
    the inputs, without padding."""
    checkpoint = read_adapter(run.adapter)
    config = run.config()
    model, tokenizer = load_backbone(checkpoint.base.name_or_path, checkpoint.base.kind, Loading.of(config))
    bank = attach_checkpoint(checkpoint, model)
    objective = make_objective(kind_of(model), heads=checkpoint.heads)
    data = config.data
    collate = objective.collator(tokenizer, data.max_input_length, data.max_target_length, data.chat)
    examples = [example for task in tasks.values() for example in task.train]
    drawing = random.Random(0)
    batches = [collate(drawing.sample(examples, min(size, len(examples)))) for _ in range(10)]
    tokens = [sum(int(batch[name].sum()) for name in batch if name.endswith("attention_mask")) for batch in batches]
    flops = [flops_of_step(model, bank, objective, batch) for batch in batches]
    return {"flops": mean(flops), "tokens": mean(tokens)}
