"""Runs, evaluations and tables as `mhr` writes them, made without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mhr import attach
from mhr.adapters import save_adapter
from mhr.runs import RunFolder, load_config
from tests.models import randomise, tiny_model

SUITE = ["rev-last", "rev-first", "swap-last", "min-box", "max-box", "min-upper"]


def a_run(folder: Path, method: str = "mhr", tasks: Sequence[str] = SUITE, number: int = 0, **info: Any) -> Path:
    """A finished pretraining run with a random adapter and a falling loss."""
    config = load_config(method=method, model="tiny", tasks="builtin:skills", steps=40)
    assert config.adapter is not None
    model = tiny_model("t5")
    randomise(attach(model, config.adapter, tasks), number)
    run = RunFolder.create(folder)
    described = {
        "kind": "pretrain",
        "mode": None,
        "tasks": list(tasks),
        "parameters": {"trained": 1000 + number, "all": 9000},
    }
    run.start(config, **({"method": method, "base": "tiny", "model_kind": "seq2seq"} | described | info))
    for step in (10, 20, 30, 40):
        run.log(
            {"step": step, "loss": 2.0 / step + 0.01 * number, "lr": 1e-3, "tasks": dict.fromkeys(tasks, 1.0 / step)}
        )
    save_adapter(model, run.adapter, base="tiny")
    run.write(status="done", steps=40)
    return run.path


def adaptations(
    folder: Path,
    values: Mapping[str, Mapping[int, float]],
    mode: str = "z",
    method: str = "mhr",
    shots: Mapping[str, int] | None = None,
) -> Path:
    """Adapted and evaluated runs. values: task -> seed -> score; shots: task -> their number, where that is not 2."""
    runs = []
    for task, seeds in values.items():
        for seed, value in seeds.items():
            path = a_run(
                folder / task / str(seed), method, [task], seed, kind="adapt", mode=mode, seed=seed, shots=[str(i) for i in range((shots or {}).get(task, 2))],
                source=str(folder),
            )  # fmt: skip
            an_evaluation(path / "evaluation", {task: value})
            runs.append({"task": task, "seed": seed, "path": f"{task}/{seed}"})
    (folder / "adapt.json").write_text(json.dumps({"mode": mode, "runs": runs}))
    return folder


def an_evaluation(folder: Path, values: Mapping[str, float], source: str = "builtin:skills", **more: Any) -> Path:
    """What `mhr evaluate --output` writes."""
    folder.mkdir(parents=True)
    measures = {
        task: {"category": task.split("-")[0], "n": 100, "score": value, "exact_match": value, "majority": 0.1}
        for task, value in values.items()
    }
    told = {"model": f"model {folder.parent.name}", "split": "test", "source": source, "tasks": measures}
    (folder / "evaluation.json").write_text(json.dumps(told | more))
    return folder


def rows(file: Path, *content: Mapping[str, Any]) -> Path:
    """A table of scores as JSONL."""
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    return file
