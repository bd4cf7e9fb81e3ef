"""Runs that route by contexts: trained, stored, read again, adapted, merged, evaluated and asked, also on tasks that are new."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mhr
from mhr.adapters import load_checkpoint, read_adapter
from mhr.analysis.inspection import inspect_run
from mhr.backbones import load_backbone
from mhr.contexts import Encoder, give_contexts
from mhr.data.drawing import shot_order
from mhr.data.tokens import running_text
from mhr.errors import ConfigError, DataError, TaskError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt
from mhr.merging import merge
from mhr.report.material import label_of
from mhr.report.report import write_report
from mhr.runs import RunConfig, RunFolder, load_config
from mhr.runs.config import assignments
from mhr.runs.tasks import read_tasks
from mhr.runs.unused import refuse_unused
from mhr.training import pretrain

Make = Callable[..., RunConfig]
METHOD = "context-mhr"
NEW = ["next-first", "swap-last"]


def trained(settings: Make, folder: Path, **flags: Any) -> RunFolder:
    defaults = {"method": METHOD, "steps": 3, "save_every": 3}
    return pretrain(settings(**{**defaults, **flags}), str(folder), progress=False)


@pytest.fixture(scope="session")
def runs() -> dict[str, RunFolder]:
    return {}


@pytest.fixture
def run(runs: dict[str, RunFolder], settings: Make, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on definitions, made once."""
    if not runs:
        runs["run"] = trained(settings, tmp_path_factory.mktemp("contexts") / "run")
    return runs["run"]


def unit(run: RunFolder, texts: list[str]) -> Tensor:
    """The embedding of a task of these texts, at length 1."""
    embedding = Encoder(*load_backbone(run.config().model)).embed(texts).mean(0)
    return embedding / embedding.norm()


def stated(new: list[str], known: list[list[str]], run: RunFolder) -> Tensor:
    """The context of a task of the texts `new`, for a run on tasks of the texts `known`."""
    mean = torch.stack([unit(run, texts) for texts in known]).mean(0)
    left = unit(run, new) - mean
    return left / left.norm() * len(mean) ** 0.5


def test_contexts_are_those_of_definitions_and_stored_with_the_run(run: RunFolder) -> None:
    tasks = read_tasks(run.config().tasks, run.config().data).training()
    stored = read_adapter(run.adapter)
    known = [[task.definition] for task in tasks.values()]
    assert all(text for (text,) in known)
    found = stored.tensors["contexts.vectors"]
    for row, texts in enumerate(known):
        torch.testing.assert_close(found[row], stated(texts, known, run))
    assert stored.config.router["size"] == found.shape[1] == 32
    assert {name for name in stored.tensors if name.startswith("contexts.")} == {
        "contexts.vectors", "contexts.center", "contexts.first.weight", "contexts.first.bias"
    }  # fmt: skip
    model, _ = load_checkpoint(run.adapter)
    for name, tensor in model.mhr.tensors().items():
        assert torch.equal(tensor, stored.tensors[name]), name


def test_training_moves_the_network_and_not_the_contexts(run: RunFolder, settings: Make, tmp_path: Path) -> None:
    longer = trained(settings, tmp_path / "run", steps=4, save_every=4)
    one, two = (read_adapter(r.adapter).tensors for r in (run, longer))
    assert torch.equal(one["contexts.vectors"], two["contexts.vectors"])
    moved = [name for name in one if not torch.equal(one[name], two[name])]
    assert "contexts.first.weight" in moved
    assert any(name.startswith("routers.") and name.endswith(".output") for name in moved)


def test_it_is_shown_as_trained(run: RunFolder) -> None:
    found = inspect_run(run.path)
    tensors = read_adapter(run.adapter).tensors
    routing = {name: t for name, t in tensors.items() if name.startswith(("routers.", "contexts."))}
    frozen = routing["contexts.vectors"].numel() + routing["contexts.center"].numel()
    stored = sum(t.numel() for t in routing.values())
    assert found.parameters["routing"] == {"stored": stored, "trained": stored - frozen, "bytes": 4 * stored}
    assert found.trained == run.info["parameters"]["trained"]
    assert found.per_task == 32


