"""BitFit (arXiv 2106.10199): the equation, which biases a model has, that they and nothing else change, and that it folds exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse, collapse_task, fold_into, load_adapter, save_adapter, save_peft
from mhr.adapters.plain import attach_plain
from mhr.errors import CheckpointError, ConfigError, MergeError, TargetError
from mhr.layers.biases import find_biases
from mhr.layers.targets import find_targets
from mhr.merging.mera import combine_mera
from mhr.methods import METHODS, method_of
from mhr.training.seeding import _put
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
BITFIT = METHODS["bitfit"]


def adapted(model: Any = None, **settings: Any) -> tuple[Any, AdapterBank]:
    model = tiny_model("bert-encoder").double() if model is None else model
    bank = mhr.attach(model, AdapterConfig(**{"method": "private", "adapter": "bias", **settings}), TASKS)
    randomise(bank)
    return model, bank


@pytest.mark.parametrize("settings", [{}, {"method": "mhr", "n_heads": 4, "n_skills": 3}], ids=["private", "mhr"])
@pytest.mark.parametrize("name", ["encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.intermediate.dense"])
def test_outputs_and_every_gradient_are_those_of_the_equation(name: str, settings: dict[str, Any]) -> None:
    _, bank = adapted(**settings)
    layer = bank.layers[name]
    x = torch.randn(4, 5, 32, dtype=torch.float64, requires_grad=True)
    leaves = {"x": x, **layer.bank(), **dict(layer.router.named_parameters())}
    weights = layer.router(bank.for_batch(TASKS))
    shift = layer.bank()["bank_shift"].squeeze(2)
    stated = torch.stack(
        [
            layer.base(example) + torch.einsum("hs,hso->ho", weights[TASKS.index(task)], shift).flatten()
            for example, task in zip(x, IDS, strict=True)
        ]
    )
    with bank.routing(IDS):
        found = layer(x)
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(stated)
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, stated))
    for key, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), key
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("name", ["bert", "bart", "gpt2"])
def test_its_gradients_and_steps_are_those_of_the_biases_themselves(name: str) -> None:
    plain = tiny_model(name).double()
    model = copy.deepcopy(plain)
    bank = mhr.attach(model, AdapterConfig(**BITFIT.fixed, modules_to_save=[]), ["boolq"])
    own = {layer: plain.get_parameter(f"{layer}.bias") for layer in bank.layers}
    batch = random_batch(plain)
    steps = [torch.optim.SGD(list(p), lr=1e-1, momentum=0.9) for p in (own.values(), bank.adapter_parameters())]
    for _ in range(2):
        for one, step in zip((plain, model), steps, strict=True):
            step.zero_grad()
            one(**batch)[0].backward()
        for layer, bias in own.items():
            shift = bank.layers[layer].bank()["bank_shift"]
            torch.testing.assert_close(shift.grad.flatten(), bias.grad, rtol=1e-9, atol=1e-12, msg=layer)
        for step in steps:
            step.step()
    fold_into(found := tiny_model(name).double(), collapse(checkpoint_of(model, "tiny"), None))
    for key, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[key], rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", ["bert-encoder", "bart", "gpt2"])
def test_a_model_that_it_is_merged_into_differs_in_exactly_its_biases(name: str) -> None:
    base = tiny_model(name).double()
    model, bank = adapted(copy.deepcopy(base))
    before = {key: t.clone() for key, t in base.state_dict().items()}
    batch = random_batch(base)
    plain = collapse_task(checkpoint_of(model, "tiny"), "copa")
    assert plain.kind == "bias"
    with torch.no_grad():
        routed = model(**batch, task_ids=["copa"] * 4)[0]
        worn = copy.deepcopy(base)
        attach_plain(worn, plain)
        torch.testing.assert_close(worn(**batch)[0], routed)
        fold_into(base, plain)
        torch.testing.assert_close(base(**batch)[0], routed)
    changed = {key for key, t in base.state_dict().items() if not torch.equal(t, before[key])}
    assert changed == {f"{layer}.bias" for layer in bank.layers} == {key for key in before if key.endswith(".bias")}


def test_a_checkpoint_holds_the_biases_alone(tmp_path: Path) -> None:
    model, bank = adapted(method="shared")
    save_adapter(model, tmp_path, base="tiny")
    again = tiny_model("bert-encoder").double()
    other = load_adapter(tmp_path, again)
    stored = {name: t for name, t in other.tensors().items() if not name.startswith("routers.")}
    assert stored.keys() == {f"layers.{layer}.bank_shift" for layer in bank.layers}
    batch = random_batch(again)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch)[0], model(**batch)[0], rtol=0, atol=0)


def test_bert_base_trains_as_many_parameters_as_its_paper_says() -> None:
    """0.09% of BERT-base, 0.08% of BERT-large."""
    for size, layers, expected in ((768, 12, "0.09%"), (1024, 24, "0.08%")):
        config = BertConfig(
            hidden_size=size, num_hidden_layers=layers, num_attention_heads=size // 64, intermediate_size=4 * size
        )
        with torch.device("meta"):
            model = BertModel(config)
            whole = sum(p.numel() for p in model.parameters())
            bank = mhr.attach(model, AdapterConfig(**BITFIT.fixed, modules_to_save=[]), ["boolq"])
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # q, k, v, o, two of the feed-forward part, two norms a block; the norm of the embeddings, the pooler
        assert trained == sum(p.numel() for p in bank.adapter_parameters()) == layers * 11 * size + 2 * size
        assert f"{trained / whole:.2%}" == expected


def test_which_biases_are_trained() -> None:
    model = tiny_model("bert-masked")
    found = find_biases(model)
    biases = {name.rpartition(".")[0] for name, p in model.named_parameters() if name.endswith(".bias")}
    head = {name.rpartition(".")[0] for name in found.left_out}
    assert head == {"cls.predictions"}
    assert set(found.left_out.values()) <= {"is of the output layer", "is no bias of a Linear layer or layer norm"}
    assert set(found.layers) == biases - head
    assert find_targets(model, None, adapter="bias") == found.layers
    assert find_targets(model, ["LayerNorm", "query"], adapter="bias") == [
        layer for layer in found.layers if layer.endswith(("LayerNorm", "query"))
    ]
    bank = mhr.attach(model, AdapterConfig(**BITFIT.fixed), ["boolq"])
    assert any(note.startswith("not adapted: cls.predictions") for note in bank.notes)


@pytest.mark.parametrize(
    ("name", "targets", "said"),
    [
        ("t5", None, r"^'t5' has no biases that could be trained; choose another kind of adapter$"),
        ("llama", None, r"^'llama' has no biases"),
        (
            "t5",
            "attention",
            r"^targets 'attention' match no layer that has a bias: leave targets out, for all that have one$",
        ),
        ("t5", ["wo"], r"^target 'wo' matches 'encoder.block.0.layer.1.DenseReluDense.wo', which has no bias: "),
        ("gpt2", ["transformer.wte"], r"which has no bias: "),
    ],
)
def test_a_model_without_biases_is_refused(name: str, targets: Any, said: str) -> None:
    model = tiny_model(name)
    before = list(model.state_dict())
    with pytest.raises(TargetError, match=said) as caught:
        adapted(model, targets=targets)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == before


def test_a_skill_is_filled_with_one_that_was_trained() -> None:
    model, bank = adapted()
    name, layer = next(iter(bank.layers.items()))
    given = collapse_task(checkpoint_of(model, "tiny"), "copa").layers[name]
    with torch.no_grad():
        _put(layer, 0, given)
    shift = layer.bank()["bank_shift"]
    assert torch.equal(shift[0, 0], shift[0, 2])


def test_what_has_no_place_for_it_says_so(tmp_path: Path) -> None:
    model, _ = adapted()
    plain = collapse_task(checkpoint_of(model, "tiny"), "copa")
    with pytest.raises(
        CheckpointError, match=r"PEFT has no bias adapters: write it .* \(--to mhr\), or into the model"
    ):
        save_peft(plain, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
    with pytest.raises(
        MergeError, match="mera aligns hidden units of LoRAs and bottlenecks, of which a shift of biases is none"
    ):
        combine_mera([plain, plain], [0.5, 0.5])
    with pytest.raises(ConfigError, match="dropout is 0.5, which is for lora"):
        AdapterConfig(adapter="bias", dropout=0.5)
    assert method_of(BITFIT.routing or "", "bias") == "bitfit"
