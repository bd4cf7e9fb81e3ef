"""Adapter checkpoints: what is saved comes back, and what is damaged, foreign or of another base model is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch

from mhr import AdapterConfig, attach, detach
from mhr.adapters import (
    checkpoint_of,
    fingerprint,
    load_adapter,
    load_checkpoint,
    read_adapter,
    routing_weights,
    same_base,
    save_adapter,
)
from mhr.adapters.checkpoint import CONFIG_FILE, TENSORS_FILE, attach_checkpoint
from mhr.backbones import load_backbone
from mhr.errors import CheckpointError, ConfigError, MhrError
from tests.layers.test_foreign import quantise
from tests.models import MODELS, random_batch, tiny_model
from tests.tokenizers import make_word_tokenizer

TASKS = ["boolq", "rte", "wic"]
BATCH_TASKS = ["boolq", "rte", "rte", "wic"]


def shake(model: torch.nn.Module) -> None:
    """Give every trained parameter values of its own, so that nothing agrees by chance."""
    generator = torch.Generator().manual_seed(7)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.3 * torch.randn(p.shape, generator=generator))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model("t5")
    attach(model, AdapterConfig(n_heads=4, n_skills=3), TASKS)
    shake(model)
    return save_adapter(model, tmp_path / "adapter", base="tiny", info={"steps": 3})


def edit(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "mhr", "n_heads": 4, "n_skills": 3},
        {"method": "poly", "adapter": "ia3", "granularity": "coarse"},
        {"method": "private"},
        {"method": "random"},
        {"method": "hash"},
        {"method": "shared"},
        {"method": "adamix", "adapter": "bottleneck", "share": "down"},
    ],
    ids=lambda s: s["method"],
)
def test_what_is_saved_comes_back(name, settings, tmp_path):
    model = tiny_model(name)
    batch = random_batch(model)
    bank = attach(model, AdapterConfig(**settings), TASKS)
    shake(model)
    expected = model(**batch, task_ids=BATCH_TASKS)[0]
    folder = save_adapter(model, tmp_path / "adapter", base="tiny", info={"steps": 3})

    other = tiny_model(name)
    loaded = load_adapter(folder, other)
    assert loaded.tasks == TASKS
    assert loaded.tensors().keys() == bank.tensors().keys()
    for key, tensor in bank.tensors().items():
        assert torch.equal(tensor, loaded.tensors()[key]), key
    assert torch.equal(expected, other(**batch, task_ids=BATCH_TASKS)[0])
    assert read_adapter(folder).info == {"steps": 3}


@pytest.mark.parametrize("method", ["mhr", "private", "random", "hash", "uniform", "shared", "adamix"])
@pytest.mark.parametrize("granularity", ["fine", "block", "coder", "coarse"])
def test_routing_is_read_without_a_model(method, granularity):
    model = tiny_model("t5").double()
    bank = attach(model, AdapterConfig(method=method, granularity=granularity), TASKS)
    shake(model)
    before = torch.random.get_rng_state()
    weights = routing_weights(checkpoint_of(model, "tiny"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights.keys() == bank.weights().keys()
    for group, expected in bank.weights().items():
        torch.testing.assert_close(weights[group].to(expected.dtype), expected, rtol=0, atol=0)


def test_one_adapter_a_task_is_stored_without_a_table_and_read_with_one():
    """Earlier releases stored the weights, T^2 of them, which say nothing that the tasks' order does not."""
    model = tiny_model("t5")
    bank = attach(model, AdapterConfig(method="private"), TASKS)
    shake(model)
    checkpoint = checkpoint_of(model, "tiny")
    assert not any(name.startswith("routers.") for name in checkpoint.tensors)
    eye = torch.eye(len(TASKS))[:, None]
    assert all(torch.equal(table, eye) for table in bank.weights().values())
    tables = {f"routers.{group}.weights": eye.clone() for group in bank.groups}
    older = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **tables})
    other = tiny_model("t5")
    loaded = attach_checkpoint(older, other)
    batch = random_batch(model)
    assert torch.equal(model(**batch, task_ids=BATCH_TASKS)[0], other(**batch, task_ids=BATCH_TASKS)[0])
    assert loaded.tensors().keys() == checkpoint.tensors.keys()
    assert routing_weights(older).keys() == bank.weights().keys()


@pytest.mark.parametrize("share", [None, "none", "up"])
def test_an_adapter_shares_what_it_was_stored_with(share: str | None, tmp_path: Path) -> None:
    """One without the setting shares nothing, though a new bank does."""
    model = tiny_model("t5")
    attach(model, AdapterConfig(method="adamix", n_skills=3, share=share or "none"), TASKS)
    folder = save_adapter(model, tmp_path / "adapter", base="tiny")
    if share is None:
        config = json.loads((folder / CONFIG_FILE).read_text())["config"]
        del config["share"]
        edit(folder, config=config)
    read = read_adapter(folder)
    assert read.config.share == (share or "none")
    layer = next(iter(load_adapter(folder, tiny_model("t5")).layers.values()))
    assert (layer.bank_a.shape[1], layer.bank_b.shape[1]) == (3, 1 if share == "up" else 3)