def test_a_new_task_is_evaluated_by_its_definition(run: RunFolder) -> None:
    collection = read_tasks(run.config().tasks, run.config().data)
    loaded = load_model(run.path)
    found = evaluate(loaded, collection.held_out(), limit=2, progress=False)
    assert found.notes == ["2 tasks that the bank was not trained on are routed by their definition, without training"]
    known = [[task.definition] for task in collection.training().values()]
    bank = loaded.model.mhr
    assert bank.tasks[3:] == NEW
    for row, name in enumerate(NEW, 3):
        torch.testing.assert_close(
            bank.contexts.vectors[row].detach(), stated([collection[name].definition], known, run)
        )
    assert evaluate(loaded, collection.held_out(), limit=2, progress=False).tasks == found.tasks
    plain = load_model(run.path)
    uniform = evaluate(plain, collection.held_out(), limit=2, unseen="uniform", progress=False)
    assert not uniform.notes
    assert plain.model.mhr.tasks == bank.tasks[:3]
    with pytest.raises(TaskError, match="unknown task 'next-first'"):
        evaluate(plain, collection.held_out(), limit=2, unseen="error", progress=False)


def test_a_merged_task_answers_as_the_routed_one(run: RunFolder, tmp_path: Path) -> None:
    task = run.info["tasks"][1]
    merged, _ = load_checkpoint(merge(run.path, method="task", task=task, output=tmp_path / "merged"))
    model, tokenizer = load_checkpoint(run.adapter)
    inputs = dict(tokenizer(["abcd", "hg"], return_tensors="pt", padding=True))
    labels = torch.tensor([[5, 1], [9, 1]])
    with torch.no_grad():
        one = model(**inputs, labels=labels, task_ids=[task] * 2).logits
        torch.testing.assert_close(merged(**inputs, labels=labels).logits, one, rtol=1e-5, atol=1e-5)
        other = model(**inputs, labels=labels, task_ids=[run.info["tasks"][0]] * 2).logits
    assert not torch.equal(one, other)


def test_it_is_adapted_from_where_its_definition_puts_it(run: RunFolder, tmp_path: Path) -> None:
    found = {}
    for order in (NEW, NEW[::-1]):
        for made in adapt(str(run.path), order, mode="z", output=str(tmp_path / order[0]), progress=False):
            found[order[0], made.info["tasks"][0]] = read_adapter(made.adapter).tensors
    before = read_adapter(run.adapter).tensors
    for task in NEW:
        one, two = (found[first, task] for first in NEW)
        assert all(torch.equal(one[name], two[name]) for name in one)  # whatever was adapted to before
        changed = [name for name in one if not torch.equal(one[name], before[name])]
        assert changed == ["contexts.vectors"]
    collection = read_tasks(run.config().tasks, run.config().data)
    known = [[task.definition] for task in collection.training().values()]
    (made,) = adapt(str(run.path), NEW[:1], mode="z", output=str(tmp_path / "slow"), router_lr=1e-9, progress=False)
    started = read_adapter(made.adapter).tensors["contexts.vectors"][0]
    torch.testing.assert_close(started, stated([collection[NEW[0]].definition], known, run), rtol=1e-4, atol=1e-4)
    assert inspect_run(made.path).trained == made.info["parameters"]["trained"] == 32
    assert label_of(made.info) == "Context-MHR-z, 8 shots"


def test_a_report_tells_of_it(run: RunFolder, tmp_path: Path) -> None:
    page = write_report([run.path], tmp_path / "report").to_markdown()
    assert "Context-MHR" in page


@pytest.mark.parametrize("mode", ["mhr", "random", "mu"])
def test_every_mode_goes_on_from_it(run: RunFolder, mode: str, tmp_path: Path) -> None:
    (made,) = adapt(str(run.path), NEW[:1], mode=mode, output=str(tmp_path / "out"), progress=False)
    stored, before = read_adapter(made.adapter), read_adapter(run.adapter)
    assert stored.tasks == (NEW[:1] if mode != "mu" else stored.tasks)
    if mode == "mu":
        assert not any(name.startswith("contexts.") for name in stored.tensors)
        return
    assert torch.equal(stored.tensors["contexts.center"], before.tensors["contexts.center"])
    assert not torch.equal(stored.tensors["contexts.first.weight"], before.tensors["contexts.first.weight"])
    assert made.info["parameters"]["trained"] == inspect_run(made.path).trained


