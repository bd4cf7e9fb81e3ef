"""A masked language model from the command line: pretrain, resume, adapt, evaluate, merge, export, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertModel, ElectraConfig, ElectraForPreTraining

from mhr.adapters import load_checkpoint
from mhr.backbones import load_backbone
from mhr.errors import MhrError
from tests.cli.running import refuse, succeed
from tests.models import tiny_model
from tests.text_tokenizers import make_masked_tokenizer, make_tokenizer

WORDS = "a fine film bad it was great terrible yes no in all . ?"
PROMPT = ("--prompt", "{input} It was {mask}.")
WORDED = (*PROMPT, "--verbalizers", "pos=great,neg=terrible")
SMALL = ("--preset", "demo", "--steps", "4", "--batch-size", "4", "--n-skills", "2", "--n-heads", "2", "--rank", "2")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / request.param
    tokenizer = make_masked_tokenizer(request.param, WORDS)
    tiny_model(f"{request.param}-masked", vocab_size=len(tokenizer), pad_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, `new` held out; words of films alternate."""
    file = tmp_path_factory.mktemp("data") / "films.jsonl"
    lines = [
        {
            "task": task,
            "input": f"{'a fine' if i % 2 else 'bad'} film{' in all' * (i // 4)}",
            "targets": "pos" if i % 2 else "neg",
            "split": "train" if i < 24 else "test",
            "held_out": task == "new",
        }
        for task in ("films", "new")
        for i in range(32)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def run(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / base.name
    asked = ("--model", base, "--kind", "masked", "--tasks", rows, *WORDED, *SMALL, "--eval-every", "2", "--output", folder)
    succeed("pretrain", *asked)
    return folder


def test_a_run_keeps_its_prompt_and_resumes(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    assert info["model_kind"] == "masked"
    assert info["config"]["data"]["verbalizers"] == {"pos": "great", "neg": "terrible"}
    assert info["new_modules"] == []
    assert info["config"]["data"]["prompt"] == PROMPT[1]
    validations = [json.loads(line)["validation"] for line in (run / "metrics.jsonl").read_text().splitlines() if "validation" in line]
    assert [set(found["scores"]) for found in validations] == [{"films"}, {"films"}]
    succeed("pretrain", "--resume", "--output", run)


def test_the_head_is_no_part_of_the_adapter(run: Path) -> None:
    model, _ = load_checkpoint(run / "adapter")
    assert type(model).__name__.endswith("ForMaskedLM")
    assert list(model.mhr.saved) == []
    assert all("attention" in name for name in model.mhr.layers)


def test_it_is_evaluated_by_the_words_with_and_without_shots(run: Path, tmp_path: Path) -> None:
    succeed("evaluate", run, "--part", "training", "--output", tmp_path / "plain")
    told = json.loads((tmp_path / "plain" / "evaluation.json").read_text())
    assert told["tasks"]["films"]["n"] == 8
    assert told["kind"] == "masked"
    first = json.loads((tmp_path / "plain" / "predictions.jsonl").read_text().splitlines()[0])
    assert first["answer"] in ("great", "terrible")
    assert first["choices"] == ["great", "terrible"]
    assert first["input"].endswith("It was {mask}.")
    shown = json.loads(succeed("evaluate", run, "--part", "training", "--shots", "2", "--json").stdout)
    assert shown["shots"]["of"] == 16
    assert shown["shots"]["dropped"] == 0


@pytest.mark.parametrize("mode", ["mhr", "mu"])
def test_it_is_adapted_to_a_new_task(run: Path, tmp_path: Path, mode: str) -> None:
    few = ("--shots", "8", "--seeds", "1", "--steps", "2")
    succeed("adapt", run, "--mode", mode, *few, "--output", tmp_path / "adapted")
    told = json.loads(succeed("evaluate", tmp_path / "adapted" / "new" / "1", "--json").stdout)
    assert told["tasks"]["new"]["majority"] == 50.0 or told["tasks"]["new"]["n"] == 8
    other = ("--prompt", "{mask}: {input}")
    if run.name == "bert":
        succeed("adapt", run, "--mode", mode, *few, *other, "--output", tmp_path / "other")
        config = (tmp_path / "other" / "new" / "1" / "config.yaml").read_text()
        assert "prompt: '{mask}: {input}'" in config
        assert "pos: great" in config


def test_one_task_becomes_a_peft_lora_and_a_model_with_the_same_logits(base: Path, run: Path, tmp_path: Path) -> None:
    for form in ("peft-lora", "model"):
        succeed("merge", run, "--task", "films", "--to", form, "--output", tmp_path / form)
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer([f"a fine film It was {tokenizer.mask_token}.", f"bad film It was {tokenizer.mask_token}."], padding=True, return_tensors="pt")
    at_mask = inputs["input_ids"] == tokenizer.mask_token_id
    routed, _ = load_checkpoint(run / "adapter")
    exported = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(base), tmp_path / "peft-lora").eval()
    merged = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        expected = routed(**inputs, task_ids=["films", "films"]).logits[at_mask]
        plain = AutoModelForMaskedLM.from_pretrained(base).eval()(**inputs).logits[at_mask]
        for model in (exported, merged):
            torch.testing.assert_close(model(**inputs).logits[at_mask], expected, rtol=1e-4, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-5, "nothing was trained"
