"""The model card of a PEFT folder: metadata as the hub takes them, and code that does what it says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, repocard
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pipelines import get_supported_tasks

from mhr.adapters import BaseModel, LoraFactors, PeftFolder, PeftWriter, PlainAdapter, load_checkpoint
from mhr.adapters.model_card import Origin, write_card
from mhr.evaluation import load_model
from mhr.merging import merge, read_report
from mhr.runs.run import RunFolder
from tests.cli.running import succeed

FIRST = Path(__file__).parents[1] / "artifacts" / "v0.1.0"


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs that are there, as the current folder."""
    shutil.copytree(FIRST, tmp_path / "release")
    monkeypatch.chdir(tmp_path / "release")
    return tmp_path / "release"


def validated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """The card of a folder, read strictly by huggingface_hub, and sent to a stand-in of the hub's validator, which checks what the hub
    documents of metadata."""
    card = ModelCard.load(folder / "README.md")  # strict: a faulty model-index raises

    class Hub:
        status_code = 200

        def post(self, url: str, json: dict[str, Any], headers: Any) -> Hub:
            assert url.endswith("/api/validate-yaml")
            assert json["repoType"] == "model"
            found = repocard.REGEX_YAML_BLOCK.search(json["content"])
            assert found is not None
            said = repocard.yaml.safe_load(found.group(2))
            assert said["library_name"] == "peft"
            assert set(said) <= {"library_name", "base_model", "tags", "pipeline_tag", "model-index"}
            assert all(isinstance(tag, str) and tag for tag in said["tags"])
            assert said.get("pipeline_tag", "text-generation") in get_supported_tasks()
            assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?", said.get("base_model", "gpt2"))
            for model in said.get("model-index", []):
                assert isinstance(model["name"], str)
                for result in model["results"]:
                    assert isinstance(result["task"]["type"], str)
                    assert re.fullmatch(r"[\w.-]+", result["dataset"]["type"])
                    assert isinstance(result["dataset"]["name"], str)
                    for metric in result["metrics"]:
                        assert isinstance(metric["type"], str)
                        assert isinstance(metric["value"], float)
            return self

        def raise_for_status(self) -> None:
            pass

    monkeypatch.setattr(repocard, "get_session", Hub)
    monkeypatch.setattr(repocard, "hf_raise_for_status", lambda response: None)
    card.validate()
    assert str(ModelCard(str(card))) == str(card)
    return card


def code(card: ModelCard) -> str:
    (found,) = re.findall(r"```python\n(.*?)\n```", card.text, re.DOTALL)
    return found


def test_a_card_tells_where_an_adapter_comes_from(release, monkeypatch):
    succeed(
        "merge",
        "runs/poly-llama",
        "--task",
        "third",
        "--method",
        "task",
        "--to",
        "peft-lora",
        "--evaluate",
        "--output",
        "lora",
    )
    card = validated(release / "lora", monkeypatch)
    said = json.loads((release / "lora" / "merge_report.json").read_text())
    score = said["scores"]["merged"]["tasks"]["third"]
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.dataset_split) == ("third", "accuracy", "test")
    assert result.metric_value == pytest.approx(score, abs=1e-6)
    assert card.data.base_model is None  # a path is no model on the hub
    for line in (
        "# LoRA for third",
        "- Base model: `./bases/llama`",
        "LoRA, rank 2 and alpha 1 in all layers, 8 layers, float32; vLLM takes it with `--max-lora-rank 8`",
        "- Trained as: Poly",
        "- Data: `tasks.jsonl`",
        "Conversations were written by the chat template of the base model's tokenizer",
        "- optimizer steps: 4",
        f"| third | accuracy | {100 * score:.1f} | 6 |",
        "arXiv 2211.03831",
        "the base model is named by the path './bases/llama'",
    ):
        assert line in card.text, line
    assert "2205.12410" not in card.text
    adamix = merge("runs/adamix-lora-llama", to="peft-lora", output="adamix")
    assert "arXiv 2205.12410" in validated(adamix, monkeypatch).text