def test_a_context_of_shots_is_the_mean_of_their_embeddings(settings: Make, tmp_path: Path) -> None:
    run = trained(settings, tmp_path / "run", router={"context": "shots", "shots": 5})
    collection = read_tasks(run.config().tasks, run.config().data)

    def texts(name: str) -> list[str]:
        shots = shot_order(collection[name].train, name, 0)[:5]
        return [running_text(shot.input, shot.targets[0]) for shot in shots]

    known = [texts(name) for name in collection.training()]
    found = read_adapter(run.adapter).tensors["contexts.vectors"]
    for row, own in enumerate(known):
        torch.testing.assert_close(found[row], stated(own, known, run))
    model, tokenizer = load_checkpoint(run.adapter)
    assert give_contexts(model, tokenizer, collection.held_out().values()) == NEW
    torch.testing.assert_close(model.mhr.contexts.vectors[3].detach(), stated(texts(NEW[0]), known, run))
    # An adaptation takes the shots that it has.
    (made,) = adapt(
        str(run.path), NEW[:1], mode="z", output=str(tmp_path / "z"), router_lr=1e-9, shots=3, progress=False
    )
    by_id = {example.id: example for example in collection[NEW[0]].train}
    own = [running_text(by_id[i].input, by_id[i].targets[0]) for i in made.info["shots"]]
    assert len(own) == 3
    started = read_adapter(made.adapter).tensors["contexts.vectors"][0]
    torch.testing.assert_close(started, stated(own, known, run), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["context-mhr", "pha", "generative-adapter"])
def test_a_new_task_of_too_few_shots_is_told_the_way_that_works(method: str, settings: Make, tmp_path: Path) -> None:
    router = {"shots": 5, **({"context": "shots"} if method == "context-mhr" else {})}
    run = trained(settings, tmp_path / "run", method=method, router=router)
    collection = read_tasks(run.config().tasks, run.config().data)
    task = collection[NEW[0]]
    few = collection.of([dataclasses.replace(task, train=task.train[:3])])
    said = (
        f"^task '{NEW[0]}' has 3 training examples, fewer than the 5 shots that its context is made of: give it more, or adapt the run to it "
        "with mhr adapt --mode z --steps 0 --shots 3$"
    )
    with pytest.raises(DataError, match=said):
        evaluate(load_model(run.path), few, progress=False)
    (made,) = adapt(str(run.path), NEW[:1], mode="z", steps=0, shots=3, output=str(tmp_path / "z"), progress=False)
    assert made.status == "done"


def test_an_unknown_task_is_asked_for_its_definition_where_that_routes_it(
    run: RunFolder, source: Callable[[str], RunFolder]
) -> None:
    with pytest.raises(TaskError, match=r"unknown task 'mine' .*; a new one needs its definition \(--definition\)$"):
        mhr.load(run.path).predict(["abcd"], tasks="mine")
    with pytest.raises(TaskError, match="unknown task 'mine'") as caught:
        mhr.load(source("mhr").path).predict(["abcd"], tasks="mine")
    assert "definition" not in str(caught.value)


