"""Every text architecture of transformers: the rows of a mixed batch are answered as they are one by one, or it is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.mra import modeling_mra

import mhr
from mhr import AdapterConfig
from mhr.errors import TargetError
from mhr.layers.attach import CLASSIFICATION_HEADS
from mhr.layers.layouts import routable
from mhr.layers.targets import find_targets
from mhr.layers.weight_reads import weight_is_read
from tests.architectures import architectures, build, called_linears, inputs_for
from tests.models import randomise

TASKS = ["boolq", "rte", "copa"]
SHAPES = [(3, 10), (8, 8)]  # in the second, examples and positions are as many

QUICK = [
    ("causal", "llama"), ("causal", "gpt2"), ("causal", "opt"), ("causal", "mamba"), ("causal", "xlnet"),
    ("causal", "qwen2_moe"), ("causal", "prophetnet"), ("seq2seq", "bart"), ("seq2seq", "led"), ("seq2seq", "fsmt"),
    ("seq2seq", "switch_transformers"), ("seq2seq", "longt5"), ("classifier", "deberta-v2"), ("classifier", "deberta"),
    ("classifier", "longformer"), ("classifier", "xlnet"), ("classifier", "funnel"), ("classifier", "mra"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def attention_of_mra(monkeypatch: pytest.MonkeyPatch) -> None:
    """MRA's approximation is a kernel for CUDA; without it transformers has that attention give zeros, on which no adapter acts.
    The attention that it approximates stands in for it."""

    def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *how: Any, **more: Any) -> Tensor:
        return scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(modeling_mra, "mra2_attention", exact)


KINDS = (*((None, kind) for kind in ("lora", "bottleneck", "recurrent", "bias", "gated")), ("all-linear", "lora"))
"""Targets and kinds of adapters."""


def compare(
    kind: str, model_type: str, place: int | None = None, kinds: Sequence[tuple[str | None, str]] = KINDS
) -> tuple[list[str], list[str]]:
    """Layers of a tiny model that were compared, and those that were refused in one line. Raises AssertionError for the rest.

    place: among many architectures, where further kinds of adapters meet one shape each, by turns; None: each meets both
    kinds: those further ones
    """
    model = build(kind, model_type)
    wanted = called_linears(model, inputs_for(kind, *SHAPES[0]))
    refused: list[str] = []
    for _ in range(30):
        layers = [name for name in wanted if not any(ending(name) == ending(r) for r in refused)]
        adapted = copy.deepcopy(model)
        try:
            bank = mhr.attach(adapted, AdapterConfig(method="private", rank=2, targets=layers), TASKS)
            randomise(bank)
            for shape in SHAPES:
                mixed_as_alone(adapted, kind, *shape)
            break
        except TargetError as error:
            refused += re.findall(r"^layer '([^']+)' .*$", str(error))  # in one line
            if not refused:
                raise
    else:
        raise AssertionError(f"refused without end: {refused}")
    for i, (targets, adapter) in enumerate(kinds):
        try:
            found = find_targets(model, targets, outside=CLASSIFICATION_HEADS, adapter=adapter)
        except TargetError as error:
            assert re.search("does not show|has no biases|has not one self-attention", str(error))  # noqa: PT017 - many structures show what is asked for
            continue
        adapted = copy.deepcopy(model)
        config = AdapterConfig(method="private", adapter=adapter, rank=2, targets=found)
        try:
            randomise(mhr.attach(adapted, config, TASKS))
            for shape in SHAPES if place is None else [SHAPES[(place + i) % 2]]:
                mixed_as_alone(adapted, kind, *shape, by_task=True)
        except TargetError as error:
            own = {
                "recurrent": "follows each token through|expected the same tokens in all",
                "gated": "a prefix has a place in",
            }
            assert adapter in own
            assert re.search(own[adapter], str(error))  # noqa: PT017
    return layers, refused


def ending(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def mixed_as_alone(
    model: PreTrainedModel, kind: str, batch: int, length: int, differ: float = 1e-3, by_task: bool = False
) -> None:
    """The rows of a mixed batch are answered as one by one; by_task: as where all rows have their task, which takes fewer calls."""
    inputs = inputs_for(kind, batch, length)
    ids = ["rte", "boolq", "copa", "rte", "boolq", "rte", "copa", "copa"][:batch]
    mixed = answer(model, inputs, ids)
    if by_task:
        whole = {task: answer(model, inputs, [task] * batch) for task in TASKS}
        alone = torch.stack([whole[task][i] for i, task in enumerate(ids)])
    else:
        alone = torch.cat([answer(model, {k: v[i : i + 1] for k, v in inputs.items()}, [t]) for i, t in enumerate(ids)])
    others = answer(model, inputs, [*ids[1:], ids[0]])
    size = alone.abs().max()
    assert (mixed - alone).abs().max() < 1e-4 * size, f"{batch} x {length}: {(mixed - alone).abs().max() / size:.1e}"
    assert not differ or (mixed - others).abs().max() > differ * size  # the tasks answer differently


@torch.no_grad()
def answer(model: PreTrainedModel, inputs: dict[str, Tensor], ids: list[str]) -> Tensor:
    torch.default_generator.manual_seed(
        0
    )  # torch.manual_seed keeps a stack trace for each kind of device that there is not
    return model(**inputs, task_ids=ids).logits.double()


# Each with another kind of adapter, so that every pair of a method and a kind meets some of these architectures.
OTHERS: list[dict[str, Any]] = [
    {"method": method, "adapter": adapter, **settings}
    for adapter in ("ia3", "bottleneck", "lora")
    for method, settings in (
        ("poly", {"n_skills": 3}),
        ("mhr", {"n_skills": 3, "n_heads": 2}),
        ("adamix", {}),
        ("private", {}),
    )
]


@pytest.mark.parametrize(("place", "architecture"), list(enumerate(q for q in QUICK if "moe" not in q[1])))
def test_every_method_and_kind_of_adapter(place: int, architecture: tuple[str, str]) -> None:
    kind, model_type = architecture
    model = build(kind, model_type)
    wanted = called_linears(model, inputs_for(kind, *SHAPES[0]))
    layers = [name for name in wanted if routable(model, name)]
    for settings in OTHERS[place % 3 :: 3]:
        adapted = copy.deepcopy(model)
        rank = {} if settings["adapter"] == "ia3" else {"rank": 2}
        bank = mhr.attach(adapted, AdapterConfig(targets=layers, **settings, **rank), TASKS)
        randomise(bank)
        for shape in SHAPES:
            mixed_as_alone(adapted, kind, *shape, differ=2e-4 * bank.needs_tasks)


@pytest.mark.parametrize(("kind", "model_type"), QUICK)
def test_a_mixed_batch_is_its_rows_alone(kind: str, model_type: str) -> None:
    layers, refused = compare(kind, model_type)
    assert layers
    model = build(kind, model_type)
    told = ("experts", "pos_proj", "pos_q_proj")
    assert all(any(part in name for part in told) or weight_is_read(model, name) for name in refused), refused


@pytest.mark.slow
def test_every_text_architecture_is_right_or_refused() -> None:
    every = architectures()
    compared, faults = [], []
    met: set[str] = set()
    for place, (kind, model_type) in enumerate(every):
        try:
            # A classifier has the body of the language model of its type: its head is what is new.
            layers, refused = compare(
                kind, model_type, place, () if kind == "classifier" and model_type in met else KINDS
            )
            met.add(model_type)
            compared.append((kind, model_type))
            print(kind, model_type, len(layers), "compared;", len(refused), "refused:", *refused)
        except Exception as error:  # noqa: BLE001 - all errors are shown together
            faults.append(f"{kind} {model_type}: {type(error).__name__}: {str(error)[:200]}")
    print(len(compared), "of", len(every))
    assert not faults, "\n".join(faults)
    assert len(compared) == len(every) > 150
