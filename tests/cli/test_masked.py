"""A masked language model from the command line: pretrain, resume, adapt, evaluate, merge, export, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertModel, ElectraConfig, ElectraForPreTraining

from mhr.adapters import load_checkpoint
from mhr.backbones import load_backbone
from mhr.errors import MhrError
from mhr.few_shot.adapting import few_shot_settings
from mhr.loading import Loading
from mhr.runs.run import RunFolder
from mhr.sweeps.planning import plan
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
    asked = (
        "--model",
        base,
        "--kind",
        "masked",
        "--tasks",
        rows,
        *WORDED,
        *SMALL,
        "--eval-every",
        "2",
        "--output",
        folder,
    )
    succeed("pretrain", *asked)
    return folder


def test_a_run_keeps_its_prompt_and_resumes(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    assert info["model_kind"] == "masked"
    assert info["config"]["data"]["verbalizers"] == {"pos": "great", "neg": "terrible"}
    assert info["new_modules"] == []
    assert info["config"]["data"]["prompt"] == PROMPT[1]
    validations = [
        json.loads(line)["validation"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if "validation" in line
    ]
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
    inputs = tokenizer(
        [f"a fine film It was {tokenizer.mask_token}.", f"bad film It was {tokenizer.mask_token}."],
        padding=True,
        return_tensors="pt",
    )
    at_mask = inputs["input_ids"] == tokenizer.mask_token_id
    routed, _ = load_checkpoint(run / "adapter")
    found = AutoPeftModel.from_pretrained(tmp_path / "peft-lora")
    assert type(found.get_base_model()).__name__.endswith("ForMaskedLM")
    exported = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(base), tmp_path / "peft-lora").eval()
    merged = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        expected = routed(**inputs, task_ids=["films", "films"]).logits[at_mask]
        plain = AutoModelForMaskedLM.from_pretrained(base).eval()(**inputs).logits[at_mask]
        for model in (exported, merged):
            torch.testing.assert_close(model(**inputs).logits[at_mask], expected, rtol=1e-4, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-5, "nothing was trained"


def test_a_task_scores_the_same_in_every_form(base: Path, rows: Path, run: Path, tmp_path: Path) -> None:
    asked = ("--tasks", rows, "--task", "films", *WORDED)
    found = {}
    for form in ("mhr", "peft-lora", "model"):
        succeed("merge", run, "--task", "films", "--to", form, "--output", tmp_path / form)
        succeed("evaluate", tmp_path / form, *asked, "--output", tmp_path / f"{form}-scores")
        found[form] = [
            json.loads(line)["scores"]
            for line in (tmp_path / f"{form}-scores" / "predictions.jsonl").read_text().splitlines()
        ]
    succeed("evaluate", run, "--task", "films", "--output", tmp_path / "scores")
    for line, *others in zip(
        (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines(), *found.values(), strict=True
    ):
        for other in others:
            assert other == pytest.approx(json.loads(line)["scores"], rel=1e-4, abs=1e-5)
    # A base model says words without any training.
    assert json.loads(succeed("evaluate", base, *asked, "--json").stdout)["kind"] == "masked"


def test_checkpoints_without_a_masked_lm_head_are_refused(tmp_path: Path) -> None:
    tokenizer = make_masked_tokenizer("bert", WORDS)
    bert = BertModel(tiny_model("bert-masked", vocab_size=len(tokenizer)).config)
    electra = ElectraForPreTraining(
        ElectraConfig(
            vocab_size=len(tokenizer),
            embedding_size=32,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    for name, model in (("bert", bert), ("electra", electra)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(MhrError, match="holds no masked-LM head"):
            load_backbone(tmp_path / name, "masked")
        tiny = tiny_model("gpt2")
    tiny.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MhrError, match="cannot be loaded as 'masked'"):
        load_backbone(tmp_path / "gpt2", "masked")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("--head", "mlm", "--prompt", "{input} is"), "head is 'mlm', but no prompt has a {mask}"),
        (("--head", "mlm"), "head is 'mlm', but no prompt has a {mask}"),
        (("--kind", "masked"), "has no {mask} in its input"),
        ((*WORDED, "--head", "classify"), "head is 'classify', but the prompt has {mask}"),
        ((*WORDED, "--kind", "causal"), "but kind is 'causal'"),
        ((*WORDED, "--kind", "masked", "--head", "rank"), "head is 'rank', but kind is 'masked'"),
        (("--prompt", "{input} {mask} {mask}"), "{mask} stands 2 times"),
        (("--prompt", "It is {mask}"), "no field but {mask}"),
        (("--prompt", "{inputs} {mask}"), "unknown field {inputs} in input: did you mean 'input'"),
        ((*PROMPT, "--verbalizers", "pos=great,neg=very bad"), "word 'very bad' of task 'films' is"),
        ((*PROMPT, "--verbalizers", "pos=great,neg=great"), "two verbalizers are the same word"),
        ((*PROMPT, "--verbalizers", "pos=great,neg=terrible,neutral=no"), "'neutral', which is no label"),
        ((*PROMPT, "--verbalizers", "pos=great,negs=terrible"), "no verbalizer for label 'neg': did you mean 'negs'"),
        ((*PROMPT, "--verbalizers", "pos=great"), "label 'neg'"),
        ((*WORDED, "--template", "glue"), "leave one out"),
        ((*WORDED, "--set", "data.max_input_length=6"), "leaves no room for that in 6 tokens"),
    ],
)
def test_what_is_refused(base: Path, rows: Path, tmp_path: Path, asked: tuple[str, ...], expected: str) -> None:
    line = refuse("pretrain", "--model", base, "--tasks", rows, *asked, *SMALL, "--output", tmp_path / "run")
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_a_prompt_with_a_mask_is_for_nothing_else(rows: Path, tmp_path: Path) -> None:
    line = refuse("pretrain", "--tasks", rows, *WORDED, *SMALL, "--output", tmp_path / "run")
    assert "cannot be loaded as 'masked': it can be 'seq2seq'" in line


def test_words_that_differ_in_case_alone_and_a_tokenizer_without_a_mask(base: Path, rows: Path, tmp_path: Path) -> None:
    asked = ("pretrain", "--tasks", rows, *SMALL, "--output", tmp_path / "run", *PROMPT)
    if base.name == "bert":
        line = refuse(*asked, "--model", base, "--verbalizers", "pos=yes,neg=Yes")
        assert "are the same token" in line
    tokenizer = make_tokenizer("words")
    tiny_model("bert-masked", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert "has no mask token" in refuse(*asked, "--model", tmp_path / "model")


def test_all_weights_are_trained_and_stored_as_a_masked_language_model(base: Path, rows: Path, tmp_path: Path) -> None:
    asked = ("--model", base, "--tasks", rows, *WORDED, "--method", "full", "--steps", "2", "--batch-size", "4")
    succeed("pretrain", *asked, "--output", tmp_path / "run")
    assert "ForMaskedLM" in (tmp_path / "run" / "model" / "config.json").read_text()
    told = json.loads(succeed("evaluate", tmp_path / "run", "--part", "training", "--json").stdout)
    assert told["kind"] == "masked"


def test_adamix_with_consistency_and_an_ensemble(base: Path, rows: Path, tmp_path: Path) -> None:
    asked = ("--model", base, "--tasks", rows, *WORDED, *SMALL[:8], "--method", "adamix", "--rank", "4")
    succeed("pretrain", *asked, "--set", "train.label_smoothing=0.1", "--output", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["consistency"] == {"weight": 1.0, "squared_difference": []}
    assert info["head"] == "mlm"
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["consistency"] > 0
    more = ("--part", "training", "--inference", "ensemble", "--draws", "2", "--json")
    assert json.loads(succeed("evaluate", tmp_path / "run", *more).stdout)["tasks"]["films"]["n"] == 8


def test_a_sweep_adapts_with_a_prompt(run: Path, tmp_path: Path) -> None:
    """Up to its units, which are adaptations in processes of their own."""
    changed = {"prompt": "{input} is {mask}?", "verbalizers": {"pos": "yes", "neg": "no"}, "loading": Loading()}
    changed |= dict.fromkeys(("tasks", "template", "on_bad_row", "model"))
    planned = plan([str(run)], {}, None, ["mu"], tmp_path, changed, None, {"shots": 8, "seeds": [1]})
    assert [one.task for one in planned.adaptations] == ["new"]
    assert planned.study.identity["prompt"] == "{input} is {mask}?"
    settings = few_shot_settings(RunFolder.open(run).config(), {}, **planned.study.changed)
    assert settings.data.verbalizers == {"pos": "yes", "neg": "no"}


def test_a_decoder_takes_a_prompt_that_ends_before_its_word(rows: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bytes")
    tiny_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    words = ("--prompt", "{input} It was", "--verbalizers", "pos=great,neg=terrible")
    asked = ("pretrain", "--model", tmp_path / "gpt2", "--tasks", rows, *SMALL[:6], "--set", "data.max_input_length=40")
    succeed(*asked, "--method", "lora", *words, "--output", tmp_path / "run")
    succeed("evaluate", tmp_path / "run", "--part", "training", "--output", tmp_path / "scores")
    first = json.loads((tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()[0])
    assert (first["input"][-6:], first["choices"]) == ("It was", ["great", "terrible"])
    line = refuse(*asked, *WORDED, "--output", tmp_path / "masked")
    assert "cannot be loaded as 'masked'" in line


def test_texts_are_put_into_the_prompt_of_the_run_and_answered_in_its_words(run: Path, tmp_path: Path):
    succeed("evaluate", run, "--part", "training", "--output", tmp_path / "scored")
    scored = [json.loads(line) for line in (tmp_path / "scored" / "predictions.jsonl").read_text().splitlines()][:4]
    texts = [row["input"].split(" It was")[0] for row in scored]
    answers = json.loads(succeed("predict", run, "--task", "films", "--json", *texts).stdout)
    for name in ("input", "answer", "choices"):
        assert [row[name] for row in answers] == [row[name] for row in scored]
    assert set(answers[0]["choices"]) == {"great", "terrible"}
    assert "leave {mask} out" in refuse("predict", "builtin:t5-tiny", *WORDED, "bad film")
