"""`mhr predict` and `mhr chat` from the command line: texts, standard input, rows of a file, and what is refused in one line."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mhr.data.skills import skills_suite
from mhr.prediction import Predictor, files
from mhr_cli.main import app
from tests.chat_templates import CHATML
from tests.cli.running import invoke, refuse, succeed
from tests.cli.test_chat import save_model
from tests.models import tiny_model
from tests.tokenizers import make_word_tokenizer

TASKS = ("rev-last", "next-first")
SUITE = skills_suite(0, 1, 4)
TEXTS = [example.input for task in TASKS for example in SUITE[task].test]


def piped(content: bytes, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=content, catch_exceptions=False)


def refused(content: bytes, *arguments: str | Path) -> str:
    result = piped(content, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    return line


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"id": e.id, "task": e.task, "input": e.input} for task in TASKS for e in SUITE[task].test]
    return write(tmp_path / "rows.jsonl", *rows[::2], *rows[1::2])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "llama", CHATML)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny_model("bert").save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return folder


def test_texts_lines_and_rows_get_the_same_answers(run: Path, questions: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    out = tmp_path / "out.jsonl"
    said = succeed("predict", run, "--input", questions, "--output", out)
    assert f"Written: {len(rows)} answers, in {out}" in said.stderr
    assert said.stdout == ""
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{k: a[k] for k in rows[0]} for a in answers] == rows
    for task in TASKS:
        own = [a for a in answers if a["task"] == task]
        shown = succeed("predict", run, "--task", task, *(a["input"] for a in own)).stdout.splitlines()
        assert shown == [a["answer"] for a in own]
        lines = piped(
            "\ufeff".encode() + "\r\n".join(a["input"] for a in own).encode() + b"\n\n", "predict", run, "--task", task
        )
        assert lines.stdout.splitlines() == shown
        streamed = succeed("predict", run, "--task", task, "--stream", *(a["input"] for a in own)).stdout
        assert streamed.splitlines() == shown


def test_json_and_one_text(run: Path) -> None:
    ranked = json.loads(succeed("predict", run, "--task", TASKS[0], "--choices", "ab,cd", "--json", TEXTS[0]).stdout)
    assert [row["choices"] for row in ranked] == [["ab", "cd"]]
    assert ranked[0]["answer"] == ranked[0]["choices"][ranked[0]["scores"].index(max(ranked[0]["scores"]))]
    plain = succeed("predict", run, "--task", TASKS[0], "--choices", "ab,cd", TEXTS[0])
    assert plain.stdout == ranked[0]["answer"] + "\n"
    assert plain.stderr.splitlines()[-1].startswith(ranked[0]["answer"])
    drawn = ("predict", "builtin:t5-tiny", "--temperature", "1", "--top-p", "0.9", "--seed", "3", TEXTS[0])
    assert succeed(*drawn).stdout == succeed(*drawn).stdout


def test_an_adapted_run_and_a_peft_folder_need_no_task(run: Path, tmp_path: Path) -> None:
    adapted = tmp_path / "z"
    task = "init-upper"
    succeed("adapt", run, "--task", task, "--mode", "z", "--seeds", "13", "--steps", "2", "--output", adapted)
    text = SUITE[task].test[0].input
    answer = succeed("predict", adapted / task / "13", text).stdout
    assert answer == succeed("predict", adapted / task / "13", "--task", task, text).stdout
    succeed("merge", adapted / task / "13", "--to", "peft-lora", "--output", tmp_path / "lora")
    assert succeed("predict", tmp_path / "lora", text, "--max-new-tokens", "8").stdout == answer
    assert "does the same for all tasks" in refuse("predict", tmp_path / "lora", "--task", task, text)


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_an_interrupt_keeps_the_rows_that_are_done(
    run: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(files.ROWS_AT_ONCE, "cpu", 3)
    answer, calls = Predictor.answer, []

    def second_time_interrupted(self: Predictor, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return answer(self, *args, **kwargs)

    out = tmp_path / "out.jsonl"
    arguments = ("predict", run, "--input", questions, "--output", out)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer", second_time_interrupted)
        patch.setattr(sys, "argv", ["mhr", *map(str, arguments)])
        result = invoke(*arguments)
    assert result.exit_code == 130
    assert f"Interrupted. 3 of 8 rows are answered in {out}." in result.stderr
    assert f"Go on with: mhr predict {run} --input {questions} --output {out} --resume" in result.stderr
    assert len(out.read_text().splitlines()) == 3
    assert "8 answers, 3 of them there already" in succeed(*arguments, "--resume").stderr
    found = json.loads(succeed(*arguments, "--resume", "--json").stdout)
    assert found == {"output": str(out), "rows": 8, "kept": 8, "truncated": 0}
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [
        json.loads(line)["id"] for line in questions.read_text().splitlines()
    ]


def test_an_encoder_ranks(bert: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"input": "w1 w2", "choices": ["w3", "w4"]}, {"input": "w5"})
    assert "is an encoder, which ranks choices" in refuse("predict", bert, "--input", rows)
    shown = succeed("predict", bert, "--input", rows, "--choices", "w6,w7").stdout.splitlines()
    assert shown[0] in ("w3", "w4")
    assert shown[1] in ("w6", "w7")
    assert succeed("predict", bert, "--choices", "w6,w7", "w5").stdout.splitlines() == shown[1:]


def test_rows_of_another_task_than_the_one_given_are_refused(run: Path, tmp_path: Path) -> None:
    text = TEXTS[0]
    rows = write(
        tmp_path / "rows.jsonl", {"input": text}, {"input": text, "task": TASKS[0]}, {"input": text, "task": ""}
    )
    alike = succeed("predict", run, "--input", rows, "--task", TASKS[0], "--json")
    assert [row["task"] for row in json.loads(alike.stdout)] == [TASKS[0]] * 3
    rows = write(tmp_path / "rows.jsonl", {"input": text}, {"input": text, "task": TASKS[1]})
    line = refuse("predict", run, "--input", rows, "--task", TASKS[0])
    assert f"rows.jsonl:2: row 'rows.jsonl:2' is of task {TASKS[1]!r}, but all are asked for as {TASKS[0]!r}" in line


def test_lines_that_are_no_text_are_refused(run: Path) -> None:
    ask = ("predict", run, "--task", TASKS[0])
    assert "standard input, line 2: byte 0xff is no UTF-8" in refused(b"a\nb\xffc\n", *ask)
    assert "standard input holds no text" in refused(b"\n \n", *ask)
    assert "line of standard input 2 is empty" in refused(b"a\n\nb\n", *ask)


def test_a_row_without_text_and_an_unknown_task_write_nothing(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "out.jsonl"
    for row, said in (
        ({"task": TASKS[0], "question": "a"}, "rows.jsonl:2: row 'rows.jsonl:2' has no column 'input'"),
        ({"task": "rev-lst", "input": "a"}, "unknown task 'rev-lst' of"),
        ({"input": "a"}, "no task is named"),
        ({"task": TASKS[0], "input": None}, "has no input: expected a string that is not empty in 'input', got None"),
        ({"task": TASKS[0], "input": " "}, "rows.jsonl:2: row 'rows.jsonl:2' has no input"),
    ):
        rows = write(tmp_path / "rows.jsonl", {"task": TASKS[0], "input": "rev last: abcd"}, row)
        assert said in refuse("predict", run, "--input", rows, "--output", out)
        assert not out.parent.exists()
    rows.write_bytes(b'{"task": "rev-last", "input": "a"}\n{"task": "rev-last", "input": "\xff"}\n')
    assert "rows.jsonl:2: byte 66 is not UTF-8" in refuse("predict", run, "--input", rows, "--output", out)
    assert not out.parent.exists()
    assert "did you mean 'rev-last'" in refuse("predict", run, "--task", "rev-lst", "a")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--input", "rows.jsonl", "a"), "texts and --input are both given"),
        (("--resume", "a"), "--resume is for --output, which is not given"),
        (("--overwrite", "a"), "--overwrite is for --output, which is not given"),
        (("--stream", "--json", "a"), "--stream prints answers, but --json is given"),
        (("--stream", "--choices", "b,c", "a"), "but choices are ranked"),
        (("--columns", "input=text", "a"), "--columns is for the rows of --input"),
        (("--input", "absent.jsonl"), "--input absent.jsonl: no such file or folder"),
        (("--top-p", "0.5", "a"), "top_p is 0.5, but temperature is 0"),
        (("--choices", "b", "a"), "expected two or more different texts"),
        (("--max-new-tokens", "0", "a"), "--max-new-tokens: predict.max_new_tokens is 0"),
    ],
)
def test_flags_that_do_not_go_together(run: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refuse("predict", run, *arguments)


def test_a_template_of_the_run_is_put_around_texts(tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text("input: '{input} It was'\nverbalizers: {'0': bad, '1': good}\n")
    (row,) = json.loads(succeed("predict", "builtin:t5-tiny", "--template", words, "--json", "fine").stdout)
    assert row["input"] == "fine It was"
    assert row["choices"] == ["bad", "good"]


def test_a_chat_reads_its_lines_and_answers_each(llama: Path) -> None:
    talk = ("chat", llama, "--max-new-tokens", "8", "--system", "a b")
    result = piped(b"is it?\n\n/rest\n/reset\nis it?\n/quit\nnever read\n", *talk)
    assert result.exit_code == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == second != ""
    assert "unknown command '/rest': did you mean '/reset'" in result.stderr
    assert "What was said is forgotten." in result.stderr
    going_on = piped(b"is it?\nis it?\n", *talk).stdout.splitlines()
    assert going_on[0] == first
    rendered = succeed(
        "predict", llama, "--chat-template", "auto", "--system", "a b", "--max-new-tokens", "8", "is it?"
    )
    assert rendered.stdout.splitlines() == [first]


def test_what_cannot_chat_is_refused(bert: Path, tmp_path: Path) -> None:
    assert "has no chat template" in refuse("chat", save_model(tmp_path / "base", None))
    assert "is of kind 'encoder', expected a decoder" in refuse("chat", bert)
    assert "is of kind 'seq2seq', expected a decoder" in refuse("chat", "builtin:t5-tiny")
    assert (
        "standard input, line 1: byte 0xff is no UTF-8"
        in piped(b"\xff\n", "chat", save_model(tmp_path / "other", CHATML)).stderr
    )