def test_the_code_of_a_card_loads_the_adapter(release, monkeypatch):
    merge("runs/poly-llama", method="task", task="third", to="peft-lora", output="lora")
    found: dict[str, Any] = {}
    exec(code(validated(release / "lora", monkeypatch)), found)
    ids = torch.arange(2, 12).reshape(2, 5)
    routed, _ = load_checkpoint("runs/poly-llama/adapter")
    with torch.no_grad():
        expected = routed(ids, task_ids=["third"] * 2).logits
        torch.testing.assert_close(found["model"](input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert type(found["tokenizer"]) is type(AutoTokenizer.from_pretrained("bases/llama"))


def test_the_code_of_an_encoder_that_ranks_loads_it(release, monkeypatch):
    merge("runs/mhr-bert", method="task", task="third", to="peft-lora", output="lora")
    found: dict[str, Any] = {}
    exec(code(validated(release / "lora", monkeypatch)), found)
    routed, _ = load_checkpoint("runs/mhr-bert/adapter")
    ids = torch.arange(2, 12).reshape(2, 5)
    with torch.no_grad():
        expected = routed(ids, task_ids=["third"] * 2).logits
        torch.testing.assert_close(found["model"].eval()(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_base_is_named_as_the_user_did(release, tmp_path):
    def name(folder: Path) -> str:
        return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]

    as_said = merge("runs/poly-llama", to="peft-lora", output="as said")
    assert name(as_said) == "./bases/llama"
    assert load_model(as_said).kind == "causal"  # it is found from here
    shutil.copytree("bases/llama", tmp_path / "moved")
    moved = str(tmp_path / "moved")
    assert name(merge("runs/poly-llama", base=moved, to="peft-lora", output="moved")) == moved
    assert name(merge("runs/poly-llama/adapter", to="peft-lora", output="no run")) == "./bases/llama"


def test_a_hub_id_and_its_revision_stay(release, monkeypatch):
    """As a run records them that took its base from the hub."""
    for file in ("runs/poly-llama/adapter/mhr_config.json", "runs/poly-llama/config.yaml"):
        text = (
            Path(file)
            .read_text()
            .replace("bases/llama", "owner/llama")
            .replace("model: owner", "revision: v2\nmodel: owner")
        )
        Path(file).write_text(text)
    folder = merge("runs/poly-llama", method="task", task="third", to="peft-lora", output="lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/llama", "v2")
    assert (config["task_type"], config["inference_mode"]) == ("CAUSAL_LM", True)
    card = validated(folder, monkeypatch)
    assert card.data.base_model == "owner/llama"
    assert "AutoModelForCausalLM.from_pretrained('owner/llama', revision='v2')" in code(card)
    assert read_report(folder).remarks == [
        "base model 'owner/llama' is not here, so the layers were not compared with its own"
    ]


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            None,
            "Conversations were written by the chat template of the base model's tokenizer, other rows as plain text.",
        ),
        ("none", "Every row was plain text, without a chat template"),
        ("auto", "Every row was written by the chat template of the base model's tokenizer."),
        ("tool_use", "Every row was written by the chat template named `tool_use` of the base model's tokenizer."),
        ("chatml", "Every row was written by the chat template in `chat_template.jinja`, beside this file."),
        ("{{ messages[0]['content'] }}", "in `chat_template.jinja`, beside this file."),
    ],
)
def test_a_card_tells_the_chat_template(release, template, sentence):
    run = RunFolder.open("runs/poly-llama")
    config = run.config()
    config.data.chat_template = template
    run.config = lambda: config  # type: ignore[method-assign]
    plain = PlainAdapter({"q": LoraFactors(torch.ones(4, 2), torch.ones(2, 4), 1.0)}, BaseModel("", "causal"))
    written = PeftWriter(base="owner/model").write(plain, "lora")
    text = write_card(written, plain, Origin(tasks=["a"], runs=[run])).read_text()
    assert sentence in text
    beside = Path("lora", "chat_template.jinja")
    assert beside.is_file() is (template in ("chatml", "{{ messages[0]['content'] }}"))


