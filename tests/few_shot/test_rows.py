"""First rows of routing that are those of other tasks, or predicted from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mhr.adapters import attach_checkpoint, load_checkpoint, read_adapter
from mhr.backbones import load_backbone
from mhr.contexts import Encoder
from mhr.data.drawing import shot_order
from mhr.data.tokens import running_text
from mhr.errors import ConfigError, DataError, TrainingError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt
from mhr.few_shot.adapting import check_given
from mhr.objectives import make_objective
from mhr.runs import RunConfig, RunFolder, load_config
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.tasks import read_tasks
from mhr.training import pretrain
from tests.models import randomise

Make = Callable[..., RunConfig]
NEW = ["next-first", "swap-last"]


@pytest.fixture(scope="session")
def runs() -> dict[str, RunFolder]:
    return {}


@pytest.fixture
def run(runs: dict[str, RunFolder], settings: Make, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of MHR whose tasks are routed differently, made once."""
    if not runs:
        folder = tmp_path_factory.mktemp("rows") / "run"
        made = pretrain(settings(method="mhr", steps=1, save_every=1), str(folder), progress=False)
        model, _ = load_checkpoint(made.adapter)
        randomise(model.mhr, size=0.1)
        from mhr.adapters import save_adapter

        save_adapter(model, made.adapter, base=made.config().model)
        runs["run"] = made
    return runs["run"]


def logits(folder: RunFolder) -> dict[str, Tensor]:
    return {name: t for name, t in read_adapter(folder.adapter).tensors.items() if name.endswith(".logits")}


def begun(run: RunFolder, output: Path, task: str = NEW[0], **few: Any) -> RunFolder:
    (made,) = adapt(str(run.path), [task], mode="z", output=str(output), steps=0, progress=False, **few)
    return made


def is_row(made: RunFolder, run: RunFolder, task: str) -> bool:
    row = run.info["tasks"].index(task)
    before = logits(run)
    return all(torch.equal(t[0], before[name][row]) for name, t in logits(made).items())


def test_no_step_keeps_what_an_adaptation_begins_with(run: RunFolder, tmp_path: Path) -> None:
    made = begun(run, tmp_path / "out")
    assert (made.status, made.info["steps"], "start" in made.info) == ("done", 0, False)
    found = logits(made)
    assert all(t.shape[0] == 1 and 0 < t.abs().max() <= 1e-3 for t in found.values())
    before = read_adapter(run.adapter).tensors
    assert all(
        torch.equal(t, before[name]) for name, t in read_adapter(made.adapter).tensors.items() if name not in found
    )
    collection = read_tasks(run.config().tasks, run.config().data).select(NEW[:1])
    assert evaluate(load_model(made.path), collection, progress=False).tasks[NEW[0]]["n"] == 4


def test_the_average_is_that_of_all_logits(run: RunFolder, tmp_path: Path) -> None:
    made = begun(run, tmp_path / "out", start="average")
    for name, t in logits(run).items():
        torch.testing.assert_close(logits(made)[name][0], t.mean(0))
    assert made.info["start"] == {"row": "average"}


def test_a_random_row_is_drawn_by_the_seed_and_the_task(run: RunFolder, tmp_path: Path) -> None:
    told = {}
    for seed in range(6):
        made = begun(run, tmp_path / str(seed), start="random", seeds=[seed])
        told[seed] = made.info["start"]["task"]
        assert is_row(made, run, told[seed])
    assert len(set(told.values())) > 1
    assert begun(run, tmp_path / "again", start="random", seeds=[3]).info["start"]["task"] == told[3]


@pytest.mark.parametrize("similarity", ["definition", "shots"])
def test_the_nearest_task_is_that_of_the_most_similar_embedding(
    run: RunFolder, similarity: str, tmp_path: Path
) -> None:
    collection = read_tasks(run.config().tasks, run.config().data)
    encoder = Encoder(*load_backbone(run.config().model))

    def unit(name: str) -> Tensor:
        task = collection[name]
        shots = shot_order(task.train, name, 13)[:8]
        texts = {"definition": [task.definition], "shots": [running_text(e.input, e.targets[0]) for e in shots]}
        embedding = encoder.embed(texts[similarity]).mean(0)
        return embedding / embedding.norm()

    known = torch.stack([unit(name) for name in run.info["tasks"]])
    for task in NEW:
        made = begun(run, tmp_path / task, task, start="nearest", similarity=similarity)
        alike = cosine_similarity(known - known.mean(0), unit(task) - known.mean(0))
        nearest = run.info["tasks"][int(alike.argmax())]
        told = made.info["start"]
        assert (told["task"], told["similarity"]) == (nearest, similarity)
        assert told["cosine"] == pytest.approx(float(alike.max()), abs=1e-4)
        assert is_row(made, run, nearest)


