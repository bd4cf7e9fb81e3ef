"""Heads beside a base in 16 bits: float32 from the first step to the export, and the run is close to that of a float32 base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from mhr.adapters import read_adapter
from mhr.errors import ConfigError
from mhr.evaluation import load_model, score
from mhr.few_shot import adapt
from mhr.loading import Loading
from mhr.merging import merge
from mhr.runs import RunConfig, RunFolder
from mhr.training import pretrain
from tests.heads.conftest import Recipe

TASKS = ("two", "three", "number")
NEAR = {"bfloat16": 0.03, "float16": 0.004}


def losses(run: RunFolder) -> list[float]:
    return [record["loss"] for record in run.metrics()]


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "no"), ("bfloat16", "bf16"), ("float16", "no")])
def test_the_losses_are_those_of_a_float32_base(dtype: str, precision: str, recipe: Recipe, tmp_path: Path) -> None:
    wide = pretrain(recipe(*TASKS), str(tmp_path / "wide"), progress=False)
    half = pretrain(recipe(*TASKS, dtype=dtype, precision=precision), str(tmp_path / "half"), progress=False)
    assert losses(half) == pytest.approx(losses(wide), rel=NEAR[dtype])
    a, b = (read_adapter(run.adapter).tensors for run in (half, wide))
    assert {tensor.dtype for tensor in a.values()} == {torch.float32}
    # Its initial values are those of the float32 base but for their rounding, and its steps are of the size of lr.
    torch.testing.assert_close(a["modules.classifier.weight"], b["modules.classifier.weight"], rtol=0.02, atol=0.01)
    assert not torch.equal(a["modules.classifier.weight"], a["modules.classifier.weight"].bfloat16().float())


def test_a_run_is_resumed_scored_adapted_and_exported(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mhr.training.trainer import RoutedTrainer

    config = recipe("two", "three", held=("number",), dtype="bfloat16", steps=6, save_every=3)
    whole = pretrain(config, str(tmp_path / "whole"), progress=False)
    step = RoutedTrainer.training_step

    def failing(self: RoutedTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RoutedTrainer, "training_step", failing)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, str(tmp_path / "cut"), progress=False)
    again = pretrain(config, str(tmp_path / "cut"), resume=True, progress=False)
    a, b = read_adapter(again.adapter).tensors, read_adapter(whole.adapter).tensors
    assert all(torch.equal(a[name], b[name]) for name in b)

    model = load_model(whole.path).model
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert torch.equal(model.classifier.weight, b["modules.classifier.weight"])
    said = score(whole.path, part="training", progress=False).predictions
    wide = score(whole.path, part="training", progress=False, loading=Loading(dtype="float32")).predictions
    by_task = {task: [p.scores for p in said if p.task == task] for task in ("two", "three")}
    for p, other in zip(said, wide, strict=True):
        assert p.scores == pytest.approx(other.scores, abs=0.02)
        assert p.scores != [torch.tensor(value).bfloat16().item() for value in p.scores]

    for to in ("model", "peft-lora", "mhr"):
        folder = merge(whole.path, method="task", task="three", to=to, output=tmp_path / to)
        scores = score(folder, tasks=config.tasks, names=["three"], progress=False).predictions
        for p, expected in zip(scores, by_task["three"], strict=True):
            assert p.scores == pytest.approx(expected, abs=0.02), to
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert exported.config.num_labels == 3

    for mode in ("mhr", "z", "mu"):
        (one,) = adapt(str(whole.path), mode=mode, output=str(tmp_path / f"adapted-{mode}"), progress=False)
        assert read_adapter(one.adapter).tensors["modules.classifier.weight"].dtype == torch.float32
        assert score(one.path, progress=False).predictions[0].how == "regression"
    with pytest.raises(ConfigError, match="would be trained in bfloat16"):
        adapt(str(whole.path), mode="full", output=str(tmp_path / "full"), progress=False)
    with pytest.raises(ConfigError, match="would be trained in bfloat16"):
        pretrain(recipe("two", dtype="bfloat16", method="full"), str(tmp_path / "full"), progress=False)


def test_one_kind_of_16_bits_does_not_compute_in_the_other(recipe: Recipe, tmp_path: Path) -> None:
    said = "precision is 'bf16', but the base model is in float16: leave precision out"
    with pytest.raises(ConfigError, match=said):
        pretrain(recipe("two", dtype="float16", precision="bf16"), str(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()
    run = pretrain(recipe("two", held=("three",), dtype="float16"), str(tmp_path / "run"), progress=False)
    with pytest.raises(ConfigError, match=said):
        score(run.path, part="training", precision="bf16", progress=False)


@pytest.mark.parametrize("name", ["roberta", "deberta-v2", "llama"])
def test_architectures_from_training_to_export(name: str, recipe_for: Callable[..., RunConfig], tmp_path: Path) -> None:
    flags = {"head": "classify"} if name == "llama" else {}
    config = recipe_for(name, dtype="bfloat16", **flags)
    wide = pretrain(recipe_for(name, **flags), str(tmp_path / "wide"), progress=False)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    assert losses(run) == pytest.approx(losses(wide), rel=NEAR["bfloat16"])
    stored = read_adapter(run.adapter)
    assert {t.dtype for t in stored.tensors.values() if t.is_floating_point()} == {torch.float32}
    said = score(run.path, part="training", progress=False).predictions
    whole = merge(run.path, method="task", task="three", to="model", output=tmp_path / "model")
    again = score(whole, tasks=config.tasks, names=["three"], progress=False).predictions
    for p, expected in zip(again, [p for p in said if p.task == "three"], strict=True):
        assert p.scores == pytest.approx(expected.scores, abs=0.02)


def test_a_quantised_base_in_16_bits(recipe_for: Callable[..., RunConfig], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = recipe_for("roberta", quantize="8bit", dtype="bfloat16")
    wide = pretrain(recipe_for("roberta", quantize="8bit"), str(tmp_path / "wide"), progress=False)
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    assert losses(run) == pytest.approx(losses(wide), rel=NEAR["bfloat16"])
    assert read_adapter(run.adapter).tensors["modules.classifier.out_proj.weight"].dtype == torch.float32
