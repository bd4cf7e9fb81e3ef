"""PEFT Poly folders: made by PEFT and read as banks, and banks written as such folders and read by PEFT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

import mhr
from mhr import AdapterConfig
from mhr.adapters import load_checkpoint, open_plain, read_adapter, save_adapter, save_poly
from mhr.adapters.importing import import_run
from mhr.errors import CheckpointError, MergeError
from mhr.evaluation.loading import load_model
from mhr.loading import Loading
from mhr.merging import merge
from mhr.task_heads import TaskHead, TaskHeads
from tests.adapters.importing.conftest import said, shaken
from tests.models import random_batch, randomise, tiny_model

TARGETS = {"t5": ["q", "v", "wo"], "llama": ["q_proj", "v_proj"]}
IDS = [2, 0, 2, 1]
NAMES = ["task-2", "task-0", "task-2", "task-1"]
WIDE = Loading(dtype="float64")


def poly(
    name: str, base: str, folder: Path, heads: int = 4, dtype: torch.dtype = torch.float64, **settings
) -> PreTrainedModel:
    """A model with PEFT's Poly and random weights, which is saved in `folder` as well."""
    config = peft.PolyConfig(
        r=2, n_tasks=3, n_skills=5, n_splits=heads, target_modules=TARGETS[name],
        task_type={"t5": "SEQ_2_SEQ_LM", "llama": "CAUSAL_LM"}[name], **settings,
    )  # fmt: skip
    model = tiny_model(name).to(dtype)
    model.name_or_path = base
    theirs = shaken(peft.get_peft_model(model, config).to(dtype))
    theirs.save_pretrained(folder)
    return theirs


def logits(model: torch.nn.Module, batch: dict, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch, task_ids=ids).logits


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("name", TARGETS)
def test_an_imported_folder_computes_what_peft_does(name, heads, bases, tmp_path):
    theirs = poly(name, bases[name], tmp_path / "poly", heads)
    run = import_run(tmp_path / "poly", output=tmp_path / "run", loading=WIDE)
    model, _ = load_checkpoint(run.adapter, loading=WIDE)
    batch = random_batch(theirs.get_base_model())
    expected = logits(theirs, batch, torch.tensor(IDS))
    torch.testing.assert_close(logits(model, batch, NAMES), expected, rtol=1e-12, atol=1e-12)
    assert expected.std() > 0.1
    config = model.mhr.config
    assert (config.n_heads, config.n_skills, config.rank, config.noise, config.alpha) == (
        heads,
        5,
        2,
        "per_example",
        1.0,
    )
    assert run.info["imported"]["format"] == "peft-poly"
    assert run.config().adapter.n_heads == heads
    assert run.status == "done"
    assert any("not known" in note for note in run.info["notes"])


def test_a_folder_in_float32_and_its_generated_tokens(bases, tmp_path):
    theirs = poly("t5", bases["t5"], tmp_path / "poly", dtype=torch.float32)
    run = import_run(tmp_path / "poly", output=tmp_path / "run")
    model, _ = load_checkpoint(run.adapter)
    batch = random_batch(model)
    torch.testing.assert_close(
        logits(model, batch, NAMES), logits(theirs, batch, torch.tensor(IDS)), rtol=1e-4, atol=2e-5
    )
    del batch["labels"]
    expected = theirs.generate(**batch, task_ids=torch.tensor(IDS), max_new_tokens=6)
    assert torch.equal(model.generate(**batch, task_ids=NAMES, max_new_tokens=6), expected)


def test_modules_that_peft_stores_whole_come_along(bases, tmp_path):
    theirs = poly("llama", bases["llama"], tmp_path / "poly", modules_to_save=["norm"])
    run = import_run(tmp_path / "poly", output=tmp_path / "run", loading=WIDE)
    assert "model.norm" in read_adapter(run.adapter).modules
    model, _ = load_checkpoint(run.adapter, loading=WIDE)
    batch = random_batch(model)
    torch.testing.assert_close(
        logits(model, batch, NAMES), logits(theirs, batch, torch.tensor(IDS)), rtol=1e-12, atol=1e-12
    )