def test_a_folder_keeps_its_other_files_and_takes_a_new_checkpoint(saved):
    (saved / "trainer_state.json").write_text("{}")
    model = tiny_model("t5")
    load_adapter(saved, model)
    shake(model)
    save_adapter(model, saved, base="tiny")
    assert sorted(p.name for p in saved.iterdir()) == [TENSORS_FILE, CONFIG_FILE, "trainer_state.json"]
    key, tensor = next(iter(model.mhr.tensors().items()))
    assert torch.equal(read_adapter(saved).tensors[key], tensor)


def test_the_base_is_found_by_its_name(tmp_path):
    from mhr.backbones import load_backbone

    model, _ = load_backbone("builtin:t5-tiny")
    attach(model, AdapterConfig(method="poly", n_skills=2), TASKS)
    shake(model)
    folder = save_adapter(model, tmp_path / "adapter", base="builtin:t5-tiny")
    again, tokenizer = load_checkpoint(folder)
    ids = tokenizer(["a question"], return_tensors="pt")
    with torch.no_grad():
        outputs = [m(**ids, decoder_input_ids=ids["input_ids"], task_ids=["rte"]).logits for m in (model, again)]
    assert torch.equal(*outputs)


def test_a_model_without_a_bank_cannot_be_saved(tmp_path):
    with pytest.raises(ConfigError, match="no bank"):
        save_adapter(tiny_model("t5"), tmp_path / "adapter", base="tiny")
    assert not (tmp_path / "adapter").exists()


# ---- fingerprints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_fingerprint_does_not_see_the_bank(name):
    model = tiny_model(name)
    bank = attach(model, AdapterConfig(), TASKS)
    with_bank = fingerprint(model)
    shake(model)
    assert fingerprint(model) == with_bank
    detach(model)
    assert fingerprint(model, list(bank.saved)) == with_bank


def test_a_fingerprint_sees_one_layer_and_knows_a_narrower_dtype():
    model = tiny_model("t5")
    plain = fingerprint(model)
    for dtype in (torch.bfloat16, torch.float16):
        assert same_base(plain, fingerprint(tiny_model("t5").to(dtype)))
    with torch.no_grad():
        model.get_submodule("decoder.block.1.layer.0.SelfAttention.v").weight.mul_(1.02)
    assert not same_base(plain, fingerprint(model))


def test_two_16_bit_dtypes_do_not_know_each_other_and_say_so(tmp_path):
    beside = tiny_model("t5").to(torch.bfloat16)
    attach(beside, AdapterConfig(n_skills=2, n_heads=2), ["a"])
    save_adapter(beside, tmp_path / "adapter", base="t5")
    for dtype in (torch.float32, torch.bfloat16):
        load_adapter(tmp_path / "adapter", tiny_model("t5").to(dtype))
    with pytest.raises(
        CheckpointError, match=r"weights are not; if it was trained beside the other 16-bit dtype, .*--dtype"
    ):
        load_adapter(tmp_path / "adapter", tiny_model("t5").to(torch.float16))


# ---- refusals ----------------------------------------------------------------------------------------------------------


def refused(folder: Path, match: str, error: type[MhrError] = CheckpointError) -> None:
    with pytest.raises(error, match=match) as caught:
        load_adapter(folder, tiny_model("t5"))
    assert "\n" not in str(caught.value)


def test_missing(tmp_path):
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "mhr_config.json is missing .the folder holds nothing")


def test_another_kind_of_folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "the folder holds adapter_config.json")


def test_truncated(saved):
    path = saved / TENSORS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    refused(saved, "is truncated")


def test_damaged(saved):
    path = saved / TENSORS_FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    refused(saved, "is damaged: its SHA-256")


def test_tensors_gone(saved):
    (saved / TENSORS_FILE).unlink()
    refused(saved, "cannot read .*mhr_adapter.safetensors: No such file")


def test_json_cut_in_the_middle(saved):
    path = saved / CONFIG_FILE
    path.write_text(path.read_text()[:200])
    refused(saved, r"mhr_config.json:\d+ is no valid JSON")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "other"}, "was not written by mhr"),
        ({"format_version": 2, "mhr_version": "9.9"}, "has format 2, written by mhr 9.9"),
        ({"config": {"n_head": 3}}, "unknown adapter setting 'n_head': did you mean 'n_heads'"),
        ({"layers": 3}, "does not describe an adapter"),
        ({"tasks": ["boolq", "rte"]}, r"tensor 'routers.* of .* has shape \(3, 4, 3\), expected \(2, 4, 3\)"),
    ],
)
def test_json_that_says_something_else(saved, changes, match):
    edit(saved, **changes)
    refused(saved, match)


def test_json_of_another_shape(saved):
    (saved / CONFIG_FILE).write_text("[1]")
    refused(saved, "holds a JSON list, expected an object")


