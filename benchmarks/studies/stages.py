"""A study on disk, stage by stage: what is done is kept in a file, so an interrupted study is taken up by the same command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import transformers

from mhr.data import TaskCollection
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt
from mhr.files import make_folder, read_json, write_json_atomically, write_text_atomically
from mhr.loading import Loading
from mhr.runs import RunFolder
from mhr.runs.run import versions

from ..measure import machine

Result = TypeVar("Result")
Rates = Mapping[str, Sequence[float]]

STATE = "state.json"
"""The file that holds a state, in the folder of what it is of."""


class Stages:
    """What a study has done so far.

    output  its folder; one that holds a study of something else is refused
    asked   what the study is: anything that JSON can hold
    state   `asked`, and what was found: "seconds" and "cpu_seconds" of each stage, "scores" (row -> task -> seed -> measures; seed "None" where
            nothing is drawn), "runs" (name -> what is to be known of a run)
    """

    def __init__(self, output: Path, asked: dict[str, Any]):
        self.output = make_folder(output)
        path = output / STATE
        asked = json.loads(json.dumps(asked))
        self.state = read_json(path) if path.is_file() else asked | {"seconds": {}, "scores": {}, "runs": {}}
        if any(self.state.get(key) != value for key, value in asked.items()):
            raise SystemExit(f"{output} holds another study: choose another --output, or the same flags")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def timed(self, stage: str, work: Callable[[], Result]) -> Result:
        """The result of `work`. Its wall and CPU time are kept when it first ends; of work that was interrupted, that of the rest."""
        start, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.state["seconds"].setdefault(stage, time.perf_counter() - start)
        self.state.setdefault("cpu_seconds", {}).setdefault(stage, time.process_time() - cpu)
        self.save()
        return result

    def score(
        self,
        row: str,
        path: str | Path,
        tasks: TaskCollection,
        seed: int | None,
        *,
        loading: Loading | None = None,
        **settings: Any,
    ) -> None:
        """Evaluate the model at `path` and keep the measures of each task, unless that is done.

        loading   how its base is loaded; None: as `load_model` does by itself
        settings  of `evaluate`
        """
        missing = self._missing(row, tasks, seed)
        if not missing:
            return
        found = self.state["scores"].setdefault(row, {})
        start, cpu = time.perf_counter(), time.process_time()
        result = evaluate(load_model(path, loading=loading), tasks.select(missing), progress=seed is None, **settings)
        for name, measures in result.tasks.items():
            found.setdefault(name, {})[str(seed)] = measures
        taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        for clock, seconds in taken.items():
            known = self.state.setdefault(clock, {})
            known[f"evaluate {row}"] = known.get(f"evaluate {row}", 0.0) + seconds
        self.save()

    def adapt(self, row: str, run: RunFolder, mode: str, tasks: TaskCollection, seed: int, **settings: Any) -> None:
        """Adapt a run to each of the tasks, and keep the measures of what came out as `row`, unless that is done. settings: of `adapt`."""
        missing = self._missing(row, tasks, seed)
        if not missing:
            return
        folder = self.output / "adapted" / row.replace(", ", "-").replace(" ", "-")
        given = {"mode": mode, "output": str(folder), "seeds": [seed], "resume": True, "progress": False, **settings}
        runs = self.timed(f"adapt {row}", partial(adapt, str(run.path), missing, **given))
        self.keep(f"adapted {row}", runs[0])
        for one in runs:
            self.score(row, one.path, tasks.select(one.info["tasks"]), seed)

    def _missing(self, row: str, tasks: TaskCollection, seed: int | None) -> list[str]:
        """The tasks that have no score yet."""
        found = self.state["scores"].get(row, {})
        return [name for name in tasks if str(seed) not in found.get(name, {})]

    def keep(self, name: str, run: RunFolder) -> None:
        """What a table says of a run."""
        info = {key: run.info[key] for key in ("parameters", "examples", "truncated", "steps") if key in run.info}
        self.state["runs"][name] = info | {"tasks": len(run.info["tasks"])}

    def finish(self, rates: Rates) -> None:
        """Say that all is done. rates: those that were asked for, by row."""
        self.state["done"] = {row: list(tried) for row, tried in rates.items()}
        self.save()

    def save(self) -> None:
        write_json_atomically(self.output / STATE, self.state)

    def publish(
        self, results: Path, name: str, command: str, table: Callable[[dict[str, Any]], str], **more: Any
    ) -> str:
        """Write NAME.json, with machine and versions, and NAME.md into `results`; returns the table."""
        record = {"command": command, **more, "machine": machine(), "versions": versions(), **self.state}
        text = table(record)
        results.mkdir(parents=True, exist_ok=True)
        write_json_atomically(results / f"{name}.json", record)
        write_text_atomically(results / f"{name}.md", text)
        return text


class Piece(Protocol):
    """What a study does at a time. folder: of its Stages; rates: those that are asked of it by row, where it tries some."""

    @property
    def folder(self) -> str: ...

    @property
    def rates(self) -> Rates: ...


SomePiece = TypeVar("SomePiece", bound=Piece)


def states_of(pieces: Iterable[SomePiece], output: Path) -> dict[SomePiece, dict[str, Any]]:
    """The states of the pieces that are done, with all rates that are asked of them."""
    files = {piece: output / piece.folder / STATE for piece in pieces}
    states = {piece: read_json(file) for piece, file in files.items() if file.is_file()}
    return {piece: state for piece, state in states.items() if _is_done(state, piece.rates)}


def _is_done(state: Mapping[str, Any], rates: Rates) -> bool:
    done = state.get("done")
    return done is not None and all(set(tried) <= set(done.get(row, ())) for row, tried in rates.items())