def test_a_run_answers_for_its_tasks_without_its_encoder(
    settings: Make, backbone: Callable[..., str], tmp_path: Path
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(backbone("bert"), encoder)
    run = trained(settings, tmp_path / "run", router={"encoder": str(encoder)})
    shutil.rmtree(encoder)
    predictor = mhr.load(run.path)
    assert len(predictor.predict(["abcd"], tasks=run.info["tasks"][0])) == 1
    from mhr.contexts.encoders import _loaded

    _loaded.cache_clear()
    with pytest.raises(ConfigError, match=r"^router\.encoder is '.*', which cannot be loaded"):
        predictor.predict(["abcd"], tasks="mine", definition="Give the third letter.")


def test_a_definition_makes_a_task_known(run: RunFolder) -> None:
    predictor = mhr.load(run.path)
    with pytest.raises(TaskError, match="unknown task 'mine'"):
        predictor.predict(["abcd"], tasks="mine")
    predictor.predict(["abcd"], tasks="mine", definition="Give the third letter.")
    bank = predictor.model.mhr
    assert bank.tasks[-1] == "mine"
    first = bank.contexts.vectors[-1].detach().clone()
    predictor.predict(["abcd"], tasks="mine")  # it stays known
    predictor.predict(["abcd"], tasks="mine", definition="Count the vowels.")
    assert bank.tasks.count("mine") == 1
    assert not torch.equal(bank.contexts.vectors[-1].detach(), first)
    for given, said in (
        ({"tasks": run.info["tasks"][0], "definition": "x"}, "knows already: leave it out"),
        ({"tasks": None, "definition": "x"}, "but task names none: give --task and --definition together"),
        ({"tasks": "mine", "definition": " "}, "but it is empty"),
    ):
        with pytest.raises(ConfigError, match=said):
            predictor.predict(["abcd"], **given)


def test_a_definition_is_refused_where_nothing_is_routed_by_it(source: Callable[[str], RunFolder]) -> None:
    predictor = mhr.load(source("mhr").path)
    with pytest.raises(ConfigError, match="a definition is given of task 'mine', but .* does not route by definitions"):
        predictor.predict(["abcd"], tasks="mine", definition="x")


def without_definitions(settings: Make, folder: Path, task: str = "rev-last") -> str:
    """The tasks of the tests, of which one has no definition."""
    lines = [json.loads(line) for line in Path(settings().tasks).read_text("utf-8").splitlines()]
    for line in lines:
        if line["task"] == task:
            del line["definition"]
    path = folder / "undefined.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        (
            {"tasks": without_definitions},
            DataError,
            "^task 'rev-last' has no definition, by which it would be routed: give its rows a column definition, the same in all of "
            r"them, or take shots in its place \(adapter.router.context, --similarity\)$",
        ),
        (
            {"router": {"context": "shots"}},
            DataError,
            "^task 'rev-first' has 24 training examples, fewer than the 32 shots that its context is made of: set "
            "adapter.router.shots to 24 or fewer$",
        ),
        ({"router": {"encoder": "/none"}}, ConfigError, r"^router\.encoder is '/none', which cannot be loaded: .*$"),
        (
            {"router": {"size": 5}},
            ConfigError,
            r"^router\.size is 5, but embeddings of the encoder have 32: leave it out$",
        ),
    ],
)
def test_what_keeps_contexts_from_being_made_is_said_before_anything_is_written(
    settings: Make, tmp_path: Path, flags: dict[str, Any], error: type[Exception], said: str
) -> None:
    tasks = flags.get("tasks")
    given = flags | ({"tasks": tasks(settings, tmp_path)} if callable(tasks) else {})
    with pytest.raises(error, match=said):
        trained(settings, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_new_task_without_a_definition_is_refused(run: RunFolder, settings: Make, tmp_path: Path) -> None:
    collection = read_tasks(without_definitions(settings, tmp_path), settings().data)
    model, tokenizer = load_checkpoint(run.adapter)
    model.mhr.remove_tasks(["rev-last"])
    with pytest.raises(DataError, match="task 'rev-last' has no definition"):
        give_contexts(model, tokenizer, collection.values())
    assert model.mhr.tasks == [task for task in run.info["tasks"] if task != "rev-last"]


def test_an_adaptation_whose_context_cannot_be_made_leaves_nothing_behind(
    run: RunFolder, settings: Make, backbone: Callable[..., str], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"mode": "z", "steps": 0, "output": str(tmp_path / "out"), "progress": False}
    undefined = without_definitions(settings, tmp_path, "swap-last")
    with pytest.raises(DataError, match="task 'swap-last' has no definition, .* the same in all of them$"):
        adapt(str(run.path), NEW, tasks_path=undefined, **given)
    assert not (tmp_path / "out").exists()
    encoder = tmp_path / "encoder"
    shutil.copytree(backbone("bert"), encoder)
    other = trained(settings, tmp_path / "run", router={"encoder": str(encoder)})
    shutil.rmtree(encoder)
    from mhr.contexts.encoders import _loaded

    _loaded.cache_clear()
    with pytest.raises(ConfigError, match=r"^router\.encoder is '.*', which cannot be loaded"):
        adapt(str(other.path), NEW, **given)
    assert not (tmp_path / "out").exists()


def test_a_rate_of_rows_is_refused_where_none_are_trained() -> None:
    said = "router_lr has no effect on contexts that are no parameters of the run .*: set adapter.router.network_lr instead"
    asked = assignments(["train.router_lr=0.2"])
    with pytest.raises(ConfigError, match=said):
        refuse_unused(asked, load_config(method=METHOD))
    refuse_unused(asked, load_config(method=METHOD, router={"context": "learnt"}))
