"""The folder of a run: what was asked for, how it went, and what came out.

run.json        kind (pretrain, adapt), method, mode, status (running, done, interrupted, failed), base model, tasks,
                versions, resolved settings
config.yaml     the resolved settings, ready for `--config`
metrics.jsonl   one line per log: step, loss, learning rates, loss per task; and one per validation: step, validation
logs/           the same for TensorBoard
checkpoints/    checkpoint-N, resumable
best/           step-N while it runs, weights of the best validations, where those are kept
adapter/        the result: an adapter checkpoint ...
model/          ... or, where all weights were trained, a transformers model with its tokenizer
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from mhr import __version__
from mhr.errors import CheckpointError, ConfigError
from mhr.files import (
    INDEX_FILE,
    OUTPUT_MARKS,
    held_in,
    make_folder,
    prepare_output,
    read_json,
    write_json_atomically,
    write_text_atomically,
    writing,
)
from mhr.runs.config import dump_config, load_config, to_dict
from mhr.runs.settings import RunConfig
from mhr.task_heads import RANK

RUN_FILE = "run.json"


class RunFolder:
    """One run on disk. `create` starts one, `open` reads one; `info` is what run.json holds."""

    def __init__(self, path: str | Path, info: dict[str, Any]):
        self.path = Path(path)
        self.info = info

    @classmethod
    def check(
        cls,
        path: str | Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        reads: Iterable[str | Path | None] = (),
    ) -> None:
        """Raise MhrError where `create` would refuse, or would delete something of `reads`, without touching anything."""
        path = Path(path)
        if resume and held_in(path):
            cls.open(path)
        else:
            prepare_output(path, overwrite, reads)

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False, resume: bool = False) -> RunFolder:
        """The folder for a run, made if it is missing.

        overwrite   what an earlier run left there is deleted
        resume      an earlier run there is opened; a folder that is missing or empty starts a new run

        Raises MhrError for a folder that is not empty (without either), for one that is not a run folder, and for one that
        cannot be written.
        """
        cls.check(path, overwrite=overwrite, resume=resume)
        path = make_folder(path)
        if resume and held_in(path):
            return cls.open(path)
        clear(path)
        return cls(path, {})

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder. Raises CheckpointError where there is none."""
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"no run at {path}: there is no such folder")
        if (path / RUN_FILE).is_file():
            return cls(path, read_json(path / RUN_FILE, CheckpointError))
        if (path / "adapt.json").is_file():
            runs = [run["path"] for run in read_json(path / "adapt.json", CheckpointError).get("runs", [])]
            raise CheckpointError(
                f"{path} holds adaptations, not a run: name one of them, such as {path / (runs or ['TASK/SEED'])[0]}"
            )
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:4]) or "nothing"
        raise CheckpointError(f"no run at {path}: {RUN_FILE} is missing (the folder holds {held})")

    @classmethod
    def open_pretrained(cls, path: str | Path) -> RunFolder:
        """The run in a folder, which trained on many tasks. Raises CheckpointError where there is none, ConfigError for an adaptation."""
        run = cls.open(path)
        if run.info.get("kind") == "adapt":
            raise ConfigError(f"{path} is an adaptation to a task: expected a run of mhr pretrain")
        return run

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def status(self) -> str:
        return self.info.get("status", "new")

    def result(self) -> Path:
        """The folder of what the run trained. Raises CheckpointError where the run has not come to its end."""
        for folder in (self.adapter, self.model):
            if folder.is_dir() and self.status == "done":
                return folder
        raise CheckpointError(f"run {self.path} is not done (status {self.status!r}): finish it with --resume")

    def fingerprint(self) -> str:
        """What distinguishes the run from another one at the same place: the digest of its description, which holds that of its weights."""
        file = next(f for f in (self.adapter / "mhr_config.json", self.path / RUN_FILE) if f.is_file())
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]

    def config(self) -> RunConfig:
        """The resolved settings of the run."""
        file = self.path / "config.yaml"
        if not file.is_file() and "config" in self.info:  # a kill came before it was written
            write_text_atomically(file, yaml.safe_dump(self.info["config"], sort_keys=False, allow_unicode=True))
        config = load_config(file)
        if "head" not in self.info.get("config", {"head": None}) and self.info.get("model_kind") == "encoder":
            config.head = RANK  # the first release had no other
        return config

    def start(self, config: RunConfig, **info: Any) -> None:
        """Write what is known before the first step."""
        self.info.pop("error", None)  # which ended it before it was resumed
        # First the file that marks a run: a folder without it is left alone, also by a resumed run after a kill.
        self.write(status="running", **info, versions=versions(), config=to_dict(config))
        write_text_atomically(self.path / "config.yaml", dump_config(config))

    def write(self, **changes: Any) -> None:
        """Change what run.json says."""
        self.info |= changes
        write_json_atomically(self.path / RUN_FILE, self.info)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the metrics."""
        with writing(self.metrics_file), open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the metrics about training, in their order."""
        return [record for record in self._lines() if "validation" not in record]

    def validations(self) -> dict[int, dict[str, Any]]:
        """Step -> what a validation found: loss and score, means over tasks (score None without choices), and losses and scores by
        task."""
        return {record["step"]: record["validation"] for record in self._lines() if "validation" in record}

    def _lines(self) -> list[dict[str, Any]]:
        """The lines of the metrics, without one that a kill has cut."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text("utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run will repeat."""
        kept = [record for record in self._lines() if record["step"] <= step]
        write_text_atomically(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))


def clear(folder: Path) -> None:
    """Delete what a folder holds; what marks it as an output goes last, since a folder without a mark is left alone, also after a kill."""
    marks = *OUTPUT_MARKS, INDEX_FILE
    with writing(folder):
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name in marks):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    found = {name: metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    return {"mhr": __version__, "python": platform.python_version(), **found}
