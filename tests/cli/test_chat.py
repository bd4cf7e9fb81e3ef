"""Conversations from the command line: trained, evaluated and shown by one chat template, and refused where that cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mhr.runs.run import RunFolder
from tests.chat_templates import CHATML, REWRITES, make_chat_tokenizer
from tests.cli.running import SMALL, invoke, refuse, succeed
from tests.models import tiny_model

LENGTHS = ("--set", "data.max_input_length=40", "--set", "data.max_target_length=16")


LONG = ("--set", "data.max_input_length=80", "--set", "data.max_target_length=40")


def save_model(folder: Path, template: str | None, **special: Any) -> Path:
    model = tiny_model("llama", vocab_size=400, bos_token_id=1, eos_token_id=2, max_position_embeddings=128)
    tokenizer = make_chat_tokenizer(template)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def turns(i: int, n: int = 2) -> list[dict[str, str]]:
    answer = {"role": "assistant", "content": ("yes", "no")[i % 2]}
    return [turn for k in range(n) for turn in ({"role": "user", "content": f"is it {k}{i}?"}, answer)]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": turns(i)}) + "\n" for i in range(30)))
    return path


def train(*arguments: str | Path) -> list[str | Path]:
    return ["pretrain", *SMALL, *LENGTHS, "--steps", "2", *arguments]


def test_a_run_keeps_its_template_and_is_evaluated_and_shown_by_it(tmp_path: Path, chats: Path):
    base, file, run = save_model(tmp_path / "base", None), tmp_path / "mine.jinja", tmp_path / "run"
    file.write_text(CHATML)
    succeed(
        *train("--model", base, "--tasks", chats, "--output", run),
        *("--chat-template", file, "--train-on", "all", "--system", "a b"),
    )
    file.unlink()
    data = RunFolder.open(run).config().data
    assert (data.chat_template, data.train_on, data.system) == (CHATML, "all", "a b")
    succeed(*train("--output", run, "--resume"))
    succeed("evaluate", run, "--part", "all", "--limit", "2")
    shown = json.loads(succeed("data", "show", chats, "--model", run, "--row", "2", "--json").stdout)
    text = "".join(token["text"] for token in shown["tokens"])
    example = json.loads(chats.read_text().splitlines()[int(shown["id"].rpartition(":")[2]) - 1])["messages"]
    assert text.startswith("<|im_start|>system\na b<|im_end|>\n<|im_start|>user\n")
    assert text.endswith(f"<|im_start|>assistant\n{example[-1]['content']}<|im_end|>")
    said = example[-1]["content"] + "<|im_end|>"
    # The run has room for 40 tokens of a prompt: the first question and its answer went.
    assert "".join(token["text"] for token in shown["tokens"] if token["trained"]) == said
    assert shown["whole"] - len(shown["tokens"]) == sum(token["cut"] for token in shown["tokens"]) > 0
    room = ("--set", "data.max_input_length=100")
    shown = json.loads(succeed("data", "show", chats, "--model", run, "--row", "2", "--json", *room).stdout)
    assert "".join(token["text"] for token in shown["tokens"] if token["trained"]) == said * 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, "'chats.jsonl:29' of task 'chats' has tools"),
        ({"system": "long " * 60}, "'chats.jsonl:29' of task 'chats': its system turn and what"),
        ({"again": 1}, "'chats.jsonl:29' of task 'chats': the chat template of .* refuses .*: roles must alternate"),
    ],
    ids=["tools", "system", "roles"],
)
def test_one_row_among_many_is_refused_before_anything_is_written(tmp_path: Path, more: dict[str, Any], said: str):
    alternate = "{% for m in messages[1:] %}{% if m.role == messages[loop.index0].role %}{{ raise_exception('roles must alternate') }}"
    base = save_model(tmp_path / "base", alternate + "{% endif %}{% endfor %}" + CHATML)
    rows: list[dict[str, Any]] = [{"messages": turns(i, 1), "split": ("train", "test")[i % 2]} for i in range(30)]
    for place in (28, 29):
        system = [{"role": "system", "content": more["system"]}] if "system" in more else []
        question = [{"role": "user", "content": "so:"}] * more.get("again", 0)
        rows[place] |= {"messages": [*system, *question, *turns(place, 1)], "tools": more.get("tools", [])}
    path, run = tmp_path / "chats.jsonl", tmp_path / "run"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert re.search(said, refuse(*train("--model", base, "--tasks", path, "--output", run)))
    assert not run.exists()
    line = refuse("evaluate", base, "--tasks", path, "--output", run)
    assert re.search(said.replace("29", "30"), line)
    assert not run.exists()


def test_a_row_is_shown_with_its_marks_and_cuts(tmp_path: Path, chats: Path):
    base = save_model(tmp_path / "base", CHATML)
    whole = succeed("data", "show", chats, "--model", base).stdout
    assert "by a chat template" in whole
    assert "«<|im_end|>»" in whole
    assert "|<|im_start|>" in whole
    assert "0 cut" in whole
    cut = succeed("data", "show", chats, "--model", base, "--set", "data.max_input_length=24").stdout
    assert "tokens cut ...]" in cut
    plain = succeed("data", "show", chats, "--model", base, "--chat-template", "none").stdout
    assert "as plain text" in plain
    assert "--row is 999, but task 'chats' has 24 train rows" in last(
        "data", "show", chats, "--model", base, "--row", "999"
    )


def last(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


def test_turns_that_a_template_rewrites_are_said_once_with_a_count(tmp_path: Path, chats: Path):
    base, run = save_model(tmp_path / "base", REWRITES), tmp_path / "run"
    said = succeed(*train("--model", base, "--tasks", chats, "--output", run, "--train-on", "all", *LONG)).stderr
    (line,) = [line for line in said.splitlines() if "last turn alone" in line]
    assert line.startswith("Note: 8 rows are trained on in their last turn alone")
    assert RunFolder.open(run).info["truncated"]["last_only"] == {"chats": 8}


BAD_TURNS = {
    "no assistant turn": [{"role": "user", "content": "a"}],
    "are both the assistant's": [*turns(0, 1), turns(0, 1)[1]],
    "unknown role 'robot'": [{"role": "robot", "content": "a"}, turns(0, 1)[1]],
    "the conversation is empty": [],
}


@pytest.mark.parametrize("said", BAD_TURNS)
def test_what_is_no_conversation_is_refused(tmp_path: Path, said: str):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (turns(0), BAD_TURNS[said])))
    line = refuse(
        *train("--model", save_model(tmp_path / "base", CHATML), "--tasks", path, "--output", tmp_path / "run")
    )
    assert "x.jsonl:2: " in line
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("template", "text", "more", "said"),
    [
        (None, None, (), "--chat-template chatml, or a file of Jinja), or train on plain text (--chat-template none)"),
        (CHATML, "{% for m in messages %}{{ m.content }", (), "bad.jinja does not parse, line 1"),
        (CHATML, "{{ 'hello' }}", (), "leaves out what the assistant says"),
        (CHATML, "no template at all", (), "bad.jinja is no chat template"),
        (
            REWRITES,
            None,
            ("--set", "data.max_target_length=3"),
            "which leaves no room for it: raise max_target_length",
        ),
        (CHATML, None, ("--chat-template", "none", "--system", "s"), "system is 's', but chat_template is 'none'"),
        (
            CHATML,
            None,
            ("--chat-template", "none", "--train-on", "all"),
            "train_on is 'all', but chat_template is 'none'",
        ),
    ],
)
def test_templates_that_cannot_be_are_refused(
    tmp_path: Path, chats: Path, template: str | None, text: str | None, more: tuple[str, ...], said: str
):
    base, run = save_model(tmp_path / "base", template), tmp_path / "run"
    if text is not None:
        (tmp_path / "bad.jinja").write_text(text)
        more = ("--chat-template", str(tmp_path / "bad.jinja"))
    line = last(*train("--model", base, "--tasks", chats, "--output", run), *more)
    assert line.startswith("error: ")
    assert said in line
    assert not run.exists()


def test_settings_of_turns_without_turns_and_for_other_models_are_refused(tmp_path: Path, chats: Path):
    plain, run = tmp_path / "plain.jsonl", tmp_path / "run"
    plain.write_text("".join(json.dumps({"input": f"is it {i}?", "targets": "yes"}) + "\n" for i in range(9)))
    base = save_model(tmp_path / "base", CHATML)
    line = last(*train("--model", base, "--tasks", plain, "--output", run, "--system", "s"))
    assert "system is given, but no row is a conversation" in line
    line = last(*train("--tasks", chats, "--output", run, "--chat-template", "chatml"))
    assert "chat_template, train_on and system are for decoders" in line
    assert not run.exists()


def test_a_tokenizer_without_an_end_or_a_beginning(tmp_path: Path, chats: Path):
    run = tmp_path / "run"
    line = last(
        *train("--model", save_model(tmp_path / "endless", CHATML, eos_token=None), "--tasks", chats, "--output", run)
    )
    assert "has no end token, expected an eos_token" in line
    assert not run.exists()
    succeed(*train("--model", save_model(tmp_path / "base", CHATML, bos_token=None), "--tasks", chats, "--output", run))


def test_a_run_without_a_template_is_adapted_to_conversations_by_one(tmp_path: Path, chats: Path):
    """Its base has none, and the error names the flag."""
    base, plain, run, adapted = (tmp_path / name for name in ("base", "plain.jsonl", "run", "adapted"))
    save_model(base, None)
    plain.write_text(
        "".join(json.dumps({"input": f"is it {i}?", "targets": ("yes", "no")[i % 2]}) + "\n" for i in range(30))
    )
    succeed(*train("--model", base, "--tasks", plain, "--output", run))
    few = (
        "adapt",
        run,
        "--tasks",
        chats,
        "--task",
        "chats",
        "--shots",
        "4",
        "--steps",
        "1",
        "--seeds",
        "1",
        "--output",
        adapted,
    )
    assert "give one (--chat-template chatml" in refuse(*few)
    assert not adapted.exists()
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    chat = ("--chat-template", file, "--system", "a b")
    succeed(*few, *chat)
    data = RunFolder.open(adapted / "chats" / "1").config().data
    assert (data.chat_template, data.system) == (CHATML, "a b")
    text = succeed("evaluate", adapted / "chats" / "1", "--limit", "2", "--metrics", "exact_match").stdout
    assert "system turn 'a b'" in text
    assert "chat_template" in refuse(*few, "--resume")
    succeed(*few, *chat, "--resume")
    succeed(*few, "--chat-template", "none", "--overwrite")
