"""Packed documents against padded ones: the same losses and gradients; models that cannot keep them apart are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mhr
from mhr.data import Example
from mhr.data.collators import Batch, CausalCollator
from mhr.data.packing import PackedCollator
from mhr.errors import ConfigError, TargetError, TaskError
from mhr.objectives import make_objective
from mhr.objectives.consistency import example_divergences
from mhr.objectives.packing import packed_collator
from mhr.runs.train_settings import TrainConfig
from tests.architectures import build
from tests.helpers import assert_close
from tests.models import randomise, tiny_model
from tests.tokenizers import make_word_tokenizer

METHODS: dict[str, dict[str, Any]] = {
    "mhr": {"method": "mhr", "n_heads": 2, "n_skills": 3, "rank": 2},
    "poly": {"method": "poly", "n_skills": 3, "rank": 2},
    "noisy": {"method": "mhr", "n_heads": 2, "n_skills": 3, "rank": 2, "noise": "per_example"},
    "ia3": {"method": "poly", "n_skills": 3, "adapter": "ia3"},
    "bottleneck": {"method": "mhr", "n_heads": 2, "n_skills": 3, "rank": 2, "adapter": "bottleneck"},
    "adamix": {"method": "adamix", "n_skills": 3, "rank": 2, "adapter": "bottleneck"},
    "adamix-lora": {"method": "adamix", "n_skills": 3, "rank": 2},
    "shared": {"method": "shared", "n_skills": 1, "rank": 2},
}

TASKS = ("a", "b", "c")
LENGTHS = [(3, 2), (9, 4), (1, 1), (5, 3), (6, 2), (2, 4), (8, 5)]


def examples() -> list[Example]:
    """Documents of several lengths, whose tasks alternate."""
    return [
        Example(
            TASKS[i % 3], " ".join(f"w{(7 * i + j) % 40}" for j in range(n)), (" ".join(f"w{i + j}" for j in range(t)),)
        )
        for i, (n, t) in enumerate(LENGTHS)
    ]


def collators(documents: Sequence[Example], one_row: bool = False) -> tuple[Batch, Batch, list[int]]:
    """The documents padded and packed, and the place of each packed one among the padded."""
    plain = CausalCollator(make_word_tokenizer(), 16, 8)
    packed = PackedCollator(plain, one_row)
    place = {tuple(row.ids): i for i, row in enumerate(plain.encode_rows(documents))}
    batch = packed(documents)
    starts, ends = batch["offsets"].tolist(), batch["offsets"].tolist()[1:]
    flat, positions = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    order = []
    for start, end in zip(starts, ends, strict=False):
        run = positions[start:end]
        length = next((n for n in range(1, len(run)) if run[n] == 0), len(run))  # what follows is padding
        order.append(place[tuple(flat[start : start + length].tolist())])
    return plain(documents), batch, order


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_every_gradient_are_those_of_padded_documents(name: str, method: str, attention: str) -> None:
    model = tiny_model(name, vocab_size=80, attn_implementation=attention).double()
    bank = mhr.attach(model, mhr.AdapterConfig(**METHODS[method]), TASKS)
    randomise(bank)
    model.train()
    padded, packed, order = collators(examples())
    assert packed["input_ids"].shape[0] > 1
    assert packed["input_ids"].numel() < padded["input_ids"].numel()
    objective = make_objective("causal")
    if METHODS[method].get("noise"):  # drawn for each example in the order of the batch
        noise = torch.randn(len(bank.groups), len(order), 2, 3, dtype=torch.float64)
        drawn = iter([noise, noise[:, order]])
        bank._noise = lambda n, even: next(drawn)  # type: ignore[method-assign]
    bank.seed_draws(0, 0, 0)
    expected = objective(model, padded)
    expected.sums.sum().backward()
    truth = gradients(model)
    bank.seed_draws(0, 0, 0)
    found = objective(model, packed)
    found.sums.sum().backward()
    # Llama's eager attention takes its softmax in float32, and rounds it otherwise over rows of another length.
    single = (name, attention) == ("llama", "eager")
    limit = 1e-8 if single else 1e-12
    torch.testing.assert_close(found.sums, expected.sums[order], rtol=limit, atol=limit)
    torch.testing.assert_close(found.counts, expected.counts[order])
    assert found.tasks == [expected.tasks[i] for i in order]
    assert objective.count(packed) == objective.count(padded) == found.counts.sum()
    assert truth.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert_close(gradients(model), truth, torch.float32 if single else torch.float64)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logits_are_those_of_padded_documents(name: str) -> None:
    model = tiny_model(name, vocab_size=80).double()
    bank = mhr.attach(model, mhr.AdapterConfig(**METHODS["mhr"]), TASKS)
    randomise(bank)
    padded, packed, order = collators(examples())
    alone = model(padded["input_ids"], attention_mask=padded["attention_mask"], task_ids=padded["task_ids"]).logits
    shape = tuple(packed["input_ids"].shape)
    routed = bank.for_batch(packed["task_ids"]).packed(packed["offsets"], shape)
    together = model(
        packed["input_ids"], position_ids=packed["position_ids"], use_cache=False, task_ids=routed
    ).logits.flatten(0, 1)
    for start, i in zip(packed["offsets"].tolist(), order, strict=False):
        length = int(padded["attention_mask"][i].sum())
        torch.testing.assert_close(together[start : start + length], alone[i, :length], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_weight_without_a_bank(checkpointed: bool) -> None:
    model = tiny_model("llama", vocab_size=80).double().requires_grad_(True).train()
    padded, packed, order = collators(examples())
    objective = make_objective("causal")
    objective(model, padded).sums.sum().backward()
    truth = gradients(model)
    if checkpointed:
        model.gradient_checkpointing_enable()
    found = objective(model, packed, 0.0)
    found.sums.sum().backward()
    assert len(truth) == len(list(model.parameters()))
    assert_close(gradients(model), truth, torch.float64)


def test_two_passes_are_compared_document_by_document() -> None:
    model = tiny_model("llama", vocab_size=80).double()
    bank = mhr.attach(model, mhr.AdapterConfig(**METHODS["adamix"]), TASKS)
    randomise(bank)
    model.train()
    padded, packed, order = collators(examples())
    objective, found = make_objective("causal"), []
    for batch in (padded, packed):
        bank.seed_draws(0, 0, 0)
        found.append(example_divergences(*(objective(model, batch, compared=True) for _ in range(2))))
    assert found[0].min() > 0
    torch.testing.assert_close(found[1], found[0][order], rtol=1e-12, atol=1e-12)


def test_skills_drawn_for_each_sentence_are_drawn_for_each_document() -> None:
    model = tiny_model("llama", vocab_size=80).double()
    bank = mhr.attach(model, mhr.AdapterConfig(**METHODS["adamix"]), TASKS)
    randomise(bank)
    bank.inference = "sentence"
    padded, packed, order = collators(examples())
    padded = {k: v[order] if isinstance(v, Tensor) else [v[i] for i in order] for k, v in padded.items()}
    found = []
    for batch in (padded, packed):
        bank.seed_draws(0, 0, 0)
        found.append(make_objective("causal")(model, batch).sums)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_a_sliding_window_holds_within_a_document() -> None:
    model = build("causal", "mistral").double()
    model.config.sliding_window = 3
    padded, packed, order = collators(examples())
    objective = make_objective("causal")
    packed["input_ids"] %= 64
    padded["input_ids"] %= 64
    packed["labels"] = packed["labels"].where(packed["labels"] < 0, packed["labels"] % 64)
    padded["labels"] = padded["labels"].where(padded["labels"] < 0, padded["labels"] % 64)
    expected = objective(model, padded).sums
    torch.testing.assert_close(objective(model, packed).sums, expected[order], rtol=1e-12, atol=1e-12)
    model.config.sliding_window = None
    assert not torch.allclose(objective(model, padded).sums, expected)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "qwen3", "gemma2", "mixtral", "gpt_neox", "phi3", "olmo2", "smollm3", "ctrl"]
)
def test_models_that_keep_documents_apart(name: str) -> None:
    collator = CausalCollator(make_word_tokenizer(), 16, 8)
    packed = packed_collator(build("causal", name), make_objective("causal"), collator)
    assert isinstance(packed, PackedCollator)
    assert (packed.max_input_length, packed.max_target_length) == (16, 8)


@pytest.mark.parametrize(
    "name", ["mamba", "mamba2", "bloom", "mpt", "rwkv", "qwen3_next", "xlnet", "jamba", "bamba", "gpt_oss"]
)
def test_models_that_cannot_are_refused_by_name(name: str) -> None:
    collator = CausalCollator(make_word_tokenizer(), 16, 8)
    with pytest.raises(
        ConfigError, match=rf"data\.packing is on, but this {name} cannot keep documents .* leave packing out$"
    ):
        packed_collator(build("causal", name), make_objective("causal"), collator)


@pytest.mark.parametrize(("name", "kind"), [("t5", "seq2seq"), ("bert", "encoder")])
def test_other_kinds_are_refused(name: str, kind: str) -> None:
    objective = make_objective(kind)
    with pytest.raises(ConfigError, match=f"this {name} is used as kind '{kind}'"):
        packed_collator(tiny_model(name), objective, objective.collator(make_word_tokenizer(), 16, 8))


def test_ranking_losses_are_refused() -> None:
    objective = make_objective("causal", TrainConfig(mc_loss=1.0))
    with pytest.raises(ConfigError, match="a ranking loss"):
        packed_collator(tiny_model("llama"), objective, objective.collator(make_word_tokenizer(), 16, 8))


def test_a_layer_that_holds_other_tokens_is_named() -> None:
    model = tiny_model("llama", vocab_size=80)
    bank = mhr.attach(model, mhr.AdapterConfig(**METHODS["mhr"]), TASKS)
    _, packed, _ = collators(examples())
    routed = bank.for_batch(packed["task_ids"]).packed(packed["offsets"], (2, 11))
    with pytest.raises(TaskError, match=r"expected the packed rows \[2, 11\] of its 7 documents"):
        model(packed["input_ids"], task_ids=routed)
    with bank.routing(routed), pytest.raises(TargetError, match=r"'model.layers.0.self_attn.q_proj' got x .* 2 x 11"):
        model.model(packed["input_ids"])
