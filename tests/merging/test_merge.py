"""The merge command, from a run on disk to a folder that stands on its own."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from mhr import AdapterConfig, attach
from mhr.adapters import load_checkpoint, read_adapter, save_adapter
from mhr.adapters.checkpoint import TENSORS_FILE
from mhr.backbones import load_backbone
from mhr.errors import CheckpointError, ConfigError, MergeError, MhrError
from mhr.loading import Loading
from mhr.merging import merge

BASE = "builtin:t5-tiny"
TASKS = ["boolq", "rte", "wic"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trained adapter on the built-in model."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model, _ = load_backbone(BASE)
    attach(model, AdapterConfig(n_heads=4, n_skills=3, rank=2), TASKS)
    generator = torch.Generator().manual_seed(7)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.2 * torch.randn(p.shape, generator=generator))
    save_adapter(model, folder / "adapter", base=BASE)
    (folder / "run.json").write_text("{}")
    return folder


def output(model: PreTrainedModel, **routing: list[str]) -> torch.Tensor:
    ids = torch.arange(10, 30).reshape(2, 10)
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=ids[:, :4], **routing).logits


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (one - other).norm() <= tolerance * other.norm()


def routed(run: Path, task: str) -> torch.Tensor:
    model, _ = load_checkpoint(run / "adapter")
    return output(model, task_ids=[task] * 2)


def test_to_an_adapter_of_ours(run, tmp_path):
    folder = merge(run, method="task", task="rte", output=tmp_path / "out")
    model, _ = load_checkpoint(folder)
    assert model.mhr.tasks == ["rte"]
    assert (model.mhr.config.method, model.mhr.config.rank, model.mhr.config.alpha) == ("shared", 2, 1.0)
    close(output(model), routed(run, "rte"))


def test_one_task_that_is_named_is_what_is_merged(run, tmp_path):
    named = merge(run, task="rte", output=tmp_path / "named")
    asked = merge(run, method="task", task="rte", output=tmp_path / "asked")
    assert (named / TENSORS_FILE).read_bytes() == (asked / TENSORS_FILE).read_bytes()
    both = merge(run, task=["rte", "wic"], output=tmp_path / "both")
    assert read_adapter(both).tasks == ["merged"]


def test_what_is_advised_in_place_of_what_does_not_go_is_taken(run, tmp_path):
    to = {"output": tmp_path / "out", "overwrite": True}
    with pytest.raises(MergeError, match="'uniform' takes no rank: leave it out, or add --space delta$"):
        merge(run, rank=1, **to)
    merge(run, rank=1, space="delta", **to)
    with pytest.raises(MergeError, match="'task' takes no rank: leave it out, or add --method uniform --space delta$"):
        merge(run, task="rte", rank=1, **to)
    merge(run, task="rte", rank=1, method="uniform", space="delta", **to)
    with pytest.raises(MergeError, match="'task' takes a task's factors as they are, .* leave --space out"):
        merge(run, task="rte", method="task", space="delta", **to)
    with pytest.raises(MergeError, match="'task' takes one task, and 2 are named: name one, or choose a method"):
        merge(run, task=["rte", "wic"], method="task", **to)


@pytest.mark.parametrize("adapter", ["prompt", "prefix", "bottleneck", "gated", "ia3", "film"])
def test_what_is_no_update_is_not_summed(adapter, tmp_path):
    """The sum of two prompts would be no prompt of either task, as their embeddings begin at words and not at 0."""
    model, _ = load_backbone(BASE)
    tokens = {} if adapter in ("bottleneck", "ia3", "film") else {"virtual_tokens": 3}
    attach(model, AdapterConfig(method="private", adapter=adapter, rank=2, **tokens), TASKS[:2])
    save_adapter(model, tmp_path / "bank", base=BASE)
    for method in ("task_arithmetic", "model_stock", "slerp"):
        given = {"method": method, "task": TASKS[:2], "output": tmp_path / method}
        if adapter in ("ia3", "film"):
            merge(tmp_path / "bank", **given)
        else:
            with pytest.raises(MergeError, match="merges weight updates, and .* which is none: choose uniform"):
                merge(tmp_path / "bank", **given)
    merge(tmp_path / "bank", method="uniform", task=TASKS[:2], output=tmp_path / "uniform")


def test_to_peft(run, tmp_path):
    folder = merge(run / "adapter", method="task", task="wic", to="peft-lora", output=tmp_path / "out")
    base, _ = load_backbone(BASE)
    close(output(peft.PeftModel.from_pretrained(base, folder)), routed(run, "wic"))


def test_to_a_plain_model(run, tmp_path):
    folder = merge(run, method="task", task="wic", to="model", dtype="float32", output=tmp_path / "out")
    assert "mhr_config.json" not in {path.name for path in folder.iterdir()}
    close(output(AutoModelForSeq2SeqLM.from_pretrained(folder)), routed(run, "wic"))
    text = "a question?"
    _, tokenizer = load_backbone(BASE)
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tokenizer(text).input_ids
    again, _ = load_backbone(folder)
    close(output(again), routed(run, "wic"))


@pytest.mark.parametrize("to", ["mhr", "peft-lora", "model"])
def test_a_dtype_for_what_is_written(run, tmp_path, to):
    folder = merge(run, to=to, output=tmp_path / "out", dtype="bfloat16")
    (file,) = folder.glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_plain_model_keeps_the_dtype_of_its_base(run, tmp_path, stored):
    """Each layer is rounded once, from the sum in float32."""
    for part in load_backbone(BASE, loading=Loading(dtype=str(stored).removeprefix("torch."))):
        part.save_pretrained(tmp_path / "base")
    folder = merge(run, to="model", base=str(tmp_path / "base"), output=tmp_path / "out")
    wide = merge(run, to="model", base=str(tmp_path / "base"), dtype="float32", output=tmp_path / "wide")
    found, exact = (load_file(path / "model.safetensors") for path in (folder, wide))
    assert {tensor.dtype for tensor in found.values()} == {stored}
    assert all(torch.equal(found[name], exact[name].to(stored)) for name in found)


def test_weights_and_the_forms_agree(run, tmp_path):
    weights = {"boolq": 1.0, "wic": 3.0}
    ours = merge(run, method="weighted", weights=weights, output=tmp_path / "ours")
    theirs = merge(run, method="weighted", weights=weights, to="peft-lora", output=tmp_path / "theirs")
    model = merge(theirs, to="model", dtype="float32", output=tmp_path / "model")
    close(output(load_checkpoint(ours)[0]), output(AutoModelForSeq2SeqLM.from_pretrained(model)))
    back = merge(theirs, to="mhr", output=tmp_path / "back")
    assert read_adapter(back).base.name_or_path == BASE
    close(output(load_checkpoint(back)[0]), output(load_checkpoint(ours)[0]))


def test_a_base_model_that_moved(run, tmp_path):
    moved = tmp_path / "base"
    for part in load_backbone(BASE):
        part.save_pretrained(moved)
    folder = merge(run, output=tmp_path / "model", to="model", base=str(moved))
    close(
        output(AutoModelForSeq2SeqLM.from_pretrained(folder)),
        output(load_checkpoint(merge(run, output=tmp_path / "a"))[0]),
    )


def test_an_output_that_is_there(run, tmp_path):
    folder = merge(run, output=tmp_path / "out")
    (folder / "more").write_text("")
    with pytest.raises(MhrError, match="is not empty: choose another, or pass --overwrite"):
        merge(run, output=folder)
    merge(run, output=folder, to="peft-lora", overwrite=True)
    written = ["README.md", "adapter_config.json", "adapter_model.safetensors", "merge_report.json"]
    assert sorted(p.name for p in folder.iterdir()) == written


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"method": "task"}, MergeError, "'task' needs task: give it with --task"),
        ({"method": "weighted", "task": "rte"}, MergeError, "'weighted' takes no task"),
        ({"weights": [1, 2, 3]}, MergeError, "'uniform' takes no weights"),
        ({"seed": 0}, MergeError, "'uniform' takes no seed"),
        ({"drop": 0.0}, MergeError, "'uniform' takes no drop"),
        ({"method": "mu"}, ConfigError, "unknown merge method 'mu'"),
        ({"to": "lora"}, ConfigError, "to is 'lora', expected one of mhr, peft-lora, peft-poly, model"),
        ({"dtype": "int8"}, ConfigError, "dtype is 'int8', expected one of float32"),
        ({"to": "model", "base": "builtin:t5-tny"}, ConfigError, "did you mean 'builtin:t5-tiny'"),
    ],
)
def test_settings_that_do_not_go_together(run, tmp_path, settings, error, match):
    with pytest.raises(error, match=match):
        merge(run, output=tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_be_merged(run, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        merge(tmp_path / "nowhere", output=tmp_path / "out")
    with pytest.raises(CheckpointError, match="expected a run folder, an adapter checkpoint or a PEFT folder"):
        merge(tmp_path, output=tmp_path / "out")
    with pytest.raises(MhrError, match="holds the input"):
        merge(run / "adapter", output=run, overwrite=True)
    peft_folder = merge(run, to="peft-lora", output=tmp_path / "peft")
    with pytest.raises(MergeError, match="is a PEFT adapter, which has no tasks to merge: leave out task"):
        merge(peft_folder, method="task", task="rte", output=tmp_path / "out")


def test_a_folder_of_runs_stands_for_all_of_them(run, tmp_path):
    """`mhr adapt` writes OUTPUT/TASK/SEED."""
    seeds = [tmp_path / "adapted" / "rte" / seed for seed in ("13", "42")]
    for folder, task in zip(seeds, ("rte", "wic"), strict=True):
        merge(run, method="task", task=task, output=folder / "adapter")
        (folder / "run.json").write_text("{}")
    by_name = merge(seeds, output=tmp_path / "by name")
    for number, path in enumerate((tmp_path / "adapted", tmp_path / "adapted" / "rte")):
        found = merge(path, output=tmp_path / f"by folder {number}")
        assert (found / TENSORS_FILE).read_bytes() == (by_name / TENSORS_FILE).read_bytes()
    (seeds[1] / "adapter").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="no adapter at .*rte/42"):
        merge(tmp_path / "adapted", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_adapter_writes_nothing(run, tmp_path):
    broken = merge(run, output=tmp_path / "broken")
    data = (broken / TENSORS_FILE).read_bytes()
    (broken / TENSORS_FILE).write_bytes(data[:-8])
    with pytest.raises(CheckpointError, match="is truncated"):
        merge(broken, to="model", output=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]
    described = json.loads((broken / "mhr_config.json").read_text())
    assert described["tensors"]["size"] == len(data)


def test_a_disk_that_fills_up_while_a_model_is_saved(run, tmp_path, monkeypatch):
    def fill(self: PreTrainedModel, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fill)
    with pytest.raises(MhrError, match="cannot write .*out: .*No space left on device"):
        merge(run, to="model", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
