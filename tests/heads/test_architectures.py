"""Heads on every architecture that transformers has a sequence-classification class of, and from end to end on the usual ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, ByT5Tokenizer

from mhr.adapters import read_adapter
from mhr.backbones import heads_of, load_backbone, set_heads
from mhr.backbones.outputs import output_layer, wearing_heads
from mhr.evaluation import score
from mhr.few_shot import adapt
from mhr.merging import merge
from mhr.runs import RunConfig
from mhr.task_heads import TaskHead, join_heads
from mhr.training import pretrain
from tests.architectures import architectures, build, inputs_for

HEADS = join_heads({"two": TaskHead("classify", ("no", "yes")), "number": TaskHead("regress")})
CLASSIFIERS = [name for kind, name in architectures() if kind == "classifier"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_output_layer_makes_the_logits(name: str) -> None:
    model = build("classifier", name)
    inputs = inputs_for("classifier", 2, 8)
    torch.manual_seed(0)
    heads = set_heads(model, HEADS)
    assert heads is not None
    layer = model.get_submodule(heads.layer)
    with torch.no_grad():
        assert model(**inputs).logits.shape == (2, 3)
        layer.weight[2] = 0
        if layer.bias is not None:
            layer.bias[2] = 0.5
        assert model(**inputs).logits[:, 2].tolist() == [0.5 if layer.bias is not None else 0.0] * 2
    assert heads_of(model) == heads
    assert output_layer(model) == heads.layer


def test_a_model_is_as_it_was_where_heads_are_refused() -> None:
    model = build("classifier", "roberta")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heads = dataclasses.replace(HEADS, layer="classifier.out_proj")
    with pytest.raises(ValueError, match="refused"), wearing_heads(model, heads, ["classifier"]):
        raise ValueError("refused")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (model.config.num_labels, model.num_labels, heads_of(model)) == (1, 1, None)


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("roberta", ["classifier"]),
        ("deberta-v2", ["classifier", "pooler.dense"]),
        ("distilbert", ["classifier", "pre_classifier"]),
        ("llama", ["score"]),
        ("gpt2", ["score"]),
    ],
)
def test_from_end_to_end(name: str, saved: list[str], recipe_for: Callable[..., RunConfig], tmp_path: Path) -> None:
    flags = {"llama": {"head": "classify"}, "gpt2": {"kind": "encoder"}}.get(name, {})
    run = pretrain(recipe_for(name, **flags), str(tmp_path / "run"), progress=False)
    assert run.info["model_kind"] == "encoder"
    assert read_adapter(run.adapter).modules == saved
    said = score(run.path, part="training", progress=False).predictions
    if "head" not in flags:
        (one,) = adapt(str(run.path), mode="mhr", output=str(tmp_path / "adapted"), progress=False)
        assert score(one.path, progress=False).predictions[0].how == "regression"
    whole = merge(run.path, method="task", task="three", to="model", output=tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(whole).eval()
    assert list(model.config.id2label.values()) == ["a", "b", "c"]
    tokenizer = ByT5Tokenizer()
    with torch.no_grad():
        for p in [p for p in said if p.task == "three"][:3]:
            logits = model(**tokenizer(p.input, return_tensors="pt")).logits[0]
            torch.testing.assert_close(logits, torch.tensor(p.scores), rtol=1e-3, atol=1e-4)
    assert json.loads((run.path / "run.json").read_text())["head"]["heads"][0]["labels"] == ["no", "yes"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decoder_classifies_its_last_token_whichever_side_is_padded(
    name: str, recipe_for: Callable[..., RunConfig]
) -> None:
    config = recipe_for(name)
    model, tokenizer = load_backbone(config.model, None, None, "classify")
    assert type(model).__name__.endswith("ForSequenceClassification")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    set_heads(model, HEADS)
    row = [40, 50, 60]
    found = []
    for ids, mask in (
        (row, [1, 1, 1]),
        ([*row, 0, 0], [1, 1, 1, 0, 0]),
        ([0, 0, *row], [0, 0, 1, 1, 1]),
    ):
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([mask])}
        if name == "gpt2":  # its positions count from the left
            inputs["position_ids"] = inputs["attention_mask"].cumsum(1).sub(1).clamp(min=0)
        with torch.no_grad():
            found.append(model(**inputs).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-6)