def test_names_of_tasks_do_no_harm(tmp_path, monkeypatch):
    """Markdown, YAML and line breaks in the names of tasks stay text."""
    task = "a|b: *c* `d`\n---\n# e <img>"
    plain = PlainAdapter({"q": LoraFactors(torch.ones(4, 2), torch.ones(2, 4), 1.0)}, BaseModel("", "causal"))
    written = PeftWriter(base="owner/model").write(plain, tmp_path / "lora")
    write_card(
        written, plain, Origin([task], "how", (), {task: {"score": 0.5, "metric": "accuracy", "n": 2}}, "x", "test")
    )
    card = validated(tmp_path / "lora", monkeypatch)
    assert card.data.eval_results[0].dataset_name == task
    assert [line for line in card.text.splitlines() if line.startswith("#")][
        0
    ] == r"# LoRA for a|b: \*c\* \`d\` --- # e \<img\>"
    assert r"| a\|b: \*c\* \`d\` --- # e \<img\> | accuracy | 50.0 | 2 |" in card.text
    assert "base_model: owner/model\n" in (tmp_path / "lora" / "README.md").read_text()


def test_transformers_loads_the_folder_by_itself(release):
    """Nothing but the adapter's own files lies there: with a config.json transformers would take the folder for a whole model."""
    folder = merge("runs/poly-llama", method="task", task="third", to="peft-lora", output="lora")
    assert not (folder / "config.json").exists()
    model, base = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, "bases/llama"))
    routed, _ = load_checkpoint("runs/poly-llama/adapter")
    ids = torch.arange(2, 12).reshape(2, 5)
    with torch.no_grad():
        expected = routed(ids, task_ids=["third"] * 2).logits
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
        assert (base(ids).logits - expected).norm() > 1e-4


def test_a_whole_bank_has_a_card(release, monkeypatch):
    folder = merge("runs/poly-llama", to="peft-poly", output="bank")
    card = validated(folder, monkeypatch)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "./bases/llama"
    assert "# Poly bank for several tasks" in card.text
    assert "trained for even, odd, third," in card.text
    assert "PEFT numbers the tasks in task\\_ids: 0 is 'even', 1 is 'odd', 2 is 'third'" in card.text
    found: dict[str, Any] = {}
    exec(code(card), found)
    routed, _ = load_checkpoint("runs/poly-llama/adapter")
    ids = torch.arange(2, 12).reshape(2, 5)
    with torch.no_grad():
        expected = routed(ids, task_ids=["third", "even"]).logits
        answers = found["model"].eval()(input_ids=ids, task_ids=torch.tensor([2, 0])).logits
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("builtin:t5-tiny", "model = mhr.load('OWNER/lora').model"),
        ("models/x.gguf", "model = mhr.load('OWNER/lora').model"),
        ("", "model = PeftModel.from_pretrained(base, 'OWNER/lora')"),
        ("owner/base", "base = AutoModelForSeq2SeqLM.from_pretrained('owner/base')"),
    ],
)
def test_code_for_bases_of_all_places(tmp_path, monkeypatch, base, line):
    plain = PlainAdapter({"q": LoraFactors(torch.ones(4, 2), torch.ones(2, 4), 1.0)}, BaseModel(base, "seq2seq"))
    (tmp_path / "lora").mkdir()
    written = PeftFolder(tmp_path / "lora", "lora", base, None, "SEQ_2_SEQ_LM", 2, 1.0, False, [])
    write_card(written, plain, Origin(name="OWNER/lora"))
    card = validated(tmp_path / "lora", monkeypatch)
    assert any(found.startswith(line) for found in code(card).splitlines())
    assert card.data.base_model == ("owner/base" if base == "owner/base" else None)
    compile(code(card), "card", "exec")
