"""Adapters whose base model is a revision on the hub: whatever reads one computes with that, not with the main branch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, ByT5Tokenizer

from mhr.adapters.importing import import_run
from mhr.adapters.open import open_plain, read_bank
from mhr.errors import MergeError
from mhr.evaluation import load_model
from mhr.experts import route_tokens
from mhr.loading import Loading
from mhr.merging import merge
from mhr.merging.judge import Judge
from tests.models import tiny_model

NAME = "owner/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the hub on this machine, with a model of which main and v2 hold other weights."""
    cached = tmp_path / "hub" / "models--owner--tiny"
    (cached / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("main", "v2")):
        commit = str(seed) * 40
        tiny_model("llama", seed=seed, vocab_size=384).save_pretrained(cached / "snapshots" / commit)
        ByT5Tokenizer().save_pretrained(cached / "snapshots" / commit)
        (cached / "refs" / revision).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def weight(revision: str) -> Tensor:
    model = tiny_model("llama", seed=("main", "v2").index(revision), vocab_size=384)
    return model.get_parameter("model.embed_tokens.weight").detach()


def lora(folder: Path, revision: str | None, seed: int = 0) -> Path:
    """A LoRA as PEFT writes it that was trained on a revision."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", revision=revision, init_lora_weights=False
    )
    peft.get_peft_model(tiny_model("llama", vocab_size=384), config).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": NAME}))
    return folder


def poly(folder: Path, revision: str | None) -> Path:
    torch.manual_seed(0)
    config = peft.PolyConfig(r=2, n_tasks=1, n_skills=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny_model("llama", vocab_size=384), config).save_pretrained(folder)
    path = folder / "adapter_config.json"
    said = {"base_model_name_or_path": NAME, "revision": revision}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return folder


def judged(folder: Path, tmp_path: Path, **given: Any) -> Tensor:
    judge = Judge(open_plain(folder, "task-0").base, "x", [], [], tasks="builtin:skills", names=["rev-first"], **given)
    with judge.wearing(read_bank(folder)) as loaded:
        return loaded.model.model.embed_tokens.weight.detach().clone()


def evaluated(folder: Path, tmp_path: Path, **given: Any) -> Tensor:
    return load_model(folder, **given).model.model.embed_tokens.weight


def as_ours(folder: Path, tmp_path: Path, **given: Any) -> Tensor:
    return load_model(merge(folder, task="task-0", output=tmp_path / "ours"), **given).model.model.embed_tokens.weight


def as_peft(folder: Path, tmp_path: Path, **given: Any) -> Tensor:
    again = merge(folder, task="task-0", to="peft-lora", output=tmp_path / "again", **given)
    revision = json.loads((again / "adapter_config.json").read_text())["revision"]
    return AutoModelForCausalLM.from_pretrained(NAME, revision=revision or "main").model.embed_tokens.weight


def folded(folder: Path, tmp_path: Path, **given: Any) -> Tensor:
    merge(folder, task="task-0", to="model", output=tmp_path / "whole", **given)
    return AutoModelForCausalLM.from_pretrained(tmp_path / "whole").model.embed_tokens.weight


def imported(folder: Path, tmp_path: Path, **given: Any) -> Tensor:
    return load_model(import_run(folder, output=tmp_path / "run", **given).path).model.model.embed_tokens.weight


def routed(folder: Path, tmp_path: Path, **given: Any) -> Tensor:
    return load_model(
        route_tokens(folder, top_k=1, output=tmp_path / "run", **given).path
    ).model.model.embed_tokens.weight


READERS: list[Callable[..., Tensor]] = [evaluated, judged, as_ours, as_peft, folded, imported, routed]


@pytest.mark.parametrize("made", [lora, poly])
@pytest.mark.parametrize("read", READERS)
def test_a_folder_is_read_beside_the_revision_that_it_names(hub, read, made):
    for revision in ("main", "v2"):
        folder = made(hub / revision, revision)
        out = hub / f"out-{revision}"
        torch.testing.assert_close(read(folder, out), weight(revision))
    given = read(folder, hub / "out-given", loading=Loading(revision="main"))
    torch.testing.assert_close(given, weight("main"))


@pytest.mark.parametrize("read", [evaluated, as_ours, as_peft, folded])
def test_a_run_of_a_revision_is_read_beside_that(hub, read):
    run = import_run(lora(hub / "lora", "v2"), output=hub / "imported").path
    torch.testing.assert_close(read(run, hub / "out"), weight("v2"))


def test_a_base_in_another_place_has_no_revision(hub):
    folder = lora(hub / "lora", "v2")
    run = import_run(folder, output=hub / "imported").path
    place = hub / "hub" / "models--owner--tiny" / "snapshots" / ("1" * 40)
    for path in (folder, run, merge(folder, output=hub / "ours")):
        torch.testing.assert_close(evaluated(path, hub, base=str(place)), weight("v2"))
    again = merge(folder, base=str(place), to="peft-lora", output=hub / "again")
    assert json.loads((again / "adapter_config.json").read_text())["revision"] is None


def test_adapters_of_two_revisions_do_not_merge(hub):
    folders = [lora(hub / str(revision), revision, seed) for seed, revision in enumerate((None, "v2"))]
    line = f"to base model '{NAME}', .* to '{NAME}' at revision 'v2': expected adapters of one model, or name"
    with pytest.raises(MergeError, match=line):
        merge(folders, output=hub / "merged")
    merge(folders, base=NAME, output=hub / "merged")
