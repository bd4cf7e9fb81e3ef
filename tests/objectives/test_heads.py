"""Logits where a label is: the losses and gradients of the plain form, in the memory of one run of them."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaForCausalLM, PreTrainedModel

import mhr
from mhr.objectives import chunks, make_objective
from mhr.objectives.consistency import example_divergences
from mhr.objectives.heads import head_of, states_at
from tests.architectures import build
from tests.helpers import assert_close
from tests.models import random_batch, randomise, tiny_model

SETTINGS: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 7.0},
}
MODELS = ["llama", "gpt2", "t5", "t5-tied", "bart", "gemma2", "cohere", "granite"]


def model_of(name: str) -> PreTrainedModel:
    if name == "t5-tied":
        return tiny_model("t5", tie_word_embeddings=True).double()
    if name not in SETTINGS:
        model = tiny_model(name).double()
        if name == "bart":
            model.final_logits_bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
        return model
    model = build("causal", name).double()
    for key, value in SETTINGS[name].items():
        setattr(model.config, key, value)
        if hasattr(model, key):  # Cohere keeps its own
            setattr(model, key, value)
    return model


def batch_for(model: PreTrainedModel) -> dict[str, Any]:
    batch = random_batch(model)
    batch["labels"][0, :3] = -100
    batch["labels"][2] = -100  # an example without any
    return {**batch, "task_ids": ["a", "b", "a", "b"]}


def plain_sums(model: PreTrainedModel, batch: dict[str, Any], smoothing: float) -> Tensor:
    """The losses [B] from all logits."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "task_ids")}
    labels = batch["labels"]
    if model.config.is_encoder_decoder:
        logits = model(**inputs, labels=labels).logits
    else:
        logits, labels = model(**inputs).logits[:, :-1], labels[:, 1:]
    losses = F.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=-100, reduction="none", label_smoothing=smoothing
    )
    return losses.sum(1)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    # A bias of keys moves every score of a query alike: what it gets is rounding.
    named = [(n, p) for n, p in model.named_parameters() if p.grad is not None and not n.endswith("k_proj.bias")]
    found = {name: p.grad for name, p in named}
    model.zero_grad()
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_every_gradient_are_those_of_all_logits(
    name: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "LARGEST", 5 * 64)
    model = model_of(name).requires_grad_(True)
    batch = batch_for(model)
    expected = plain_sums(model, batch, smoothing)
    expected.sum().backward()
    truth = gradients(model)
    found = make_objective("seq2seq" if model.config.is_encoder_decoder else "causal")(model, batch, smoothing).sums
    assert head_of(model) is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found.sum().backward()
    assert len(truth) > 10
    assert_close(gradients(model), truth, torch.float64)


