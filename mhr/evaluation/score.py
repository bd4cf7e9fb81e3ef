"""Score the model at a path, as `mhr evaluate` does: find its tasks, load it, generate or rank, and keep the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mhr.adapters import is_adapter, is_peft
from mhr.data.chat_format import PLAIN, ChatFormat
from mhr.errors import ConfigError
from mhr.evaluation.evaluate import evaluate
from mhr.evaluation.fold_bank import fold_bank
from mhr.evaluation.harness import Asking, ask, find_tasks
from mhr.evaluation.inference import Inference
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.loading import check_model, load_model
from mhr.evaluation.result import EvaluationResult
from mhr.evaluation.scope import tasks_to_judge
from mhr.files import make_folder, prepare_output, write_json_atomically
from mhr.loading import Loading
from mhr.locks import locked
from mhr.runs.run import RUN_FILE


def score(
    path: str | Path,
    *,
    tasks: str | None = None,
    names: Sequence[str] | None = None,
    part: str | None = None,
    overrides: Sequence[str] = (),
    on_bad_row: str | None = None,
    prompt: str | None = None,
    verbalizers: Mapping[str, str] | None = None,
    base: str | None = None,
    kind: str | None = None,
    route_as: str | None = None,
    loading: Loading | None = None,
    inference: Inference | None = None,
    chat_template: str | None = None,
    system: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> EvaluationResult:
    """The scores of the run, adapter or model at `path`.

    tasks, names, part, overrides, on_bad_row, prompt, verbalizers    what it is judged on, see `tasks_to_judge`
    base, kind, route_as, loading   see `load_model`, whose `task` is `route_as`
    inference, settings                       see `evaluate`
    chat_template, system                     see `mhr.data.chat_format.ChatFormat`; None: as the model was trained
    output                                    folder for evaluation.json, the scores, and predictions.jsonl, every answer

    Raises what these raise, MhrError where nothing can be written to `output`; nothing is written before all is scored.
    """
    check_target(path)
    inference = inference or Inference()
    if output is not None:
        prepare_output(output, overwrite)
    with locked(output):
        collection = tasks_to_judge(
            path,
            tasks=tasks,
            names=names,
            part=part,
            overrides=overrides,
            on_bad_row=on_bad_row,
            prompt=prompt,
            verbalizers=verbalizers,
        )
        judged = [example for task in collection.values() for example in task.split(settings.get("split", "test"))]
        if kind is None and _is_plain(path) and any(example.pieces for example in judged):
            kind = "masked"  # the prompt asks for it, as it does in training
        loaded = load_model(path, base=base, kind=kind, task=route_as, loading=loading)
        loaded.chat = told(loaded.chat, chat_template, system)
        rendered = any(map(loaded.renders, judged))
        check_turns(loaded, system, rendered, "rows")
        result = evaluate(loaded, collection, inference=inference, **settings)
        if output is not None:
            folder = make_folder(output)
            result.write(folder / "evaluation.json")  # first, as it marks the folder as an output
            result.write_predictions(folder / "predictions.jsonl")
    return result


def score_in_harness(
    path: str | Path,
    names: Sequence[str],
    *,
    include: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    route_as: str | None = None,
    base: str | None = None,
    kind: str | None = None,
    loading: Loading | None = None,
    chat_template: str | None = None,
    system: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    **asked: Any,
) -> dict[str, Any]:
    """What the lm-evaluation-harness says of the run, adapter or model at `path` on its tasks `names`, see `evaluate_in_harness`; a
    bank is folded into the weights first, see `fold_bank`.

    output  folder for harness.json, which keeps it
    asked   settings of `mhr.evaluation.harness.Asking`
    chat_template, system  see `score`

    That the harness is installed and knows the tasks is checked before anything is loaded. Raises what these raise.
    """
    check_target(path)
    if output is not None:
        prepare_output(output, overwrite)
    with locked(output):
        how = Asking(**asked)
        manager = find_tasks(names, include)
        loaded = load_model(path, base=base, kind=kind, task=route_as, loading=loading)
        loaded.chat = told(loaded.chat, chat_template, system)
        check_turns(loaded, system, loaded.chat.chosen, "questions of the harness")
        routing = fold_bank(loaded)
        found = ask(loaded, names, manager, limit, batch_size, how, routing)
        if output is not None:
            write_json_atomically(make_folder(output) / "harness.json", found)
    return found


def told(chat: ChatFormat, template: str | None, system: str | None) -> ChatFormat:
    """A format with the template and the system turn that are given; without a template nothing of turns is kept."""
    if template == PLAIN:
        return ChatFormat(PLAIN, system=system)
    return replace(chat, template=template or chat.template, system=chat.system if system is None else system)


def check_turns(loaded: LoadedModel, system: str | None, rendered: bool, what: str) -> None:
    """Raise ConfigError for a chat template that the model or its tokenizer has no use for, and for a system turn that was asked for
    where no template renders what the model is asked."""
    loaded.collator(*loaded.lengths())  # which refuses such a template
    if system is not None and not rendered:
        raise ConfigError(
            f"system is {system!r:.60}, but no chat template renders the {what}, and plain text has no turns: leave it out, or say "
            "--chat-template auto"
        )


def check_target(path: str | Path) -> None:
    """Raise CheckpointError, naming the path, where nothing that could be evaluated lies there."""
    if _is_plain(path) and not str(path).startswith("builtin:"):
        check_model(str(path))


def _is_plain(path: str | Path) -> bool:
    """Whether a path names a model alone, no run and no adapter, which know what they were trained to do."""
    folder = Path(path)
    held = any((folder / name).is_file() for name in (RUN_FILE, "adapt.json"))
    return not held and not is_adapter(folder) and not is_peft(folder)
