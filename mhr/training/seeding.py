"""Adapters that were trained already as the first skills of a bank that is about to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mhr.adapters.base import check_base
from mhr.adapters.find import find_adapters
from mhr.adapters.layer import (
    ADAPTER_LAYERS,
    AdapterLayer,
    BiasShift,
    BottleneckFactors,
    FilmVectors,
    GatedPart,
    IA3Vector,
    LoraFactors,
    VirtualTokens,
)
from mhr.adapters.open import needs_task, open_bank, open_plain
from mhr.adapters.plain import PlainAdapter
from mhr.config import VIRTUAL
from mhr.errors import MergeError
from mhr.layers import AdapterBank
from mhr.layers.attach import bank_of
from mhr.layers.routed import RoutedLayer


@torch.no_grad()
def seed_bank(model: nn.Module, folders: Sequence[str]) -> None:
    """Make the adapters in `folders` the first skills of the bank on `model`, in their order; the others stay as drawn.

    folders: runs, adapter checkpoints or PEFT folders of one plain adapter each, or folders of them. A skill computes what its
    adapter did: a scaling other than the bank's is taken up by both factors of a LoRA, and what its rank lacks to the bank's
    keeps the fresh A, with B = 0, so that it can still learn. Modules that an adapter stores whole stay behind.

    Raises MergeError, or CheckpointError for another base model, for what does not fit; the bank is then as it was.
    """
    bank = bank_of(model)
    if bank.config.parts is not None:
        raise MergeError(
            f"init_skills cannot start skills of parts of a layer (parts {bank.config.parts}): leave one out"
        )
    sources = [_open(path) for folder in folders for path in find_adapters(folder)]
    _check(bank, sources)
    for source in sources:
        check_base(model, source.base, {name: shape.sizes for name, shape in source.shapes.items()}, (), source.name)
    for name, layer in bank.layers.items():
        for skill, source in enumerate(sources):
            _put(layer, skill, source.layers[name])


def _open(path: Path) -> PlainAdapter:
    found = open_bank(path)
    if found is not None and needs_task(found):
        raise MergeError(
            f"init_skills: {path} routes {len(found.tasks)} tasks and is no one adapter: merge it first, as in mhr merge "
            f"{path} --method task --task NAME"
        )
    return open_plain(path)


def _check(bank: AdapterBank, sources: Sequence[PlainAdapter]) -> None:
    config = bank.config
    if config.share != "none":
        raise MergeError(
            f"init_skills cannot start skills that share a projection (share {config.share!r}): "
            f"{'leave' if config.recurrent else 'use --share-none, or leave'} init_skills out"
        )
    for source in sources:
        if source.kind != config.adapter:
            raise MergeError(
                f"init_skills: {source.name} is {ADAPTER_LAYERS[source.kind].title}, but the bank is made of adapter {config.adapter!r}"
            )
    n_skills = config.skills_for(len(bank.tasks))
    if len(sources) > n_skills:
        raise MergeError(
            f"init_skills names {len(sources)} adapters, but the bank has room for {n_skills}: name fewer, or raise --n-skills"
        )
    for source in sources:
        for missing, where, other in (
            (bank.layers.keys() - source.shapes.keys(), source.name, "the bank"),
            (source.shapes.keys() - bank.layers.keys(), "the bank", source.name),
        ):
            if missing:
                raise MergeError(
                    f"init_skills: {other} adapts layer {min(missing)!r}, {where} does not ({len(missing)} layers in all): choose "
                    "--targets such that both have the same"
                )
        rank = max(shape.rank for shape in source.shapes.values())
        if any(shape.inputs for shape in source.shapes.values()):
            raise MergeError(
                f"init_skills: {source.name} scales inputs of layers (PEFT's feedforward_modules), which no skill of a bank does: "
                "leave it out"
            )
        if source.kind in VIRTUAL and rank != config.virtual_tokens:
            raise MergeError(
                f"init_skills: {source.name} has {rank} virtual tokens, the bank {config.virtual_tokens}: use --virtual-tokens {rank}"
            )
        for shape in source.shapes.values() if config.adapter == "gated" else ():
            own, asked = shape.rank, config.size_of(shape.part)
            if own != asked:
                raise MergeError(
                    f"init_skills: a {shape.part} of {source.name} has size {own}, the bank {asked}: set rank, width and virtual_tokens as there"
                )
        if ADAPTER_LAYERS[source.kind].ranked and config.adapter != "gated" and rank > config.rank:
            raise MergeError(f"init_skills: {source.name} has rank {rank}, the bank {config.rank}: use --rank {rank}")


def _put(layer: RoutedLayer, skill: int, given: AdapterLayer) -> None:
    """Write one layer of a plain adapter into a skill of the layer's bank."""
    bank = {name: p[:, skill] for name, p in layer.bank().items()}  # [H, P, Q] each, views
    if isinstance(given, IA3Vector):
        bank["bank_v"].copy_(given.v.view(layer.router.n_heads, 1, -1))
        return
    if isinstance(given, BiasShift):
        bank["bank_shift"].copy_(given.shift.view(layer.router.n_heads, 1, -1))
        return
    if isinstance(given, VirtualTokens):
        bank["bank_tokens"].copy_(given.tokens.view(given.rank, layer.router.n_heads, -1).transpose(0, 1))
        return
    if isinstance(given, FilmVectors):
        for name, vector in (("bank_scale", given.scale), ("bank_shift", given.shift)):
            bank[name].copy_(vector.view(layer.router.n_heads, 1, -1))
        return
    if isinstance(given, GatedPart):
        joined = dict(zip(layer.bank_names, layer.head_dims, strict=True))
        for name, tensor in given.as_bank(layer.name, given.rank, 1.0).items():
            one = tensor[0, 0]
            if joined[name] == 2:
                bank[name].copy_(one.view(one.shape[0], layer.router.n_heads, -1).transpose(0, 1))
            else:  # the heads' biases are averaged, so each head gets all of it
                bank[name].copy_(one.expand_as(bank[name]) if "bias" in name else one.view_as(bank[name]))
        return
    given = given.scaled(layer.config.scaling)
    assert isinstance(given, LoraFactors | BottleneckFactors)
    rank = given.rank
    heads = layer.router.n_heads
    bank["bank_a"][..., :rank].copy_(given.a.view(heads, -1, rank))
    bank["bank_b"].zero_()
    bank["bank_b"][:, :rank].copy_(given.b.view(rank, heads, -1).transpose(0, 1))
    if isinstance(given, BottleneckFactors):
        # The heads' biases of the hidden units are averaged, so each head gets all of it.
        bank["bias_a"][..., :rank].copy_(given.bias_a.expand(heads, 1, -1))
        bank["bias_b"].copy_(given.bias_b.view(heads, 1, -1))
        for name in ("scale_b", "shift_b") if layer.config.norm else ():
            bank[name].copy_(given.tensors()[name].view(heads, 1, -1))
