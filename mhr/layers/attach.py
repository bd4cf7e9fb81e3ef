"""Put a bank of routed adapters on a transformers model, and take it off again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from torch import nn

from mhr.config import AdapterConfig
from mhr.errors import ConfigError, TargetError, nearest
from mhr.layers.bank import AdapterBank, bank_of
from mhr.layers.calls import unwrap_calls, wrap_calls, wrap_method
from mhr.layers.depth import begin_at_stacks, check_depth
from mhr.layers.fused import part_mask
from mhr.layers.layouts import is_known, layout_of
from mhr.layers.linear import features
from mhr.layers.masters import narrow_saved, widen_saved
from mhr.layers.memory import check_size
from mhr.layers.positions import split_relative_positions, undo_split_relative_positions
from mhr.layers.prefix_attention import put_in_attention, see_tokens, take_out_of_attention
from mhr.layers.recompute import keep_routing, set_gradient_checkpointing, undo_keep_routing
from mhr.layers.routed import RoutedLayer, place
from mhr.layers.routed_bias import RoutedBias
from mhr.layers.routed_bottleneck import RoutedBottleneck
from mhr.layers.routed_film import RoutedFilm
from mhr.layers.routed_gated import RoutedGated, RoutedGatedPrefix, routed_gated
from mhr.layers.routed_ia3 import RoutedIA3
from mhr.layers.routed_linear import RoutedLinear
from mhr.layers.routed_recurrent import RoutedRecurrent
from mhr.layers.routed_virtual import RoutedPrefix, RoutedPrompt
from mhr.layers.targets import by_structure, find_targets, in_list, routing_group, unadapted
from mhr.layers.tied import bank_name
from mhr.routing import RoutingState, make_contexts, make_router

LAYERS: dict[str, Callable[..., RoutedLayer]] = {
    "lora": RoutedLinear,
    "ia3": RoutedIA3,
    "film": RoutedFilm,
    "bias": RoutedBias,
    "bottleneck": RoutedBottleneck,
    "recurrent": RoutedRecurrent,
    "prompt": RoutedPrompt,
    "prefix": RoutedPrefix,
    "gated": routed_gated,
}

# Heads of AutoModelForSequenceClassification, which come untrained.
CLASSIFICATION_HEADS = ("classifier", "score", "classification_head")


def attach(model: nn.Module, config: AdapterConfig, tasks: Sequence[str]) -> AdapterBank:
    """Adapt `model` in place: wrap the target layers, freeze everything else, and return the bank, also `model.mhr`.

    Afterwards the model and its `generate` take `task_ids=[...]`, one name per row (or `model.mhr.for_batch(...)`, which
    keeps the host's work out of a compiled region), and everything else as before. `generate` knows of its beams and
    returned sequences; for other calls with several rows an example, `RoutingBatch.over` and `take` say which. The model
    keeps its class, and the names that its own tensors have in `state_dict` and `save_pretrained`; the bank's come in addition.
    Modules that are trained whole (`modules_to_save`, heads) are float32 beside a base in 16 bits: `mhr.layers.masters`.

    Raises ConfigError if a bank is attached already, TargetError where targets or sizes do not fit, TaskError for
    task names that are missing or repeated; the model is then as it was.
    """
    if isinstance(getattr(model, "mhr", None), AdapterBank):
        raise ConfigError("the model has a bank already: call mhr.detach(model) first")
    saved = {name: model.get_submodule(name) for name in _modules_to_save(model, config)}
    names = find_targets(model, config.targets, outside=list(saved), adapter=config.adapter)
    if config.recurrent:
        check_depth(model, names)
    check_size(model, names, config, len(tasks))
    _check_devices(model, names)
    state = RoutingState()
    bank = AdapterBank(config, tasks, state, saved)
    bank.notes = unadapted(model, config.targets, outside=list(saved), adapter=config.adapter)
    placed = by_structure(config.targets)
    group_of = {name: routing_group(model, name, config.granularity) for name in names}
    bank.contexts = make_contexts(config, bank.tasks, list(dict.fromkeys(group_of.values())))
    owners: dict[str, RoutedLayer] = {}
    # Built before the model is touched, so that a layer that does not fit leaves it as it was.
    for name in names:
        group = group_of[name]
        base = model.get_submodule(name)
        if group not in bank.groups:
            if bank.contexts is not None and not bank.groups:
                bank.contexts.to(**place(base))
            router = make_router(config, bank.tasks, len(bank.groups), bank.contexts, features(base))
            bank.add_router(group, router.to(**place(base)))
        layer = LAYERS[config.adapter](name, base, config, bank.groups[group], state)
        layer.fit(model)
        owner = owners.setdefault(bank_name(config, name, (layer.in_features, layer.out_features)), layer)
        if owner is not layer:
            layer.tie(owner)
        if config.parts is not None:
            assert isinstance(layer, RoutedLinear)
            layer.keep_to(part_mask(model, name, config.parts, config.rank))
        layer.layout = layout_of(model, name)
        layer.doubtful = not is_known(model)
        # A layer that someone names in a model of their own may see [B, D]; one that was found in a block sees positions.
        layer.in_block = (is_known(model) or placed) and in_list(model, name)
        bank.layers[name] = layer
    bank.frozen = [p for p in model.parameters() if p.requires_grad]
    for p in model.parameters():
        p.requires_grad_(False)
    for p in bank.saved_parameters():
        p.requires_grad_(True)
    for name, layer in bank.layers.items():
        layer.train(layer.base.training)
        _replace(model, name, layer)
    model.add_module("mhr", bank.train(model.training))
    wrap_calls(model, bank)
    bank.hooks += widen_saved(model, bank)
    if config.recurrent:
        bank.hooks += begin_at_stacks(model, bank.layers, state)
    put_in_attention(_prefixes(bank))
    if any(isinstance(layer, RoutedGated) and not layer.causal for layer in bank.layers.values()):
        bank.hooks.append(see_tokens(model, state))
    split_relative_positions(model, state)
    if wrap_method(model, bank, "_set_gradient_checkpointing", set_gradient_checkpointing):
        keep_routing(model, state)
    return bank


def _check_devices(model: nn.Module, names: Sequence[str]) -> None:
    """Raise TargetError where the layers lie on several devices, or are fetched to one for each call: a bank and its routing lie on one."""
    layers = [model.get_submodule(name) for name in names]
    layers = [
        layer for layer in layers if next(chain(layer.parameters(), layer.buffers()), None) is not None
    ]  # not hidden
    places = {"no device (offloaded)" if _offloaded(layer) else str(place(layer)["device"]): None for layer in layers}
    if len(places) > 1 or any(map(_offloaded, layers)):
        raise TargetError(
            f"the layers to adapt lie on {' and '.join(places)}, and a bank with its routing lies on one device: load the model on one "
            "(--device-map cuda:0), quantise it (--quantize 4bit) or, to train it, shard it (--fsdp)"
        )


def _offloaded(layer: nn.Module) -> bool:
    """Whether a hook of Accelerate brings the weights for each call; a model whose weights are nowhere has none."""
    return hasattr(layer, "_hf_hook") and any(p.is_meta for p in layer.parameters())


def detach(model: nn.Module) -> None:
    """Take the bank off: the base layers return to their places, with the gradients they asked for before.

    Modules that were trained whole (`modules_to_save`) keep their trained values, in the dtype that they had. Raises ConfigError without a bank.
    """
    bank = bank_of(model)
    for name, layer in bank.layers.items():
        _replace(model, name, layer.base)
    take_out_of_attention(_prefixes(bank))
    undo_keep_routing(model)
    undo_split_relative_positions(model)
    unwrap_calls(model, bank)
    narrow_saved(bank)
    del model.mhr
    for p in model.parameters():
        p.requires_grad_(False)
    for p in bank.frozen:
        p.requires_grad_(True)


def _prefixes(bank: AdapterBank) -> list[RoutedGatedPrefix]:
    return [layer for layer in bank.layers.values() if isinstance(layer, RoutedGatedPrefix)]


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _modules_to_save(model: nn.Module, config: AdapterConfig) -> list[str]:
    if config.modules_to_save is None:
        classifier = "ForSequenceClassification" in type(model).__name__
        heads = [n for n in CLASSIFICATION_HEADS if classifier and isinstance(getattr(model, n, None), nn.Module)]
        inside = tuple(f"{head}." for head in heads)
        return heads + [n for n in getattr(model, "mhr_untrained", ()) if not f"{n}.".startswith(inside)]
    known = [name for name, _ in model.named_modules()]
    for name in config.modules_to_save:
        if name not in known:
            raise TargetError(f"modules_to_save names {name!r}, which the model does not have: {nearest(name, known)}")
    return list(config.modules_to_save)
