"""Everything that can be evaluated is loaded for what it is; everything else is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mhr
from mhr.adapters import save_adapter
from mhr.data import Example
from mhr.errors import CheckpointError, ConfigError, MhrError, TaskError
from mhr.evaluation import load_model, rank_choices
from mhr.few_shot import adapt
from mhr.merging import merge
from mhr.runs import load_config
from mhr.training import pretrain
from tests.models import randomise, tiny_model
from tests.tokenizers import make_word_tokenizer

EXAMPLE = Example("alpha", "w1 w2", ("w3",), ("w3", "w4 w5"), "x")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain transformers folder: tiny T5 and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model("t5").save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """An adapter checkpoint with two tasks, and its scores of EXAMPLE."""
    model = tiny_model("t5")
    randomise(mhr.attach(model, mhr.AdapterConfig(n_heads=4, n_skills=3, rank=2), ["alpha", "beta"]))
    return save_adapter(model, base.parent / "adapter", base=str(base))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the built-in suite, and its adaptation to one task."""
    folder = tmp_path_factory.mktemp("runs")
    config = load_config(preset="demo", steps=2, batch_size=2, max_per_task=2)
    pretrain(config, str(folder / "run"), progress=False)
    adapt(
        str(folder / "run"),
        ["sort-last"],
        mode="z",
        output=str(folder / "adapted"),
        shots=2,
        seeds=[1],
        steps=1,
        progress=False,
    )
    return folder


def scores(path: Path | str, **settings: str) -> list[float]:
    return rank_choices(load_model(path, **settings), [EXAMPLE])[0].scores


def test_a_plain_folder(base: Path) -> None:
    loaded = load_model(base)
    assert (loaded.kind, loaded.routed, loaded.trained_with) == ("seq2seq", False, None)
    assert not loaded.model.training
    torch.testing.assert_close(loaded.model.state_dict(), tiny_model("t5").state_dict())


def test_a_built_in_model() -> None:
    assert load_model("builtin:t5-tiny").kind == "seq2seq"
    with pytest.raises(ConfigError, match="unknown built-in model 'builtin:t5-tinny': did you mean 'builtin:t5-tiny'"):
        load_model("builtin:t5-tinny")


def test_an_adapter_is_routed_by_task(base: Path, adapter: Path) -> None:
    loaded = load_model(adapter)
    assert loaded.routed
    assert loaded.bank is not None
    assert loaded.bank.tasks == ["alpha", "beta"]
    assert scores(adapter) != pytest.approx(scores(base), abs=1e-4)
    assert scores(adapter) != pytest.approx(scores(adapter, task="beta"), abs=1e-4)
    assert scores(adapter, base=str(base)) == scores(adapter)
    with pytest.raises(TaskError, match="unknown task 'betta': did you mean 'beta'"):
        load_model(adapter, task="betta")
    with pytest.raises(ConfigError, match=r"task is 'beta', but .* routes no tasks"):
        load_model(base, task="beta")


def test_merged_forms_give_the_scores_of_the_task(base: Path, adapter: Path, tmp_path: Path) -> None:
    expected = pytest.approx(scores(adapter), abs=1e-5)
    for form in ("mhr", "peft-lora", "model"):
        folder = merge(str(adapter), method="task", task="alpha", to=form, output=str(tmp_path / form))
        assert scores(folder) == expected
    assert load_model(tmp_path / "peft-lora").kind == "seq2seq"


def test_a_run_and_an_adapted_run(run: Path) -> None:
    loaded = load_model(run / "run")
    assert loaded.routed
    assert loaded.trained_with == (32, 16)
    assert loaded.description == f"{run / 'run'} (pretrain mhr)"
    adapted = load_model(run / "adapted" / "sort-last" / "1")
    assert adapted.bank is not None
    assert adapted.bank.tasks == ["sort-last"]
    assert adapted.description.endswith("(adapt z)")
    with pytest.raises(
        CheckpointError, match=r"adapted holds adaptations, not a run: name one of them, such as .*sort-last/1"
    ):
        load_model(run / "adapted")


def test_settings_that_do_not_fit(base: Path, adapter: Path) -> None:
    with pytest.raises(ConfigError, match="names a whole model, not an adapter: leave base out"):
        load_model(base, base="builtin:t5-tiny")
    with pytest.raises(ConfigError, match="kind is 'causal', but .* is of kind 'seq2seq'"):
        load_model(adapter, kind="causal")
    with pytest.raises(CheckpointError, match="belongs to another base model"):
        load_model(adapter, base="builtin:t5-tiny")


def test_nothing_to_load(tmp_path: Path) -> None:
    expected = (
        r"expected a run \(run.json\), an adapter \(mhr_config.json or adapter_config.json\) or a model \(config.json\)"
    )
    with pytest.raises(CheckpointError, match=f"no model at {tmp_path}/none: there is no such folder; {expected}"):
        load_model(tmp_path / "none")
    with pytest.raises(CheckpointError, match=f"no model at {tmp_path}: the folder holds nothing; {expected}"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="the folder holds notes.txt"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="it is a file"):
        load_model(tmp_path / "notes.txt")


@pytest.mark.parametrize("kept", ["mhr_config.json", "mhr_adapter.safetensors"])
def test_a_file_that_is_cut(adapter: Path, tmp_path: Path, kept: str) -> None:
    for file in adapter.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data if file.name == kept else data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"truncated|no valid JSON"):
        load_model(tmp_path)


def test_a_model_that_is_cut(base: Path, tmp_path: Path) -> None:
    for file in base.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    with pytest.raises(MhrError, match="cannot load model") as raised:
        load_model(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_unfinished_run(run: Path, tmp_path: Path) -> None:
    text = (run / "run" / "run.json").read_text().replace('"done"', '"running"')
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "config.yaml").write_text((run / "run" / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="is not done"):
        load_model(tmp_path)
