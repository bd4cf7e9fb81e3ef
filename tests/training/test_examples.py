"""Every recipe in examples/ runs: as it is written, but on a tiny model, tiny tasks and few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mhr.few_shot import adapt
from mhr.runs import load_config
from mhr.training import pretrain

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
TINY = {"t0": "t5", "superni": "t5", "demo": "t5", "crossfit": "bart", "encoder-ranking": "bert", "decoder": "llama"}


def test_there_are_at_most_six_recipes() -> None:
    assert sorted(TINY) == [file.stem for file in EXAMPLES]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_a_recipe_runs(file: Path, backbone: Callable[..., str], tasks_file: Path, tmp_path: Path) -> None:
    recipe = load_config(file)
    config = load_config(
        file,
        model=backbone(TINY[file.stem]),
        tasks=str(tasks_file),
        steps=2,
        save_every=2,
        log_every=1,
        n_heads=min(recipe.adapter.n_heads, 2),
        **{"data.max_input_length": min(recipe.data.max_input_length, 64), "data.column_map": {}, "adapt.steps": 1},
    )
    assert (config.method, config.train.optimizer, config.adapter.rank) == (
        recipe.method,
        recipe.train.optimizer,
        recipe.adapter.rank,
    )
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    (adapted, *_) = adapt(
        str(run.path), ["next-first"], mode="mhr", shots=8, seeds=[1], output=str(tmp_path / "new"), progress=False
    )
    assert run.status == adapted.status == "done"