def test_key_missing(saved):
    path = saved / CONFIG_FILE
    described = json.loads(path.read_text())
    del described["base"]
    path.write_text(json.dumps(described))
    refused(saved, "'base' is missing")


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("bart", {}, "its architecture is 't5', this model's is 'bart'"),
        (
            "t5",
            {"num_layers": 1},
            "adapts layer 'encoder.block.1.layer.0.SelfAttention.q', which this model does not have",
        ),
        ("t5", {"d_model": 16}, "has 32 -> 32 features, this model's 16 -> 32"),
        ("t5", {"seed": 1}, "the architecture is the same, but the weights are not"),
    ],
)
def test_another_base_model(saved, name, settings, match):
    model = tiny_model(name, **settings)
    with pytest.raises(CheckpointError, match=match):
        load_adapter(saved, model)
    assert not hasattr(model, "mhr")


def test_a_quantised_copy_takes_the_adapter_of_its_base_and_keeps_the_checks_of_its_layers(tmp_path):
    model, copy = tiny_model("llama"), tiny_model("llama")
    attach(model, AdapterConfig(n_heads=4, n_skills=3, targets=["q_proj", "v_proj"]), TASKS)
    shake(model)
    folder = save_adapter(model, tmp_path / "float", base="tiny")
    quantise(copy, plain=False)
    load_adapter(folder, copy)
    inputs = random_batch(model)
    expected, found = (m(**inputs, task_ids=BATCH_TASKS).logits for m in (model, copy))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    # What was trained on the quantised copy says nothing of the float weights, and fits them just so.
    load_adapter(save_adapter(copy, tmp_path / "int8", base="tiny"), tiny_model("llama"))
    other = tiny_model("llama", num_key_value_heads=4)
    quantise(other, plain=False)
    with pytest.raises(CheckpointError, match="v_proj' has 32 -> 16 features, this model's 32 -> 32"):
        load_adapter(folder, other)


@pytest.fixture
def without_pooler(tmp_path):
    """The folder of an encoder that was saved without its pooler."""
    model = tiny_model("bert-encoder")
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pooler.")}
    model.save_pretrained(tmp_path / "base", state_dict=state)
    make_word_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_modules_that_the_base_lacks_are_stored_with_the_adapter(without_pooler, tmp_path):
    model, _ = load_backbone(without_pooler)
    bank = attach(model, AdapterConfig(n_heads=4, n_skills=3), TASKS)
    assert list(bank.saved) == ["classifier", "bert.pooler.dense"]
    shake(model)
    again, _ = load_checkpoint(save_adapter(model, tmp_path / "adapter", base=without_pooler))
    inputs = random_batch(model)
    torch.testing.assert_close(again(**inputs, task_ids=BATCH_TASKS), model(**inputs, task_ids=BATCH_TASKS))


def test_modules_that_the_base_lacks_and_the_adapter_too_are_told(without_pooler, tmp_path):
    model, _ = load_backbone(without_pooler)
    attach(model, AdapterConfig(n_heads=4, modules_to_save=["classifier"]), TASKS)
    folder = save_adapter(model, tmp_path / "adapter", base=without_pooler)
    with pytest.raises(CheckpointError, match=r"does not hold 'bert.pooler.dense', drawn at random .* modules_to_save"):
        load_checkpoint(folder)


def test_tensors_that_do_not_fit_leave_the_model_alone(saved):
    checkpoint = read_adapter(saved)
    from mhr.adapters import attach_checkpoint

    key = next(iter(checkpoint.tensors))
    model = tiny_model("t5")
    names = [n for n, _ in model.named_modules()]
    tensor = checkpoint.tensors.pop(key)
    with pytest.raises(CheckpointError, match="lacks tensor"):
        attach_checkpoint(checkpoint, model)
    checkpoint.tensors |= {key: tensor, "layers.more.bank_a": tensor}
    with pytest.raises(CheckpointError, match="holds tensor 'layers.more.bank_a'"):
        attach_checkpoint(checkpoint, model)
    assert [n for n, _ in model.named_modules()] == names


# ---- writing -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    model = tiny_model("t5")
    attach(model, AdapterConfig(method="shared"), TASKS)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MhrError, match="cannot write .*: No space left on device; free some space"):
        save_adapter(model, tmp_path / "adapter", base="tiny")
    assert list((tmp_path / "adapter").iterdir()) == []


def test_a_failure_after_the_tensors_leaves_no_checkpoint(tmp_path, monkeypatch):
    model = tiny_model("t5")
    attach(model, AdapterConfig(method="shared"), TASKS)
    rename = os.replace

    def fail_at_json(source: Path, target: Path) -> None:
        if str(target).endswith(CONFIG_FILE):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_at_json)
    with pytest.raises(MhrError, match="Permission denied"):
        save_adapter(model, tmp_path / "adapter", base="tiny")
    refused(tmp_path / "adapter", "mhr_config.json is missing")
