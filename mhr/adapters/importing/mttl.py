"""Checkpoints of microsoft/mttl at its tag mhr-camera-ready: Poly, MHR, MHR-mu, private, and one LoRA or IA3 for all tasks.

A pickle of Lightning's with `state_dict`, `hyper_parameters` and `global_step`. No tensor is transposed:

    model.{layer}.lora_a [H, S, I/H, R]                    layers.{layer}.bank_a
    model.{layer}.lora_b [H, S, R, O/H]                    layers.{layer}.bank_b
    model.{layer}.selector.module_logits [T, H * S]        routers.{group}.logits [T, H, S]
    model.{layer}.multi_lora_b [O]                         layers.{layer}.bank_v [1, 1, 1, O]

where layers that share a selector have it once, under the first of them. In eval mode it computes, as we do,

    w = p / (sum_s p + 1e-12), p = sigmoid(Z[t]);  y = W x + b + (lora_alpha / lora_rank) (x A_w) B_w

A model that averages its skills (switch_to_avg_modules, finetune_type MuZ) has no selector: w = 1/S.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mhr.adapters.base import BaseModel
from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.importing.formats import ForeignBank, reads_bank
from mhr.adapters.importing.source import ForeignPath
from mhr.adapters.layer import Sizes
from mhr.adapters.peft_poly import numbered
from mhr.config import AdapterConfig
from mhr.errors import CheckpointError, ConfigError
from mhr.methods import PRIVATE, SHARED, UNIFORM, learned_routing

MTTL_PARTS = {"lora_a": "bank_a", "lora_b": "bank_b", "multi_lora_b": "bank_v", "selector.module_logits": "logits"}

RENAMED = {
    "lora_randb_init": "lora_init_b_random",
    "lora_modules": "modify_modules",
    "lora_layers": "modify_layers",
    "poly_selector": "router_selector",
    "poly_granularity": "router_granularity",
}
"""Names of settings in older files -> those of now."""

THEIR_GRANULARITIES = {
    "finegrained": ("fine", None),
    "layerwise": ("layer", "layer"),
    "blockwise": ("block", "block"),
    "coderwise": ("coder", "coder"),
    "coarsegrained": ("coarse", None),
}
"""Their granularity -> ours, and the word in a layer's name after whose next part layers share a selector."""

MODEL_FAMILIES = {"encdec": "seq2seq", "gpt": "causal"}

BEYOND = {
    "poly_average_correction": "which does not divide the routing weights by their sum",
    "poly_use_shared_skill": "which keeps the last skill on for every task",
    "module_logits_l2_norm": "which normalises the routing logits instead of taking their sigmoid",
    "module_logits_dropout": "which drops routing weights, at evaluation too",
}
"""Settings that no bank computes."""

WARM_UP = 10_000
"""Steps over which lora_warmup brings in the adapter."""


def _is_mttl(source: ForeignPath) -> bool:
    return {"state_dict", "hyper_parameters"} <= source.held.keys()


@reads_bank("mttl", "a checkpoint of microsoft/mttl (a .ckpt or .pt of Lightning)", _is_mttl)
def read_mttl(source: ForeignPath) -> ForeignBank:
    """The bank in a checkpoint. Raises CheckpointError for settings that no bank computes, and for tensors that are no part of one."""
    where, held = str(source.path), source.held
    said = _settings(held["hyper_parameters"], where)
    steps = _steps(held.get("global_step"))
    _refuse_beyond(said, steps, where)
    layers = _sort(held["state_dict"], said, where)
    modifier = said.get("model_modifier")
    if modifier == "lora":
        bank = _one(layers, said, where, "lora")
    elif modifier == "ia3":
        bank = _one(layers, said, where, "ia3")
    else:
        bank = _routed(layers, said, where)
    notes = []
    if said.get("uniform_interp_steps"):
        notes.append(
            "it was trained toward the average of its skills (uniform_interp_steps), and its routing is kept beside: mhr merge RUN "
            "--method uniform is the average"
        )
    lengths = {"data.max_input_length": "max_input_length", "data.max_target_length": "max_output_length"}
    settings = {ours: said[theirs] for ours, theirs in lengths.items() if isinstance(said.get(theirs), int)}
    return ForeignBank(bank, settings, steps, notes)


