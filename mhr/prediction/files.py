"""Answers into a JSONL file, row by row, so that what is answered stays however the process ends.

    out.jsonl                 a line for each row, in the order of the rows
    out.jsonl.settings.json   what answered them; a resumed file has the same

Rows are answered a few batches at a time, and each line is written whole. A line that a kill or a full disk has cut is dropped by the
next process that resumes the file, which answers the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mhr.data.example import Example
from mhr.errors import ConfigError, DataError
from mhr.evaluation.ranked import in_json
from mhr.files import make_folder, read_json, write_json_atomically, writing
from mhr.locks import locked
from mhr.prediction.predictor import Answer, Predictor
from mhr.prediction.settings import PredictConfig

ROWS_AT_ONCE = {"cpu": 32, "cuda": 1024}
"""Rows that are answered before they are written, by type of device: enough to put rows of like length into one batch."""

UNCHANGED = ("batch_size",)
"""Settings that change no answer, so that a resumed file may have others."""


@dataclass(frozen=True, slots=True)
class Answered:
    """rows: of the file; kept: those that were there already; truncated: inputs among the others that were truncated."""

    rows: int
    kept: int
    truncated: int


def check_answer_file(path: str | Path, *, overwrite: bool = False, resume: bool = False) -> Path:
    """Where answers are to be written. Raises ConfigError where something is there that is neither to be replaced nor resumed, where
    it was not written by `answer_into`, and where it is a folder."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"output {path} is a folder, expected a file such as {path / 'answers.jsonl'}")
    if path.exists():
        if not (overwrite or resume):
            raise ConfigError(
                f"output {path} is there already: choose another, pass --resume to answer the rows that it lacks, or --overwrite"
            )
        if not _settings_file(path).is_file():
            raise ConfigError(
                f"output {path} has no {_settings_file(path).name} beside it, so it was not written by mhr predict: choose another"
            )
    return path


def answer_into(
    path: str | Path,
    predictor: Predictor,
    examples: Sequence[Example],
    config: PredictConfig | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> Answered:
    """Answer all examples and append each as a line of JSON to `path`: id, task, input, answer, how, and choices with scores.

    overwrite  replace what an earlier call left there
    resume     keep the rows that an earlier call has answered, and answer the others. They have to be the first of `examples`, by id,
               task, input, choices and conversation, answered by the same weights with the same settings
    progress   show a progress bar on stderr

    Everything that can be refused is refused before the first row is answered. Raises what `check_answer_file` and
    `Predictor.check_examples` do, and DataError where what is resumed is of other rows or settings.
    """
    config = config or PredictConfig()
    path = check_answer_file(path, overwrite=overwrite, resume=resume)
    with locked(path):
        predictor.check(config)
        predictor.check_examples(examples, config)
        predictor.check_used(examples, config)
        made_with = _made_with(predictor, config)
        kept = _resumed(path, predictor, examples, made_with) if resume and path.exists() else 0
        make_folder(path.parent)
        if kept == 0:
            # In this order a kill leaves no rows beside settings that are not theirs.
            with writing(path):
                path.unlink(missing_ok=True)
            write_json_atomically(_settings_file(path), made_with)
            with writing(path):
                path.touch()
        truncated = 0
        size = ROWS_AT_ONCE.get(predictor.loaded.device.type, ROWS_AT_ONCE["cpu"])
        size = size if config.batch_size is None else max(size, 4 * config.batch_size)
        columns = TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with (
            Progress(*columns, console=Console(stderr=True), disable=not progress) as bar,
            _Lines(path) as lines,
        ):
            job = bar.add_task("predict", total=len(examples), completed=kept)
            for start in range(kept, len(examples), size):
                part = examples[start : start + size]
                try:
                    answers = predictor.answer(part, config, first=start, advance=lambda done: bar.advance(job, done))
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(f"{start} of {len(examples)} rows are answered in {path}.") from None
                lines.write([line_of(e, a) for e, a in zip(part, answers, strict=True)])
                truncated += sum(answer.truncated for answer in answers)
    return Answered(len(examples), kept, truncated)


def line_of(example: Example, answer: Answer) -> dict[str, Any]:
    """An answer as a row of the file; an infinite score, as half precision may give it, is null. Of a conversation there is a digest, as
    a chat template may read more of it than its input in plain words has (calls of tools, who they are by)."""
    found: dict[str, Any] = {"id": example.id, "task": example.task, "input": example.input, "answer": answer.text}
    found |= {"how": answer.how}
    if example.messages or example.tools:
        found |= {"conversation": _digest(example)}
    if answer.scores:
        found |= {"choices": list(answer.choices), "scores": in_json(answer.scores)}
    return found | ({"truncated": True} if answer.truncated else {})


def _digest(example: Example) -> str:
    """What distinguishes a conversation, up to the answer that is asked for, from others."""
    asked = json.dumps([example.messages[:-1], example.tools], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


class _Lines:
    """A file that lines are appended to, each whole or not at all."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> _Lines:
        with writing(self.path):
            self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            with writing(self.path):
                whole = os.fstat(self._handle).st_size
                try:
                    written = 0
                    while written < len(line):
                        written += os.write(self._handle, line[written:])
                except BaseException:  # also Ctrl-C between two parts
                    os.ftruncate(self._handle, whole)
                    raise
        with writing(self.path):
            os.fsync(self._handle)


def _settings_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.settings.json")


def _made_with(predictor: Predictor, config: PredictConfig) -> dict[str, Any]:
    loaded = predictor.loaded
    settings = {name: value for name, value in config.to_dict().items() if name not in UNCHANGED}
    return {
        "model": loaded.description,
        "weights": predictor.weights,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "chat_template": loaded.chat.template,
        "system": loaded.chat.system,
        **settings,
    }


def _resumed(path: Path, predictor: Predictor, examples: Sequence[Example], made_with: dict[str, Any]) -> int:
    """How many rows the file holds; what a kill has left of one is dropped. Raises DataError where they are others."""
    before = read_json(_settings_file(path), DataError)
    for name in made_with:
        if before.get(name) != made_with[name]:
            how = f"with {name} {before.get(name)!r:.80}, and now it is {made_with[name]!r:.80}"
            if name == "weights":
                how = f"by other weights of {made_with['model']} (of a run that was trained again, another base model, revision or quantisation)"
            raise DataError(
                f"{path} was written {how}: leave --resume out and choose another --output, or pass --overwrite"
            )
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].split(b"\n")[:-1]
    if len(lines) > len(examples):
        raise DataError(
            f"{path} has {len(lines)} rows, more than the {len(examples)} that are asked: choose another --output"
        )
    for number, (line, example) in enumerate(zip(lines, examples, strict=False), 1):
        try:
            row = json.loads(line)
            found = {name: row[name] for name in ("id", "task", "input")}
            found |= {"choices": sorted(row.get("choices", ())), "conversation": row.get("conversation")}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: no row of mhr predict: the file was edited or is damaged") from None
        asked: dict[str, Any] = {"id": example.id, "task": example.task, "input": example.input}
        asked |= {"choices": sorted(predictor.options(example)), "conversation": None}
        if example.messages or example.tools:
            asked["conversation"] = _digest(example)
        for name, one in found.items():
            other = asked[name]
            if one != other:
                raise DataError(
                    f"{path}:{number}: this row has {name} {one!r:.80}, and now it is {other!r:.80}: resume with the same input, or choose another "
                    "--output"
                )
    if whole < len(content):
        with writing(path):
            os.truncate(path, whole)
    return len(lines)