def test_the_nearest_task_by_gradients_of_a_run_with_a_ranking_loss(settings: Make, tmp_path: Path) -> None:
    ranked = pretrain(settings(steps=1, **{"train.mc_loss": 1.0}), str(tmp_path / "run"), progress=False)
    made = begun(ranked, tmp_path / "out", start="nearest", similarity="gradients")
    assert made.info["start"]["task"] in ranked.info["tasks"]


def test_the_nearest_task_by_gradients_pulls_the_skills_the_same_way(run: RunFolder, tmp_path: Path) -> None:
    made = begun(run, tmp_path / "out", start="nearest", similarity="gradients")
    config = run.config()
    collection = read_tasks(config.tasks, config.data)
    model, tokenizer = load_backbone(config.model)
    bank = attach_checkpoint(read_adapter(run.adapter), model)
    objective = make_objective("seq2seq", config.train)
    collator = objective.collator(
        tokenizer, config.data.max_input_length, config.data.max_target_length, config.data.chat
    )

    def gradient(name: str) -> Tensor:
        batch = collator(shot_order(collection[name].train, name, 13)[:8])
        batch["task_ids"] = [-1] * 8
        loss = objective(model, batch).sums.sum()
        parts = torch.autograd.grad(loss, bank.adapter_parameters())
        return torch.cat([part.flatten() for part in parts])

    new = gradient(NEW[0])
    alike = [float(cosine_similarity(gradient(name), new, dim=0)) for name in run.info["tasks"]]
    nearest = run.info["tasks"][max(range(3), key=alike.__getitem__)]
    assert made.info["start"]["task"] == nearest
    assert made.info["start"]["cosine"] == pytest.approx(max(alike), abs=1e-4)
    assert is_row(made, run, nearest)


def test_a_predicted_row_is_that_of_a_network_fitted_to_all_rows(run: RunFolder, tmp_path: Path) -> None:
    made = begun(run, tmp_path / "out", start="predicted")
    told = made.info["start"]
    assert told["tasks"] == 3
    assert told["error"] < 0.2 * told["error_of_uniform"]  # three rows are no more than such a network can hold
    again = begun(run, tmp_path / "again", start="predicted")
    other = begun(run, tmp_path / "other", NEW[1], start="predicted")
    for name, t in logits(made).items():
        assert torch.equal(t, logits(again)[name])
        assert not torch.allclose(t, logits(other)[name])
    # A task that it was fitted to gets its own row back.
    known = begun(run, tmp_path / "known", run.info["tasks"][2], start="predicted")
    for name, t in logits(run).items():
        p, q = torch.sigmoid(t[2]), torch.sigmoid(logits(known)[name][0])
        torch.testing.assert_close(q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True), rtol=0, atol=0.1)


ALIKE = [(start, {"similarity": how}) for start in ("nearest", "predicted") for how in ("definition", "shots")]


@pytest.mark.parametrize(
    ("start", "how"), [*ALIKE, ("nearest", {"similarity": "gradients"}), ("random", {}), ("average", {})]
)
def test_an_adaptation_does_not_depend_on_those_before_it(
    run: RunFolder, start: str, how: dict[str, str], tmp_path: Path
) -> None:
    """Of another task, another seed, and another number of shots."""
    few: dict[str, Any] = {"start": start, "progress": False, "mode": "z", "steps": 0, **how}
    many = {"seeds": [13, 21], "shots": 8, "shots_for": {NEW[0]: 4}}
    made = adapt(str(run.path), NEW, output=str(tmp_path / "all"), **few, **many)
    assert len(made) == 4
    for i, one in enumerate(made):
        (task,), seed = one.info["tasks"], one.info["seed"]
        shots = {"shots": 4 if task == NEW[0] else 8}
        (alone,) = adapt(str(run.path), [task], output=str(tmp_path / f"{i}"), seeds=[seed], **few, **shots)
        assert alone.info.get("start") == one.info.get("start")
        found, expected = read_adapter(one.adapter).tensors, read_adapter(alone.adapter).tensors
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_training_goes_on_from_the_row(run: RunFolder, tmp_path: Path) -> None:
    (made,) = adapt(
        str(run.path), NEW[:1], mode="z", output=str(tmp_path / "z"), start="nearest", router_lr=1e-6, progress=False
    )
    row = run.info["tasks"].index(made.info["start"]["task"])
    for name, t in logits(made).items():
        torch.testing.assert_close(t[0], logits(run)[name][row], rtol=0, atol=1e-4)
    assert made.info["steps"] == 4