def _settings(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not given:
        raise CheckpointError(f"{where} has no hyper_parameters, which say what its tensors are")
    said = {RENAMED.get(str(name), str(name)): value for name, value in given.items()}
    if str(said.get("model_modifier")).startswith("poly"):
        said["model_modifier"] = "poly"
    return said


def _steps(given: Any) -> int | None:
    try:
        return int(given)
    except (TypeError, ValueError):
        return None


def _refuse_beyond(said: Mapping[str, Any], steps: int | None, where: str) -> None:
    for name, what in BEYOND.items():
        if said.get(name):
            raise CheckpointError(f"{where} sets {name}, {what}: no bank here computes that")
    if said.get("lora_warmup") and (steps is None or steps < WARM_UP):
        raise CheckpointError(
            f"{where} sets lora_warmup and was trained for {steps or 'an unknown number of'} steps, so that its adapter counts by a "
            f"part that is not stored: expected at least {WARM_UP} steps"
        )
    if said.get("model_modifier") not in ("poly", "skilled", "lora", "ia3"):
        raise CheckpointError(
            f"{where} has model_modifier {said.get('model_modifier')!r}, expected poly, skilled, lora or ia3"
        )
    if said.get("adapter_type") not in (None, "", said["model_modifier"], "lora"):
        raise CheckpointError(f"{where} has adapter_type {said['adapter_type']!r}, expected lora")
    selector = said.get("router_selector")
    if said["model_modifier"] == "poly" and selector not in (None, "", "poly", "average", "private"):
        raise CheckpointError(f"{where} has router_selector {selector!r}, expected poly, average or private")


def _sort(state: Any, said: Mapping[str, Any], where: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint: adapted layer -> our name of a part -> tensor."""
    layers: dict[str, dict[str, Tensor]] = {}
    pattern = re.compile(rf"model\.(.+)\.({'|'.join(map(re.escape, MTTL_PARTS))})")
    for key, tensor in state.items() if isinstance(state, Mapping) else ():
        found = pattern.fullmatch(str(key))
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where} has {key!r} in its state_dict, which is no tensor")
        if found:
            layers.setdefault(found[1], {})[MTTL_PARTS[found[2]]] = tensor
        elif not str(key).endswith(".selector.module_probs"):  # the 1/S of an average
            trained = said.get("trainable_param_names")
            more = f" (trainable_param_names is {trained!r})" if trained else ""
            raise CheckpointError(
                f"{where} holds {key!r}, which is no part of an adapter: it was trained with other weights of its base model{more}"
            )
    if not layers:
        raise CheckpointError(f"{where} holds no adapter: expected tensors such as model.LAYER.lora_a")
    return layers


def _one(
    layers: Mapping[str, Mapping[str, Tensor]], said: Mapping[str, Any], where: str, kind: str
) -> AdapterCheckpoint:
    """One adapter for all tasks."""
    parts = {"lora": ("bank_a", "bank_b"), "ia3": ("bank_v",)}[kind]
    tensors = {}
    rank = _number(said, "lora_rank", where) if kind == "lora" else 1
    sizes: dict[str, Sizes] = {}
    for layer, held in layers.items():
        shapes = {part: tuple(t.shape) for part, t in held.items()}
        if kind == "lora":
            expected = {
                "bank_a": (*shapes.get("bank_a", ())[:1], rank),
                "bank_b": (rank, *shapes.get("bank_b", ())[1:2]),
            }
        else:
            expected = {"bank_v": shapes.get("bank_v", ())[:1]}
        _check_shapes(layer, shapes, expected, where)
        for part in parts:
            tensors[f"layers.{layer}.{part}"] = held[part].reshape(
                1, 1, *(held[part].shape if kind == "lora" else (1, -1))
            )
        sizes[layer] = (shapes["bank_a"][0], shapes["bank_b"][1]) if kind == "lora" else (None, shapes["bank_v"][0])
    config = _config(said, where, method=SHARED, adapter=kind, targets=list(layers), **_scaled(said, rank, kind))
    return _bank(config, numbered(1), said, sizes, {layer: layer for layer in layers}, tensors, where)


def _routed(layers: Mapping[str, Mapping[str, Tensor]], said: Mapping[str, Any], where: str) -> AdapterCheckpoint:
    rank, heads = _number(said, "lora_rank", where), _number(said, "n_splits", where, 1)
    private = said["model_modifier"] == "skilled" or said.get("router_selector") == "private"
    n_tasks = said.get("n_tasks") if private else None
    skills = _number(said, "n_tasks" if private else "n_skills", where)
    if private and heads > 1:
        raise CheckpointError(
            f"{where} has {heads} splits and one skill a task, for which mttl mixes up the heads of B: no bank here computes that"
        )
    sizes: dict[str, Sizes] = {}
    tensors: dict[str, Tensor] = {}
    for layer, held in layers.items():
        shapes = {part: tuple(t.shape) for part, t in held.items()}
        expected = {
            "bank_a": (heads, skills, *shapes.get("bank_a", ())[2:3], rank),
            "bank_b": (heads, skills, rank, *shapes.get("bank_b", ())[3:4]),
        }
        _check_shapes(layer, {part: shape for part, shape in shapes.items() if part != "logits"}, expected, where)
        tensors |= {f"layers.{layer}.{part}": held[part] for part in expected}
        sizes[layer] = (heads * shapes["bank_a"][2], heads * shapes["bank_b"][3])
    name = said.get("router_granularity") or "finegrained"
    if name not in THEIR_GRANULARITIES:
        raise CheckpointError(
            f"{where} has router_granularity {name!r}, expected one of {', '.join(THEIR_GRANULARITIES)}"
        )
    granularity, word = THEIR_GRANULARITIES[name]
    common: dict[str, Any] = {
        "n_heads": heads,
        "n_skills": None if private else skills,
        "targets": list(layers),
        **_scaled(said, rank, "lora"),
    }
    logits = {layer: held["logits"] for layer, held in layers.items() if "logits" in held}
    if private:
        groups = {layer: layer for layer in layers}
        if logits:
            raise CheckpointError(f"{where} has one skill a task and routing logits as well: expected one of both")
        config = _config(said, where, method=PRIVATE, **common)
        return _bank(config, numbered(int(n_tasks or skills)), said, sizes, groups, tensors, where)
    if not logits:
        averages = said.get("switch_to_avg_modules") or said.get("router_selector") == "average"
        if not (averages or said.get("finetune_type") == "MuZ"):
            raise CheckpointError(
                f"{where} holds no routing (selector.module_logits) and does not say that it averages its skills (switch_to_avg_modules): "
                "it is incomplete"
            )
        config = _config(said, where, method=UNIFORM, **common)
        tasks = numbered(_number(said, "n_tasks", where, 1))
        return _bank(config, tasks, said, sizes, {layer: layer for layer in layers}, tensors, where)
    groups = {layer: _group(layer, granularity, word, where) for layer in layers}
    tables: dict[str, Tensor] = {}
    for layer, table in logits.items():
        if table.dim() != 2 or table.shape[1] != heads * skills:
            raise CheckpointError(
                f"selector.module_logits of layer {layer!r} in {where} has shape {tuple(table.shape)}, expected (tasks, {heads * skills}): "
                f"{heads} splits of {skills} skills"
            )
        first = tables.setdefault(groups[layer], table)
        if first.shape != table.shape or not torch.equal(first, table):
            raise CheckpointError(
                f"{where} has two selectors for the layers {groups[layer] or 'of all the model'}, which share one ({name})"
            )
    rows = {len(table) for table in tables.values()}
    missing = next((layer for layer, group in groups.items() if group not in tables), None)
    if missing is not None or len(rows) != 1:
        what = f"no selector for layer {missing!r}" if missing is not None else f"selectors of {sorted(rows)} tasks"
        raise CheckpointError(f"{where} has {what}: it is incomplete")
    tasks = numbered(rows.pop())
    for group, table in tables.items():
        tensors[f"routers.{group or 'all'}.logits"] = table.reshape(len(tasks), heads, skills)
    rounded = bool(said.get("module_logits_straight_through"))
    if rounded:
        _refuse_all_off(tables, heads, skills, where)
    noisy = bool(said.get("module_logits_relaxed_bernoulli"))
    config = _config(
        said,
        where,
        method=learned_routing(heads),
        granularity=granularity,
        noise="per_example" if noisy else "off",
        straight_through=rounded,
        **common,
    )
    return _bank(config, tasks, said, sizes, groups, tensors, where)


def _refuse_all_off(tables: Mapping[str, Tensor], heads: int, skills: int, where: str) -> None:
    """Rounded weights are ours, but where nothing is left of a head and at exactly one half."""
    rounds = f"{where} rounds its routing (module_logits_straight_through), and"
    for group, table in tables.items():
        p = torch.sigmoid(table.float()).reshape(len(table), heads, skills)
        at = f"in {group!r}" if group else "in the one selector"
        if (p == 0.5).any():
            raise CheckpointError(f"{rounds} a logit {at} is 0, which mttl rounds down and this library up")
        off = (~(p > 0.5).any(-1)).nonzero()
        if len(off):
            task, head = off[0].tolist()
            raise CheckpointError(
                f"{rounds} head {head} of task {task} {at} has no skill on, which mttl leaves without an adapter and this library routes "
                "uniformly"
            )


def _group(layer: str, granularity: str, word: str | None, where: str) -> str:
    """What layers that share a selector have in common: their name up to the part after `word.`."""
    if word is None:
        return layer if granularity == "fine" else ""
    start = layer.find(f"{word}.")
    if start < 0:
        raise CheckpointError(
            f"{where} shares selectors by {word!r}, which the name of layer {layer!r} does not have: which layers share one is unknown"
        )
    end = layer.find(".", start + len(word) + 1)
    return layer if end < 0 else layer[:end]


def _scaled(said: Mapping[str, Any], rank: int, kind: str) -> dict[str, Any]:
    if kind != "lora":
        return {}
    alpha = said.get("lora_alpha")
    return {"rank": rank, "alpha": float(alpha) if isinstance(alpha, int | float) else 1.0}


def _config(said: Mapping[str, Any], where: str, **settings: Any) -> AdapterConfig:
    try:
        return AdapterConfig(modules_to_save=[], **settings)
    except ConfigError as fault:
        raise CheckpointError(f"{where} has settings that no bank can hold: {fault}") from None


def _bank(
    config: AdapterConfig,
    tasks: list[str],
    said: Mapping[str, Any],
    layers: dict[str, Sizes],
    groups: dict[str, str],
    tensors: dict[str, Tensor],
    where: str,
) -> AdapterCheckpoint:
    base = BaseModel(str(said.get("model") or ""), MODEL_FAMILIES.get(str(said.get("model_family")), ""))
    return AdapterCheckpoint(config, tasks, base, layers, groups, [], tensors, name=where)


def _check_shapes(
    layer: str, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str
) -> None:
    if shapes.keys() != expected.keys():
        names = {ours: theirs for theirs, ours in MTTL_PARTS.items()}
        held, wanted = (", ".join(names[part] for part in sorted(parts)) for parts in (shapes, expected))
        raise CheckpointError(f"layer {layer!r} in {where} has {held}, expected {wanted}")
    wrong = next((part for part, shape in expected.items() if shapes[part] != shape), None)
    if wrong is not None:
        raise CheckpointError(
            f"layer {layer!r} in {where} has tensors of shapes {', '.join(map(str, shapes.values()))}, which its hyper_parameters "
            "(n_splits, n_skills, lora_rank) do not give it"
        )


def _number(said: Mapping[str, Any], name: str, where: str, otherwise: int | None = None) -> int:
    value = said.get(name, otherwise)
    value = otherwise if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"{where} has {name} {value!r} among its hyper_parameters: expected an integer of at least 1"
        )
    return value
