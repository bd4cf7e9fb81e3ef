"""Few-shot adaptation: what each mode loads and trains, the shots, and what lands where."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mhr.adapters import load_checkpoint, read_adapter
from mhr.data import Example, Task
from mhr.data.collators import Seq2SeqCollator
from mhr.errors import ConfigError, DataError, MhrError, TaskError, TrainingError
from mhr.few_shot import adapt, adaptation
from mhr.few_shot.adapting import ADAPT_FILE
from mhr.few_shot.shots import draw_shots
from mhr.few_shot.starts import load_start
from mhr.loading import Loading
from mhr.merging import merge_uniform
from mhr.runs import RunFolder
from mhr.runs.settings import RunConfig
from mhr.sweeps import sweep
from mhr.training import pretrain
from mhr.training.feeding import Feed
from mhr.training.trainer import RoutedTrainer

Make = Callable[..., RunConfig]
TASKS = ["next-first", "swap-last"]


def changed(run: RunFolder, first: dict[str, Tensor]) -> set[str]:
    """Kinds of tensors (layers, routers, modules) that differ from `first`."""
    tensors = read_adapter(run.adapter).tensors
    return {name.partition(".")[0] for name, t in tensors.items() if not torch.equal(t, first[name])}


@pytest.mark.parametrize(
    ("method", "mode", "trained"),
    [
        ("mhr", "mhr", {"layers", "routers"}),
        ("poly", "poly", {"layers", "routers"}),
        ("mhr", "z", {"routers"}),
        ("mhr", "mu", {"layers"}),
        ("mhr", "random", {"layers", "routers"}),
        ("lora", "lora", {"layers"}),
        ("lora", "mu", {"layers"}),
        ("private", "mu", {"layers"}),
        ("ia3", "lora", {"layers"}),
        ("poly-ia3", "mu", {"layers"}),
        ("poly-ia3", "z", {"routers"}),
    ],
)
def test_a_mode_trains_what_it_says_and_lowers_the_loss(
    method: str, mode: str, trained: set[str], source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    start = load_start(source(method), source(method).config(), mode)
    start.begin(TASKS[0], 13)
    first = {name: t.clone() for name, t in start.bank.tensors().items()}
    runs = adapt(
        str(source(method).path),
        TASKS[:1],
        mode=mode,
        output=str(tmp_path / "out"),
        steps=12,
        progress=False,
        **({"router_lr": 0.5} if "routers" in trained else {}),
    )
    assert [run.path for run in runs] == [tmp_path / "out" / TASKS[0] / "13"]
    assert changed(runs[0], first) == trained
    found = [record["loss"] for record in runs[0].metrics()]
    # A routing row alone over skills that hardly differ yet can do little.
    assert sum(found[-3:]) < sum(found[:3]) + (1e-3 if mode == "z" else 0.0)
    assert runs[0].info["parameters"]["trained"] == sum(
        t.numel() for name, t in first.items() if name.partition(".")[0] in trained
    )
    model, _ = load_checkpoint(runs[0].result())
    assert model.mhr.tasks == TASKS[:1]


@pytest.mark.parametrize("method", ["mhr", "lora"])
def test_shots_are_encoded_once_and_train_as_if_encoded_when_drawn(
    method: str, source: Callable[[str], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(source(method).path)
    encoded: list[int] = []
    encode = Seq2SeqCollator.encode_rows

    def counted(self: Seq2SeqCollator, examples: Any) -> Any:
        encoded.append(len(examples))
        return encode(self, examples)

    monkeypatch.setattr(Seq2SeqCollator, "encode_rows", counted)
    asked: dict[str, Any] = {
        "mode": method,
        "steps": 8,
        "shots": 6,
        "seeds": [13],
        "progress": False,
    }
    (once,) = adapt(run, TASKS[:1], output=str(tmp_path / "once"), **asked)
    before = len(encoded)
    assert set(encoded) == {6}
    monkeypatch.setattr(adaptation, "encoded_once", lambda *_: Feed())
    (drawn,) = adapt(run, TASKS[:1], output=str(tmp_path / "drawn"), **asked)
    assert len(encoded) - before == before + 7  # eight batches, where the shots were encoded once
    assert [record["loss"] for record in once.metrics()] == [record["loss"] for record in drawn.metrics()]
    assert once.info["truncated"] == drawn.info["truncated"]


def test_full_trains_the_backbone(source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    for method, base in (("mhr", source("mhr").info["base"]), ("full", str(source("full").model))):
        (run,) = adapt(str(source(method).path), TASKS[:1], mode="full", output=str(tmp_path / method), progress=False)
        assert run.result() == run.model
        assert run.info["base"] == base
        assert run.metrics()[-1]["lr"] < 1e-4


def test_mu_begins_at_the_average_of_the_skills(source: Callable[[str], RunFolder]) -> None:
    run = source("mhr")
    plain = merge_uniform(read_adapter(run.adapter))
    start = load_start(run, run.config(), "mu")
    start.begin(TASKS[0], 1)
    found = start.bank.tensors()
    for layer, factors in plain.layers.items():
        torch.testing.assert_close(found[f"layers.{layer}.bank_a"][0, 0], factors.a)
        torch.testing.assert_close(found[f"layers.{layer}.bank_b"][0, 0], factors.b)


def test_every_adaptation_begins_from_the_same_weights(source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    run = str(source("mhr").path)
    both = adapt(run, TASKS, mode="mhr", output=str(tmp_path / "both"), seeds=[1, 2], progress=False)
    (alone,) = adapt(run, TASKS[1:], mode="mhr", output=str(tmp_path / "alone"), seeds=[2], progress=False)
    assert [(r.info["tasks"], r.info["seed"]) for r in both] == [([t], s) for t in TASKS for s in (1, 2)]
    assert [r["loss"] for r in both[3].metrics()] == [r["loss"] for r in alone.metrics()]
    a, b = (read_adapter(r.adapter).tensors for r in (both[3], alone))
    assert all(torch.equal(a[name], b[name]) for name in a)
    listed = json.loads((tmp_path / "both" / ADAPT_FILE).read_text())
    assert [r["path"] for r in listed["runs"]] == [f"{t}/{s}" for t in TASKS for s in (1, 2)]


def test_shots_are_the_same_for_every_mode_and_differ_by_seed(
    source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    drawn: dict[Any, list[str]] = {}
    for method, mode in (("mhr", "mhr"), ("mhr", "mu"), ("lora", "lora")):
        out = str(tmp_path / mode)
        for run in adapt(
            str(source(method).path), TASKS[:1], mode=mode, output=out, seeds=[1, 2], shots=4, progress=False
        ):
            drawn[mode, run.info["seed"]] = run.info["shots"]
    assert drawn["mhr", 1] == drawn["mu", 1] == drawn["lora", 1]
    assert drawn["mhr", 1] != drawn["mhr", 2]


def test_the_rule_of_the_shots_does_not_change() -> None:
    task = Task("t", [Example("t", f"input {i}", ("x",), id=str(i)) for i in range(10)])
    assert [e.id for e in draw_shots(task, 4, 13)] == ["8", "2", "7", "1"]
    assert [e.id for e in draw_shots(task, 10, 13)][:4] == ["8", "2", "7", "1"]
    with pytest.raises(DataError, match="has 10 training examples, fewer than the 11 shots"):
        draw_shots(task, 11, 13)


def test_resume_skips_what_is_done(
    source: Callable[[str], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"mode": "mu", "output": str(tmp_path / "out"), "progress": False}
    run = str(source("mhr").path)
    fit, fitted = RoutedTrainer.fit, []

    def fit_one(self: RoutedTrainer, *args: Any) -> None:
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(self.run.path)
        fit(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RoutedTrainer, "fit", fit_one)
        with pytest.raises(KeyboardInterrupt):
            adapt(run, TASKS, **arguments)
    before = (fitted[0] / "run.json").stat().st_mtime_ns
    runs = adapt(run, TASKS, resume=True, **arguments)
    assert [r.status for r in runs] == ["done", "done"]
    assert (runs[0].path / "run.json").stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match="holds adaptations with mode 'mu', not 'mhr'"):
        adapt(run, TASKS, resume=True, **{**arguments, "mode": "mhr"})
    adapt(run, TASKS[:1], resume=True, **arguments)  # the other task stays listed
    listed = json.loads((tmp_path / "out" / "adapt.json").read_text())["runs"]
    assert sorted(one["task"] for one in listed) == sorted(TASKS)
    with pytest.raises(MhrError, match="not empty"):
        adapt(run, TASKS, **arguments)
    again = adapt(run, TASKS[:1], overwrite=True, **arguments)
    assert (again[0].path / "run.json").stat().st_mtime_ns != before
    assert not (tmp_path / "out" / TASKS[1]).exists()


@pytest.mark.parametrize(
    ("method", "flags", "error", "said"),
    [
        ("mhr", {"mode": "zz"}, ConfigError, "mode is 'zz'"),
        ("mhr", {"mode": "lora"}, ConfigError, "not shared by all tasks"),
        ("lora", {"mode": "z"}, ConfigError, "routing is not learned"),
        ("private", {"mode": "mhr"}, ConfigError, "use mode 'mu' or 'random'"),
        ("full", {"mode": "mhr"}, ConfigError, "use mode 'full'"),
        ("mhr", {"mode": "mu", "shots": 25}, DataError, "has 24 training examples, fewer than the 25 shots"),
        ("mhr", {"mode": "mu", "shots": 0}, ConfigError, "shots is 0"),
        ("mhr", {"mode": "mu", "seeds": [1, 1]}, ConfigError, "each seed once"),
        ("mhr", {"mode": "mu", "lr": -1.0}, ConfigError, "lr is -1"),
        ("mhr", {"mode": "mu", "tasks": ["next-frist"]}, TaskError, "did you mean 'next-first'"),
        ("mhr", {"mode": "mu", "tasks_path": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    method: str,
    flags: dict[str, Any],
    error: type[MhrError],
    said: str,
    source: Callable[[str], RunFolder],
    tmp_path: Path,
) -> None:
    tasks = flags.pop("tasks", TASKS)
    with pytest.raises(error, match=said) as caught:
        adapt(str(source(method).path), tasks, output=str(tmp_path / "out"), progress=False, **flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_names_every_held_out_task_is_adapted_to(source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    runs = adapt(str(source("mhr").path), mode="mu", output=str(tmp_path / "out"), steps=1, progress=False)
    assert [run.info["tasks"] for run in runs] == [[name] for name in TASKS]


def test_causal_and_encoder_models_adapt_too(settings: Make, tmp_path: Path) -> None:
    for model in ("llama", "bert"):
        run = pretrain(settings(model, steps=2, n_heads=2), str(tmp_path / model), progress=False)
        for mode in ("mhr", "z", "mu", "full", "random"):
            (done,) = adapt(
                str(run.path), TASKS[:1], mode=mode, output=str(tmp_path / f"{model}-{mode}"), steps=2, progress=False
            )
            assert done.status == "done"
            if mode not in ("full", "z") and model == "bert":
                first = read_adapter(run.adapter).tensors
                trained = read_adapter(done.adapter).tensors
                head = [name for name in first if name.startswith("modules.")]
                assert any(not torch.equal(first[name], trained[name]) for name in head)


@pytest.mark.parametrize(
    ("method", "mode", "few", "said"),
    [
        ("mhr", "mu", {"router_lr": 0.5}, "router_lr is 0.5, but mode 'mu' does not train routing: leave it out"),
        ("mhr", "z", {"lr": 0.5}, "lr is 0.5, but mode 'z' does not train the adapter: leave it out"),
        ("uniform", "mhr", {"router_lr": 0.5}, "router_lr is 0.5, but mode 'mhr' does not train routing"),
    ],
)
def test_a_rate_that_nothing_is_trained_at_is_refused(
    method: str, mode: str, few: dict[str, Any], said: str, source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        adapt(str(source(method).path), TASKS, mode=mode, output=str(tmp_path / "out"), progress=False, **few)
    assert not (tmp_path / "out").exists()


def test_ranking_losses_of_an_encoder_are_refused(settings: Make, tmp_path: Path) -> None:
    run = pretrain(settings("bert", steps=1), str(tmp_path / "run"), progress=False)
    with pytest.raises(ConfigError, match="mc_loss is 1.0, but an encoder is trained by ranking choices"):
        adapt(str(run.path), TASKS, mode="mhr", output=str(tmp_path / "out"), progress=False, mc_loss=1.0)


def edited(tasks_file: Path, change: Callable[[dict[str, Any]], dict[str, Any]], split: str) -> str:
    """The tasks, with a change of each row of a split of those that are held out."""
    rows = [json.loads(line) for line in tasks_file.read_text().splitlines()]
    return "".join(json.dumps(change(row) if row["held_out"] and row["split"] == split else row) + "\n" for row in rows)


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "input": lambda row: row | {"input": row["input"] + "a"},
    "answer": lambda row: row | {"targets": row["choices"][0]},
    "choices": lambda row: row | {"choices": row["choices"][::-1]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_adaptations_to_other_examples_are_not_resumed(
    change: str, source: Callable[[str], RunFolder], tasks_file: Path, tmp_path: Path
) -> None:
    file, run = tmp_path / "tasks.jsonl", str(source("mhr").path)
    file.write_text(tasks_file.read_text())
    asked: dict[str, Any] = {"mode": "z", "output": str(tmp_path / "out"), "tasks_path": str(file), "progress": False}
    adapt(run, TASKS[:1], **asked)
    before = (tmp_path / "out" / "adapt.json").read_bytes()
    file.write_text(edited(tasks_file, CHANGES[change], "train"))
    with pytest.raises(
        TrainingError, match="13 was adapted to other examples than .*tasks.jsonl now gives of task 'next-first'"
    ):
        adapt(run, TASKS, resume=True, **asked)
    assert (tmp_path / "out" / "adapt.json").read_bytes() == before
    file.write_text(edited(tasks_file, CHANGES[change], "test"))  # which nothing is adapted to
    assert len(adapt(run, TASKS, resume=True, **asked)) == 2


@pytest.mark.parametrize("told", [True, False], ids=["told", "of an earlier release"])
def test_adaptations_of_a_run_that_was_trained_again_are_not_resumed(
    told: bool, source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"mode": "z", "output": str(tmp_path / "out"), "progress": False}
    adapt(str(source("mhr").path), TASKS[:1], **asked)
    file, config = tmp_path / "out" / "adapt.json", source("mhr").adapter / "mhr_config.json"
    if not told:
        described = json.loads(file.read_text())
        del described["trained"]
        file.write_text(json.dumps(described))
    before = config.read_text()
    try:
        config.write_text(before + " ")
        if told:
            with pytest.raises(TrainingError, match="out holds adaptations with trained '"):
                adapt(str(source("mhr").path), TASKS[:1], resume=True, **asked)
        else:
            assert len(adapt(str(source("mhr").path), TASKS[:1], resume=True, **asked)) == 1
    finally:
        config.write_text(before)


def test_a_resumed_adaptation_names_the_one_setting_that_differs(
    source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"mode": "mu", "output": str(tmp_path / "out"), "progress": False}
    adapt(str(source("mhr").path), TASKS[:1], steps=2, **arguments)
    with pytest.raises(TrainingError, match=r"out holds adaptations with adapt\.steps 2, not 3: resume") as caught:
        adapt(str(source("mhr").path), TASKS[:1], steps=3, resume=True, **arguments)
    assert "{" not in str(caught.value)


def test_an_adaptation_of_a_base_that_is_held_in_another_dtype_is_not_resumed(
    source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    run = str(source("mhr").path)
    arguments: dict[str, Any] = {"mode": "z", "output": str(tmp_path / "out"), "progress": False}
    adapt(run, TASKS[:1], steps=1, loading=Loading(dtype="bfloat16"), **arguments)
    assert len(adapt(run, TASKS, steps=1, resume=True, loading=Loading(dtype="bfloat16"), **arguments)) == 2
    with pytest.raises(TrainingError, match="holds adaptations with dtype 'bfloat16', not "):
        adapt(run, TASKS, steps=1, resume=True, **arguments)


def test_no_tasks_are_refused(source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tasks is empty: name at least one"):
        adapt(str(source("mhr").path), [], mode="mu", output=str(tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


def test_a_pattern_of_shots_that_fits_no_task_is_said(
    source: Callable[[str], RunFolder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few: dict[str, Any] = {"mode": "mu", "steps": 1, "progress": False, "shots_for": {"swop*": 3}}
    adapt(str(source("mhr").path), TASKS[:1], output=str(tmp_path / "out"), **few)
    (said,) = [m for m in caplog.messages if "shots_for" in m]
    assert said.startswith("shots_for has 'swop*', which fits no task of ")


@pytest.mark.parametrize(("mode", "kept"), [("random", "routers"), ("full", None), ("lora", "layers")])
def test_a_run_that_went_on_as_an_average_is_adapted_like_any(
    mode: str, kept: str | None, source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    """What is stored is what was trained, and not its average once more."""
    bank = source("mhr")
    config = replace(bank.config(), continue_from=str(bank.path), continue_as="mu")
    run = pretrain(config, str(tmp_path / "mu"), progress=False)
    (made,) = adapt(str(run.path), TASKS[:1], mode=mode, output=str(tmp_path / "out"), seeds=[1], progress=False)
    assert made.status == "done"
    assert made.config().continue_as is None
    if kept is None:
        assert made.result() == made.model
        return
    stored = read_adapter(made.result())
    assert stored.config.routing.needs_tasks == (mode == "random")
    assert any(name.startswith(kept) for name in stored.tensors)
    assert made.info["parameters"]["trained"] == sum(t.numel() for t in stored.tensors.values())


def test_an_adaptation_is_no_run_to_adapt(source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    (made,) = adapt(
        str(source("mhr").path), TASKS[:1], mode="mu", output=str(tmp_path / "one"), seeds=[1], progress=False
    )
    for begin in (
        lambda: adapt(str(made.path), TASKS[:1], mode="mhr", output=str(tmp_path / "two"), progress=False),
        lambda: sweep([str(made.path)], TASKS[:1], modes=["mhr"], output=str(tmp_path / "two"), progress=False),
    ):
        with pytest.raises(ConfigError, match="is an adaptation to a task: expected a run of mhr pretrain"):
            begin()
    assert not (tmp_path / "two").exists()


def test_weights_that_are_all_trained_have_no_other_base(source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whose weights are all its own: leave it out"):
        adapt(str(source("full").path), TASKS, mode="full", base="builtin:t5-tiny", output=str(tmp_path / "out"))


def test_what_validates_has_no_part_in_where_a_trial_begins(
    source: Callable[[str], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context or a first row of all shots would know the answers that a point of the grid is judged by."""
    begun: list[int] = []
    find = adaptation.find_first_row

    def watch(start: Any, few: Any, tasks: Any, task: Any, shots: Any, *rest: Any) -> Any:
        begun.append(len(shots))
        return find(start, few, tasks, task, shots, *rest)

    monkeypatch.setattr(adaptation, "find_first_row", watch)
    few: dict[str, Any] = {"start": "nearest", "similarity": "shots", "grid": {"router_lr": [0.1, 0.2]}, "seeds": [1]}
    (made,) = adapt(str(source("mhr").path), TASKS[:1], mode="z", output=str(tmp_path / "out"), progress=False, **few)
    assert begun == [6, 8]  # once for both trials, and once for the training on all shots
    assert made.info["selection"]["refit"]
    embedded: list[int] = []
    monkeypatch.setattr(adaptation, "embeds", lambda bank: True)
    monkeypatch.setattr(adaptation, "check_context", lambda *args: None)
    monkeypatch.setattr(adaptation, "embed_task", lambda model, tokenizer, task, shots: embedded.append(len(shots)))
    few.pop("similarity"), few.pop("start")
    adapt(str(source("mhr").path), TASKS[:1], mode="z", output=str(tmp_path / "other"), progress=False, **few)
    assert embedded == [6, 8]
