"""Score whatever lies at a path, as `mhr evaluate` does: find out what it is judged on, load it, ask it, and keep the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mhr.adapters import is_adapter, is_peft
from mhr.evaluation.evaluate import evaluate
from mhr.evaluation.inference import Inference
from mhr.evaluation.loading import check_model, load_model
from mhr.evaluation.result import EvaluationResult
from mhr.evaluation.scope import tasks_to_judge
from mhr.files import make_folder, prepare_output
from mhr.runs.run import RUN_FILE


def score(
    path: str | Path,
    *,
    tasks: str | None = None,
    names: Sequence[str] | None = None,
    part: str | None = None,
    overrides: Sequence[str] = (),
    base: str | None = None,
    kind: str | None = None,
    route_as: str | None = None,
    trust_remote_code: bool = False,
    inference: Inference | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> EvaluationResult:
    """The scores of the run, adapter or model at `path`.

    tasks, names, part, overrides             what it is judged on, see `tasks_to_judge`
    base, kind, route_as, trust_remote_code   see `load_model`, whose `task` is `route_as`
    inference, settings                       see `evaluate`
    output                                    folder for evaluation.json, the scores, and predictions.jsonl, every answer

    Raises what these raise, MhrError where nothing can be written to `output`; nothing is written before all is scored.
    """
    check_target(path)
    inference = inference or Inference()
    if output is not None:
        prepare_output(output, overwrite)
    collection = tasks_to_judge(path, tasks=tasks, names=names, part=part, overrides=overrides)
    loaded = load_model(path, base=base, kind=kind, task=route_as, trust_remote_code=trust_remote_code)
    result = evaluate(loaded, collection, inference=inference, **settings)
    if output is not None:
        folder = make_folder(output)
        result.write_predictions(folder / "predictions.jsonl")
        result.write(folder / "evaluation.json")
    return result


def check_target(path: str | Path) -> None:
    """Raise CheckpointError, naming the path, where nothing that could be evaluated lies there."""
    folder = Path(path)
    found = any((folder / name).is_file() for name in (RUN_FILE, "adapt.json"))
    if not found and not str(path).startswith("builtin:") and not is_adapter(folder) and not is_peft(folder):
        check_model(str(path))