def test_a_folder_is_opened_as_it_is(bases, tmp_path):
    """By evaluation, inspection and merging, without an import."""
    theirs = poly("llama", bases["llama"], tmp_path / "poly", dtype=torch.float32)
    model = load_model(tmp_path / "poly").model
    batch = random_batch(model)
    expected = logits(theirs, batch, torch.tensor(IDS))
    torch.testing.assert_close(logits(model, batch, NAMES), expected, rtol=1e-4, atol=2e-5)
    merge(tmp_path / "poly", task="task-1", method="task", output=tmp_path / "lora", to="peft-lora")
    merged = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits[3], expected[3], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("granularity", ["fine", "block", "coarse"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_bank_goes_to_peft_and_back(name, granularity, bases, tmp_path):
    model = tiny_model(name).double()
    config = AdapterConfig(n_heads=4, n_skills=3, rank=2, alpha=4.0, targets=TARGETS[name], granularity=granularity)
    randomise(mhr.attach(model, config, ["a", "b", "c"]))
    save_adapter(model, tmp_path / "ours", base=bases[name])
    merge(tmp_path / "ours", to="peft-poly", output=tmp_path / "poly")
    batch = random_batch(model)
    expected = logits(model, batch, ["c", "a", "c", "b"])
    theirs = peft.PeftModel.from_pretrained(tiny_model(name).double(), tmp_path / "poly").double().eval()
    torch.testing.assert_close(logits(theirs, batch, torch.tensor(IDS)), expected, rtol=1e-12, atol=1e-12)
    run = import_run(tmp_path / "poly", output=tmp_path / "run", loading=WIDE)
    again, _ = load_checkpoint(run.adapter, loading=WIDE)
    torch.testing.assert_close(logits(again, batch, NAMES), expected, rtol=1e-12, atol=1e-12)


def test_what_poly_cannot_hold_is_refused_by_name(bases, tmp_path):
    cases = {
        "method 'shared'": AdapterConfig(method="shared", targets=["q"]),
        "adapter 'ia3'": AdapterConfig(method="poly", adapter="ia3", targets=["q"]),
        "straight_through": AdapterConfig(straight_through=True, targets=["q"]),
    }
    for expected, config in cases.items():
        model = tiny_model("t5")
        mhr.attach(model, config, ["a", "b"])
        save_adapter(model, tmp_path / "bank", base=bases["t5"])
        with pytest.raises(CheckpointError, match=expected):
            merge(tmp_path / "bank", to="peft-poly", output=tmp_path / "poly")
        with pytest.raises(CheckpointError, match=expected):
            save_poly(read_adapter(tmp_path / "bank"), tmp_path / "poly")
    model = tiny_model("gpt2")
    mhr.attach(model, AdapterConfig(n_heads=4), ["a", "b"])
    save_adapter(model, tmp_path / "conv", base="gpt2")
    with pytest.raises(CheckpointError, match=r"adapts Conv1D layers \(gpt2\), which PEFT's Poly does not take"):
        merge(tmp_path / "conv", to="peft-poly", output=tmp_path / "poly")
    model = tiny_model("t5")
    mhr.attach(model, AdapterConfig(n_heads=4, targets=["q"]), ["a", "b"])
    save_adapter(model, tmp_path / "bank", base=bases["t5"])
    heads = TaskHeads((TaskHead("classify", ("yes", "no")),), {"a": 0, "b": 0}, "classifier")
    with pytest.raises(CheckpointError, match="has heads of its tasks"):
        save_poly(replace(read_adapter(tmp_path / "bank"), heads=heads), tmp_path / "poly")
    for settings in ({"task": "a"}, {"method": "task", "task": "a"}, {"method": "uniform"}):
        with pytest.raises(MergeError, match="peft-poly writes a bank"):
            merge(tmp_path / "bank", to="peft-poly", output=tmp_path / "poly", **settings)
    merge(tmp_path / "bank", to="peft-lora", output=tmp_path / "lora")
    with pytest.raises(MergeError, match="lora is one plain adapter"):
        merge(tmp_path / "lora", to="peft-poly", output=tmp_path / "poly")
    assert not (tmp_path / "poly").exists()


def test_banks_of_one_layout_are_averaged_into_a_folder(bases, tmp_path):
    for seed in (0, 1):
        model = tiny_model("t5")
        randomise(mhr.attach(model, AdapterConfig(n_heads=4, rank=2, targets=["q"]), ["a", "b"]), seed)
        save_adapter(model, tmp_path / str(seed), base=bases["t5"])
    merge([tmp_path / "0", tmp_path / "1"], method="soup-uniform", to="peft-poly", output=tmp_path / "poly")
    merge([tmp_path / "0", tmp_path / "1"], method="soup-uniform", output=tmp_path / "ours")
    theirs = safetensors.torch.load_file(tmp_path / "poly" / "adapter_model.safetensors")
    ours = read_adapter(tmp_path / "ours").tensors
    layers = [key for key in ours if key.endswith("bank_a")]
    assert layers
    for key in layers:
        name = key.removeprefix("layers.").removesuffix("bank_a")
        assert torch.equal(theirs[f"base_model.model.{name}poly_lora_A"], ours[key])


CHANGES = {
    "n_splits to 0": ({"n_splits": 0}, "n_splits to 0: expected an integer"),
    "n_tasks to 7": ({"n_tasks": 7}, r"module_logits of layer .* has shape \(3, 20\), but .* n_tasks 7"),
    "n_skills to 6": ({"n_skills": 6}, "poly_lora_A of layer .* n_skills 6"),
    "poly_type": ({"poly_type": "other"}, "poly_type to 'other'"),
    "a new setting": ({"new_setting": True}, "sets new_setting, which no bank can hold"),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_folder_that_does_not_add_up(change, expected, bases, tmp_path):
    poly("llama", bases["llama"], tmp_path / "poly")
    path = tmp_path / "poly" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for use in (open_plain, lambda folder: import_run(folder, output=tmp_path / "run")):
        with pytest.raises(CheckpointError, match=expected):
            use(tmp_path / "poly")
    assert said(tmp_path) == ["poly"]


def test_heads_that_do_not_divide(bases, tmp_path):
    """PEFT makes such a folder, whose model then fails when it is called."""
    poly("llama", bases["llama"], tmp_path / "poly", heads=3)
    with pytest.raises(
        CheckpointError, match=r"3 heads \(n_splits\), which do not divide the 32 input features of layer"
    ):
        import_run(tmp_path / "poly", output=tmp_path / "run")
    assert said(tmp_path) == ["poly"]


def test_a_truncated_folder_a_pickled_one_and_one_without_tensors(bases, tmp_path):
    poly("llama", bases["llama"], tmp_path / "poly")
    tensors = tmp_path / "poly" / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        import_run(tmp_path / "poly", output=tmp_path / "run")
    tensors.rename(tmp_path / "poly" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        import_run(tmp_path / "poly", output=tmp_path / "run")
    (tmp_path / "poly" / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="the adapter is incomplete"):
        import_run(tmp_path / "poly", output=tmp_path / "run")
    assert said(tmp_path) == ["poly"]


def test_a_tensor_too_many(bases, tmp_path):
    poly("llama", bases["llama"], tmp_path / "poly")
    path = tmp_path / "poly" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"base_model.model.model.layers.0.q.lora_A": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"q\.lora_A', which is no part of a Poly adapter"):
        import_run(tmp_path / "poly", output=tmp_path / "run")


def test_another_base_model(bases, tmp_path):
    poly("llama", bases["llama"], tmp_path / "poly")
    with pytest.raises(CheckpointError, match=r"does not have as a Linear \(4 of its 4 layers are missing\).*--model"):
        import_run(tmp_path / "poly", base=bases["t5"], kind="seq2seq", output=tmp_path / "run")
    assert said(tmp_path) == ["poly"]
