"""The main job on a language model: one bank on chat tasks, a new task from a few examples, shipped as one plain LoRA.

demo_llm.json   the table, the samples, and the settings they were made with
pretrain        the run
adapt           the adapted run
peft-lora       the adapted run as a folder that PEFT loads by itself
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.data import load_tasks
from mhr.errors import TrainingError
from mhr.evaluation import evaluate, load_model
from mhr.evaluation.generation import generate_answers
from mhr.few_shot import adapt
from mhr.few_shot.adapting import check_said
from mhr.files import make_folder, prepare_output, read_json, write_json_atomically
from mhr.locks import one_writer
from mhr.merging import merge
from mhr.runs import load_config
from mhr.runs.config import to_dict
from mhr.runs.run import clear
from mhr.runs.settings import paths_read
from mhr.training import pretrain

TASK = "city-record"
"""The task that the bank never saw."""

MODE = "mhr"

BASE, UNIFORM, ADAPTED = "base model", "bank, uniform weights", "adapted, merged into a LoRA"
LLM_DEMO_FILE = "demo_llm.json"


@dataclass
class LlmDemoResult:
    """What the demo found.

    path      where everything was written
    shots     examples of the task that the adaptation learned from
    scores    model -> {"exact_match", "rouge_l"}, 0 to 1, on test examples of the task
    samples   prompts of the task: {"input", "expected", "before": of the base model, "after": of the LoRA}
    trained   parameters trained by pretraining and by adapting
    """

    path: Path
    shots: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    trained: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return dataclasses.asdict(self) | {"path": str(self.path), "task": TASK}


@one_writer
def run_demo_llm(
    output: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    overrides: Sequence[str] = (),
    limit: int | None = 50,
    samples: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> LlmDemoResult:
    """Run the demo-llm preset into `output`.

    resume      go on where an earlier demo in `output` ended
    overrides   settings over the preset's ("train.steps=50")
    limit       test examples that are scored; None takes all 100
    samples     prompts whose answers are kept, before and after
    say         gets one line as each part begins

    Raises MhrError as `pretrain` and `adapt` do, TrainingError where `output` was made with other settings.
    """
    folder = Path(output)
    config = load_config(preset="demo-llm", overrides=overrides)
    check_said(overrides, [(MODE, config)])
    made_with = {"config": to_dict(config), "limit": limit, "samples": samples}
    result = LlmDemoResult(folder, config.adapt.shots)
    if resume and (folder / LLM_DEMO_FILE).is_file():
        found = read_json(folder / LLM_DEMO_FILE, TrainingError)
        if found.get("made_with") != made_with:
            raise TrainingError(f"{folder} was made with other settings: choose another --output, or pass --overwrite")
        result = dataclasses.replace(result, **{key: found[key] for key in ("scores", "samples", "trained")})
        if found["status"] == "done":
            return result
    else:
        prepare_output(folder, overwrite, paths_read(config))
        clear(make_folder(folder))
        _write(result, made_with, "running")
    collection = load_tasks(config.tasks).select([TASK])
    shown = collection[TASK].test[:samples]
    say(f"Pretraining one bank on the training tasks of {config.tasks}")
    run = pretrain(config, str(folder / "pretrain"), resume=True, progress=progress)
    say(f"Adapting it to {TASK}, a task it never saw, from {result.shots} examples")
    (adapted,) = adapt(str(run.path), [TASK], mode=MODE, output=str(folder / "adapt"), resume=True, progress=progress)
    result.trained = {"pretrain": run.info["parameters"]["trained"], "adapt": adapted.info["parameters"]["trained"]}
    lora = folder / "peft-lora"
    merge(adapted.path, to="peft-lora", output=lora, overwrite=True)
    answers: dict[str, list[str]] = {}
    for name, path in ((BASE, config.model), (UNIFORM, run.path), (ADAPTED, lora)):
        say(f"Evaluating on {TASK}: {name}")
        loaded = load_model(path)
        read, answered = config.data.max_input_length, config.data.max_target_length
        scored = evaluate(
            loaded, collection, limit=limit, max_input_length=read, max_target_length=answered, progress=False
        ).tasks[TASK]
        result.scores[name] = {metric: scored[metric] for metric in ("exact_match", "rouge_l")}
        generated = generate_answers(loaded, shown, max_input_length=read, max_new_tokens=answered)
        answers[name] = [answer.text for answer in generated]
    result.samples = [
        {"input": example.input, "expected": example.targets[0], "before": before, "after": after}
        for example, before, after in zip(shown, answers[BASE], answers[ADAPTED], strict=True)
    ]
    _write(result, made_with, "done")
    return result


def _write(result: LlmDemoResult, made_with: dict[str, Any], status: str) -> None:
    write_json_atomically(result.path / LLM_DEMO_FILE, {"status": status, "made_with": made_with, **result.to_dict()})
