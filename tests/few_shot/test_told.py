"""What run.json tells of an adaptation: the same of each mode by each protocol, and true of what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mhr.adapters import collapse, read_adapter
from mhr.few_shot import adapt
from mhr.few_shot.lorahub import Hub
from mhr.methods import MODES
from mhr.runs import RunFolder
from tests.few_shot.test_idle_settings import TASK, USED

KEYS = {
    *("status", "kind", "method", "mode", "base", "model_kind", "source", "tasks", "seed", "protocol", "selection", "shots", "data"),
    *("head", "parameters", "versions", "config", "steps", "truncated", "memory"),
}  # fmt: skip
CHOICES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "best step, refit": {"select": "best", "eval_every": 1},
    "best step of dev shots": {"select": "best", "eval_every": 1, "dev_shots": 4},
    "stopped early": {"patience": 1, "eval_every": 1, "dev_shots": 4},
    "grid, refit": {"grid": {"steps": [2, 3]}},
    "grid on dev shots": {"grid": {"steps": [2, 3]}, "dev_shots": 4},
    "paper": {"protocol": "paper"},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("mode", USED)
def test_run_json_has_the_same_keys(mode: str, choice: str, source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    few, run = CHOICES[choice], source(USED[mode])
    (made,) = adapt(str(run.path), [TASK], mode=mode, output=str(tmp_path / "out"), progress=False, **few)
    told = json.loads((made.path / "run.json").read_text())
    assert set(told) == KEYS | ({"found"} if MODES[mode].searches else set())
    assert told["protocol"] == few.get("protocol", "held-out")
    chosen = told["selection"]
    assert (chosen is None) == (not few)
    assert told["steps"] == (chosen["trials"][chosen["chosen"]]["step"] if chosen else 4)
    assert made.metrics()[-1]["step"] >= told["steps"]
    if MODES[mode].searches:
        weights = told["found"]["weights"]
        hub = Hub.draw(run, None, 20, 13)
        assert list(weights) == hub.names
        plain = collapse(read_adapter(made.adapter), None)
        for name, layer in plain.layers.items():
            for factor, key in ((layer.a, "bank_a"), (layer.b, "bank_b")):
                stated = sum(w * part.double() for w, part in zip(weights.values(), hub.layers[name][key], strict=True))
                assert (factor.double() - stated.reshape(factor.shape)).abs().max() < 1e-5