@pytest.mark.parametrize(
    ("few", "said"),
    [
        ({"similarity": "shots"}, "similarity is 'shots', but start is 'fresh', which compares no tasks: leave it out"),
        ({"encoder": "x", "start": "average"}, "encoder is 'x', but start is 'average', which compares no tasks"),
        (
            {"start": "predicted", "similarity": "gradients"},
            "start is 'predicted', which is of embeddings, but similarity",
        ),
        ({"start": "closest"}, "start is 'closest', expected one of fresh, nearest, average, random, predicted"),
        ({"steps": 0, "select": "best"}, "steps is 0, so that nothing is trained, but the best of several steps"),
        ({"grid": {"steps": [0, 4]}}, "grid has steps 0, which trains nothing: expected at least 1"),
    ],
)
def test_settings_that_do_not_go_together(few: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdaptConfig(**few)


@pytest.mark.parametrize(
    ("method", "mode"), [("mhr", "mu"), ("mhr", "random"), ("uniform", "mhr"), ("context-mhr", "z")]
)
def test_a_start_is_refused_where_no_row_begins(
    source: Callable[[str], RunFolder], method: str, mode: str, tmp_path: Path
) -> None:
    said = f"start is 'average', but a run of method '{method}' in mode '{mode}' begins with no row of its own"
    with pytest.raises(ConfigError, match=said):
        adapt(str(source(method).path), NEW, mode=mode, output=str(tmp_path / "out"), start="average", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "router"), [("hyperformer++", {}), ("context-mhr", {"context": "learnt"})], ids=["hyper", "context"]
)
def test_a_vector_that_is_learnt_begins_as_that_of_another_task(
    method: str, router: dict[str, Any], settings: Make, tmp_path: Path
) -> None:
    made = pretrain(
        settings(method=method, steps=1, save_every=1, router=router), str(tmp_path / "run"), progress=False
    )
    before = read_adapter(made.adapter).tensors["contexts.vectors"]

    def first(start: str, **few: Any) -> tuple[Tensor, dict[str, Any]]:
        begin = begun(made, tmp_path / f"{start}-{len(few)}", start=start, **few)
        return read_adapter(begin.adapter).tensors["contexts.vectors"][0], begin.info["start"]

    for start, few in (("nearest", {}), ("nearest", {"similarity": "shots"}), ("random", {})):
        vector, told = first(start, **few)
        assert torch.equal(vector, before[made.info["tasks"].index(told["task"])])
    torch.testing.assert_close(first("average")[0], before.mean(0))
    with pytest.raises(ConfigError, match="which is of logits whose sigmoids route"):
        first("predicted")
    if method == "hyperformer++":
        with pytest.raises(ConfigError, match="skills at uniform weights, but method 'hyperformer\\+\\+' has no such"):
            first("nearest", similarity="gradients", shots=3)
        assert not (tmp_path / "nearest-2").exists()
    else:
        assert "cosine" in first("nearest", similarity="gradients", shots=3)[1]


def test_runs_whose_rows_cannot_be_predicted_are_not_adapted_from_fresh_ones_in_silence() -> None:
    runs = [load_config(method=method) for method in ("mhr", "hydra", "context-mhr")]
    with pytest.raises(ConfigError, match="start is 'predicted', .* but a row of method 'hydra' is none"):
        check_given({"start": "predicted"}, [("z", run) for run in runs], [])
    check_given({"start": "predicted"}, [("z", runs[0]), ("mu", runs[1]), ("z", runs[2])], [])


def test_tasks_that_cannot_be_compared_are_refused_before_anything_is_written(run: RunFolder, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in Path(run.config().tasks).read_text("utf-8").splitlines()]
    for line in lines:
        del line["definition"]
    path = tmp_path / "undefined.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    given: dict[str, Any] = {"mode": "z", "output": str(tmp_path / "out"), "start": "nearest", "progress": False}
    with pytest.raises(DataError, match="task 'next-first' has no definition, .* take shots in its place"):
        adapt(str(run.path), NEW[:1], tasks_path=str(path), **given)
    with pytest.raises(ConfigError, match=r"^router\.encoder is '/none', which cannot be loaded"):
        adapt(str(run.path), NEW[:1], encoder="/none", **given)
    assert not (tmp_path / "out").exists()


def test_adaptations_written_before_there_were_starts_are_resumed(run: RunFolder, tmp_path: Path) -> None:
    given: dict[str, Any] = {"mode": "z", "output": str(tmp_path / "out"), "progress": False}
    adapt(str(run.path), NEW[:1], **given)
    file = tmp_path / "out" / "adapt.json"
    described = json.loads(file.read_text("utf-8"))
    for name in ("start", "similarity", "encoder"):
        del described["settings"][name]
    file.write_text(json.dumps(described), "utf-8")
    assert len(adapt(str(run.path), NEW, resume=True, **given)) == 2
    with pytest.raises(TrainingError, match="adapt.start 'fresh', not 'average'"):
        adapt(str(run.path), NEW, resume=True, start="average", **given)