@pytest.mark.parametrize(("name", "kind"), [("llama", "causal"), ("t5", "seq2seq")])
@pytest.mark.parametrize("saved", [True, False])
def test_with_a_bank_and_two_passes(name: str, kind: str, saved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LARGEST", 5 * 64)
    model = tiny_model(name).double()
    config = mhr.AdapterConfig(
        method="adamix", adapter="bottleneck", n_skills=2, modules_to_save=["lm_head"] if saved else None
    )
    bank = mhr.attach(model, config, ["a", "b"])
    randomise(bank)
    model.train()
    batch, objective = batch_for(model), make_objective(kind)

    def passes(compared: bool) -> Tensor:
        bank.seed_draws(0, 0, 0)
        first, second = (objective(model, batch, compared=compared) for _ in range(2))
        return first.sums.sum() + example_divergences(first, second).sum()

    passes(True).backward()
    found = gradients(model)
    monkeypatch.setattr(chunks, "LARGEST", 2**25)
    monkeypatch.setattr("mhr.objectives.heads.head_of", lambda model: None)
    passes(True).backward()
    truth = gradients(model)
    moved = any(name in truth for name, p in model.named_parameters() if p is model.lm_head.weight)
    assert moved == saved
    assert_close(found, truth, torch.float64)


class Largest(TorchDispatchMode):
    """The most elements that a tensor of floats had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t.numel() for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
        self.elements = max([self.elements, *made])
        return out


@pytest.mark.parametrize(("name", "kind"), [("llama", "causal"), ("t5", "seq2seq")])
@pytest.mark.parametrize("labelled", [3, 40])
def test_no_tensor_has_logits_of_every_position(
    name: str, kind: str, labelled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding [V, 32] is the largest that there is: neither 12 nor 160 labels make more."""
    vocabulary, width, length = 3000, 32, 40
    monkeypatch.setattr(chunks, "LARGEST", 16 * vocabulary)
    model = tiny_model(name, vocab_size=vocabulary, num_hidden_layers=1)
    mhr.attach(model, mhr.AdapterConfig(method="mhr", n_heads=2, n_skills=2, rank=2), ["a", "b"])
    batch = {**random_batch(model, 4, length, length), "task_ids": ["a", "b", "a", "b"]}
    batch["labels"][:, labelled:] = -100
    with Largest() as largest:
        make_objective(kind)(model, batch).sums.sum().backward()
    assert largest.elements == vocabulary * width
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_an_adapted_head_is_left_to_the_model() -> None:
    model = tiny_model("llama").double()
    bank = mhr.attach(model, mhr.AdapterConfig(n_heads=2, n_skills=2, rank=2, targets=r"lm_head"), ["a", "b"])
    randomise(bank)
    assert head_of(model) is None
    batch = batch_for(model)
    with bank.routing(batch["task_ids"]):
        expected = plain_sums(model, batch, 0.0)
    torch.testing.assert_close(make_objective("causal")(model, batch).sums, expected, rtol=1e-12, atol=1e-12)


class Odd(LlamaForCausalLM):
    """Changes what its head said in a way of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.abs()
        return out


def test_an_unknown_use_of_the_head_is_left_to_the_model() -> None:
    model = Odd(tiny_model("llama").config).eval().double()
    assert head_of(model) is None
    batch = batch_for(model)
    torch.testing.assert_close(make_objective("causal")(model, batch).sums, plain_sums(model, batch, 0.0))


def test_a_cap_is_known_from_none_where_logits_are_small() -> None:
    model = build("causal", "gemma2").double()
    model.config.final_logit_softcapping = 30.0
    head = head_of(model)
    assert head is not None
    z = torch.tensor([50.0], dtype=torch.float64)
    torch.testing.assert_close(head.finish(z), 30.0 * torch.tanh(z / 30.0))


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
    ids=["float32", "bfloat16", "float16", "autocast-bfloat16", "autocast-float16"],
)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model_in_every_precision(
    name: str, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    model = model_of(name).to(dtype)
    batch = batch_for(model)
    valid = batch.pop("labels") != -100
    inputs = {name: value for name, value in batch.items() if name != "task_ids"}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(2, 64, valid.shape, generator=torch.Generator().manual_seed(0))
    within = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    with torch.no_grad(), within:
        states = states_at(model, inputs, valid)
        found = states.logits(states.values)
        expected = model(**inputs).logits[valid]
    assert states.head is not None
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


class Shifted(LlamaForCausalLM):
    """Adds what no setting of it speaks of, and little of it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + 0.1
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_small_unknown_change_is_left_to_the_model_in_every_precision(dtype: torch.dtype) -> None:
    assert head_of(Shifted(tiny_model("llama").config).eval().to(dtype)) is None


def test_a_bias_that_is_loaded_after_the_first_call_counts() -> None:
    model = tiny_model("bart")
    assert not model.final_logits_bias.any()
    head = head_of(model)
    assert head is not None
    model.final_logits_bias.fill_(2.0)
    z = torch.zeros(3, head.width)
    torch.testing.assert_close(head.finish(z), z + 2.0)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_whose_head_is_known_is_freed(name: str) -> None:
    model = model_of(name)
    assert head_of(model) is not None
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None


def test_a_compiled_model_is_left_to_itself() -> None:
    model = tiny_model("llama")
    assert head_of(model) is not None
    assert head_of(torch.compile(model)) is None  # type: ignore[arg-type]


def test_a_first_call_draws_no_random_numbers() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    torch.manual_seed(0)
    head_of(model)
    found = torch.rand(3)
    torch.manual_seed(0)
    torch.testing.assert_close(found, torch.rand(3), rtol=0, atol=0)
