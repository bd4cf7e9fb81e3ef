"""GenerativeAdapter against its equations in plain torch, what its contexts are made of, and runs of it on new tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse_task, load_adapter, load_checkpoint, read_adapter, save_adapter
from mhr.analysis.inspection import inspect_run
from mhr.backbones import load_backbone
from mhr.contexts import Encoder, give_contexts, set_apart
from mhr.data.drawing import shot_order
from mhr.data.tokens import running_text
from mhr.errors import ConfigError, DataError, MergeError, TaskError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt
from mhr.layers.parameter_groups import parameter_groups
from mhr.merging import merge
from mhr.routing.generative_adapter import OuterProducts
from mhr.runs import RunConfig, RunFolder
from mhr.runs.config import assignments
from mhr.runs.tasks import read_tasks
from mhr.runs.unused import refuse_unused
from mhr.training import pretrain

Make = Callable[..., RunConfig]
METHOD = "generative-adapter"
TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
SHOTS, POOL, TOKENS, SIZE = 2, 4, 3, 5


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def states(seed: int = 0, tasks: list[str] = TASKS) -> dict[str, Tensor]:
    """Hidden states of the shots of each task, the second of which is shorter."""
    generator = torch.Generator().manual_seed(seed)
    found = {task: torch.randn(POOL, TOKENS, SIZE, generator=generator, dtype=torch.float64) for task in tasks}
    for one in found.values():
        one[1, 1:] = 0
    return found


def adapted(learning: bool = True) -> tuple[nn.Module, AdapterBank, OuterProducts]:
    torch.manual_seed(0)
    model = Layer().double().eval()
    router = {"shots": SHOTS, "size": SIZE}
    config = AdapterConfig(method=METHOD, rank=2, alpha=3.0, targets=["layer"], router=router)
    bank = mhr.attach(model, config, TASKS)
    assert isinstance(bank.contexts, OuterProducts)
    for p in (*bank.adapter_parameters(), bank.contexts.keys, bank.contexts.values):
        torch.nn.init.normal_(p)
    if learning:
        bank.set_contexts(states(), center=True)
    return model, bank, bank.contexts


def stated_matrix(a2: Tensor, a3: Tensor, shots: Tensor) -> Tensor:
    """S [R, R] of hidden states [N, L, C], token by token."""
    s = torch.zeros(len(a2), len(a3), dtype=shots.dtype)
    for h in shots.flatten(0, 1):
        if h.any():
            h = h / (h**2).mean().sqrt()
            s = s + torch.outer(a2 @ h, a3 @ h)
    return s / (s**2).sum().sqrt()


def stated(bank: AdapterBank, x: Tensor, shots: dict[str, Tensor], ids: list[str] = IDS) -> Tensor:
    """y = W x + b + (alpha / R) B (S^T (A1 x)) of each token of each example."""
    (layer,) = bank.layers.values()
    contexts = bank.contexts
    assert isinstance(contexts, OuterProducts)
    a1, b = layer.bank_a[0, 0].T, layer.bank_b[0, 0].T
    matrices = {task: stated_matrix(contexts.keys[0], contexts.values[0], own) for task, own in shots.items()}
    w, bias = layer.base.weight, layer.base.bias

    def of(x: Tensor, task: str) -> Tensor:
        return w @ x + bias + 3.0 / 2 * b @ (matrices[task].T @ (a1 @ x))

    return torch.stack([torch.stack([of(t, task) for t in example]) for example, task in zip(x, ids, strict=True)])


def first(of: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: own[:SHOTS] for task, own in of.items()}


@pytest.mark.parametrize("hooked", [False, True], ids=["a plain Linear", "a Linear that is called"])
def test_outputs_and_every_gradient_are_those_of_the_equations(hooked: bool) -> None:
    model, bank, contexts = adapted()
    (layer,) = bank.layers.values()
    if hooked:
        layer.base.register_forward_hook(lambda *_: None)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = stated(bank, x, first(states()))
    found = model(x, task_ids=IDS)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(expected)
    leaves = {"x": x, "A1": layer.bank_a, "B": layer.bank_b, "A2": contexts.keys, "A3": contexts.values}
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, expected))
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def test_in_an_adaptation_the_matrix_itself_has_the_gradient() -> None:
    model, bank, contexts = adapted(learning=False)
    bank.set_contexts(states())
    contexts.vectors.requires_grad_(True)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x, task_ids=IDS), stated(bank, x, states()), rtol=1e-10, atol=1e-12)
    (layer,) = bank.layers.values()
    s = contexts.vectors.view(3, 2, 2)
    named = [x[i] @ layer.bank_a[0, 0] @ s[TASKS.index(t)] @ layer.bank_b[0, 0] * 1.5 for i, t in enumerate(IDS)]
    expected = torch.autograd.grad(torch.stack(named).square().sum(), contexts.vectors)[0]
    base = layer.base(x)
    found = torch.autograd.grad((model(x, task_ids=IDS) - base).square().sum(), contexts.vectors)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert not contexts.keys.requires_grad
    assert contexts.trained() == []


def test_a_step_draws_shots_and_a_task_has_the_same_in_every_batch_of_it() -> None:
    model, bank, contexts = adapted()
    model.train()
    own = states()
    sets = {
        task: [stated_matrix(contexts.keys[0], contexts.values[0], some[list(pair)]) for pair in pairs()]
        for task, some in own.items()
    }
    seen = {task: set() for task in TASKS}
    router = next(iter(bank.groups.values()))
    for step in range(12):
        found = {}
        for ids in (["rte", "copa", "boolq"], ["copa"]):
            bank.seed_draws(3, step)
            s = router.transform(bank.for_batch(ids))
            for row, task in zip(s, ids, strict=True):
                torch.testing.assert_close(found.setdefault(task, row), row)
        for task, row in found.items():
            (which,) = [i for i, one in enumerate(sets[task]) if torch.allclose(one, row, rtol=1e-9, atol=1e-11)]
            seen[task].add(which)
    assert all(len(some) >= 4 for some in seen.values())
    bank.seed_draws(3, 0)
    several = [router.transform(bank.for_batch(["rte"])) for _ in range(8)]  # without a trainer each batch draws
    assert not all(torch.equal(several[0], one) for one in several)
    model.eval()
    one, two = (router.transform(bank.for_batch(["rte"])) for _ in range(2))
    assert torch.equal(one, two)


def pairs() -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(POOL), SHOTS))


def test_what_is_stored_answers_as_the_model_does_and_follows_the_generator(tmp_path: Path) -> None:
    model, bank, contexts = adapted()
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    before = bank.tensors()["contexts.vectors"].clone()
    with torch.no_grad():
        contexts.keys.add_(torch.randn_like(contexts.keys))
    assert not torch.allclose(bank.tensors()["contexts.vectors"], before)
    save_adapter(model, tmp_path / "adapter", base="layer")
    other = Layer().double().eval()
    other.load_state_dict({name: t for name, t in model.state_dict().items() if name in other.state_dict()})
    again = load_adapter(tmp_path / "adapter", other)
    assert again.contexts.states is None
    torch.testing.assert_close(other(x, task_ids=IDS), model(x, task_ids=IDS), rtol=1e-10, atol=1e-12)
    for task in TASKS:
        plain = collapse_task(checkpoint_of(model, "layer"), task).layers["layer"]
        one = model(x[:1], task_ids=[task])
        torch.testing.assert_close(
            bank.layers["layer"].base(x[:1]) + x[:1] @ plain.delta(), one, rtol=1e-10, atol=1e-12
        )


def test_new_tasks_have_matrices_of_all_their_shots_and_unknown_ones_no_adapter() -> None:
    model, bank, contexts = adapted()
    bank.set_tasks(["rte", "wic"])
    assert contexts.states is None
    with pytest.raises(TaskError, match="task 'wic' has no context"):
        bank.for_batch(["wic"])
    new = states(7, ["wic"])
    bank.set_contexts(new)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = stated(bank, x, {"rte": states()["rte"][:SHOTS], **new}, ["wic", "rte"])
    torch.testing.assert_close(model(x, task_ids=["wic", "rte"]), expected, rtol=1e-10, atol=1e-12)
    unknown = model(x, task_ids=bank.for_batch(["cb", "rte"], unseen="uniform"))
    torch.testing.assert_close(unknown[0], bank.layers["layer"].base(x[0]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(unknown[1], stated(bank, x[1:], first(states()), ["rte"])[0], rtol=1e-10, atol=1e-12)


def test_it_begins_as_the_base() -> None:
    model = Layer()
    bank = mhr.attach(model, AdapterConfig(method=METHOD, targets=["layer"], router={"size": SIZE}), TASKS)
    bank.set_contexts(states(), center=True)
    x = torch.randn(4, 5, 6)
    torch.testing.assert_close(model(x, task_ids=IDS), bank.layers["layer"].base(x))
    norms = bank.contexts.vectors.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wic": torch.ones(1, 2, SIZE)}, "shots of task 'wic' are given, which is no task of the bank: add it first"),
        ({"rte": torch.ones(1, 2, 4)}, r"task 'rte' have shape \(1, 2, 4\), expected \(shots, tokens, 5\): take the encoder"),
        ({"rte": torch.ones(SIZE)}, r"have shape \(5,\), expected \(shots, tokens, 5\)"),
        ({"rte": torch.zeros(1, 2, SIZE)}, "hidden states of shots of task 'rte' are zero or not finite"),
        ({"boolq": torch.ones(1, 2, SIZE), "rte": torch.full((1, 2, SIZE), math.nan)}, "task 'rte' are zero or not finite"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit_change_nothing(given: dict[str, Tensor], said: str) -> None:
    _, bank, contexts = adapted()
    before = contexts.vectors.detach().clone()
    with pytest.raises(TaskError, match=said):
        bank.set_contexts(given)
    assert torch.equal(contexts.vectors, before)
    with pytest.raises(TaskError, match="no shots are given of task 'copa', from which the bank is to learn"):
        bank.set_contexts(states(1, ["boolq", "rte"]), center=True)
    assert torch.equal(contexts.vectors, before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapter": "bottleneck"}, "has a matrix between the two factors of a lora: set adapter to 'lora'"),
        ({"n_heads": 2}, "n_heads is 2, but generative-adapter has 1 head"),
        ({"n_skills": 3}, "n_skills is 3, but generative-adapter has 1 skill"),
        ({"noise": "per_task"}, "noise is 'per_task', but method 'generative-adapter' has no logits in its routing"),
        ({"router": {"context": "definition"}}, r"router\.context is 'definition', expected one of shots"),
        ({"router": {"shots": 8, "pool": 7}}, r"router\.pool is 7, from which 8 shots are drawn: set it to 8 or more"),
        ({"router": {"tokens": 0}}, r"router\.tokens is 0, expected an integer of at least 1"),
        ({"router": {"tokens": 513}}, r"router\.tokens is 513, expected an integer of at least 1 and at most 512"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(**{"method": METHOD, **settings})


def test_it_trains_as_many_parameters_as_its_settings_say() -> None:
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
        config = AdapterConfig(method=METHOD, rank=8, targets=["q", "v"], router={"size": 768})
        bank = mhr.attach(model, config, TASKS)
    layers = 3 * 12 * 2
    assert sum(p.numel() for p in bank.adapter_parameters()) == layers * 8 * (768 + 768)
    assert bank.contexts.keys.numel() + bank.contexts.values.numel() == layers * 2 * 8 * 768
    assert bank.contexts.vectors.numel() == len(TASKS) * layers * 8 * 8


def test_the_generator_and_the_row_of_a_task_have_rates_of_their_own() -> None:
    model, _, contexts = adapted()
    contexts.vectors.requires_grad_(True)
    groups = {g.name: g for g in parameter_groups(model, lr=0.1, router_lr=0.5, weight_decay=0.3, decaying=set())}
    assert (groups["network"].lr, list(map(id, groups["network"].parameters))) == (
        1e-3,
        [id(contexts.keys), id(contexts.values)],
    )
    assert (groups["contexts"].lr, groups["contexts"].parameters[0] is contexts.vectors) == (0.05, True)


# ---- runs -------------------------------------------------------------------------------------------------------------

OWN = {"shots": 4, "tokens": 6}
NEW = ["next-first", "swap-last"]


@pytest.fixture(scope="module")
def runs() -> dict[str, RunFolder]:
    return {}


@pytest.fixture
def run(runs: dict[str, RunFolder], settings: Make, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    if not runs:
        folder = tmp_path_factory.mktemp("generative") / "run"
        config = settings(method=METHOD, steps=3, save_every=3, **{"adapter.router": OWN})
        runs["run"] = pretrain(config, str(folder), progress=False)
    return runs["run"]


def generated(run: RunFolder, shots: list[Any], tensors: dict[str, Tensor]) -> Tensor:
    """S [G, R, R] of shots, as the run's generator gives it."""
    encoder = Encoder(*load_backbone(run.config().model))
    texts = [running_text(shot.input, shot.targets[0]) for shot in shots]
    read = [encoder.states([text], 6).double() for text in texts]
    assert all(one.shape == (1, 6, 32) for one in read)
    a2, a3 = tensors["contexts.keys"].double(), tensors["contexts.values"].double()
    return torch.stack([stated_matrix(k, v, torch.cat(read)) for k, v in zip(a2, a3, strict=True)])


def test_a_run_is_trained_on_others_than_its_contexts(run: RunFolder) -> None:
    assert run.info["examples"] == 3 * (24 - 8)
    assert "8 training examples of each task are set apart for contexts, and not trained on" in run.info["notes"]
    collection = read_tasks(run.config().tasks, run.config().data)
    apart, _ = set_apart(collection.training(), run.config().adapter)
    tensors = read_adapter(run.adapter).tensors
    for row, task in enumerate(apart.values()):
        whole = collection[task.name].train
        assert [e.id for e in task.context] == [e.id for e in shot_order(whole, task.name, 0)[:8]]
        assert not {e.input for e in task.context} & {e.input for e in task.train}
        assert len(task.train) == len(whole) - 8
        expected = generated(run, task.context[:4], tensors)
        found = tensors["contexts.vectors"][row].view_as(expected)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    inspected = inspect_run(run.path)
    assert inspected.trained == run.info["parameters"]["trained"]
    assert inspected.per_task == tensors["contexts.vectors"].shape[1]
    assert inspected.routed  # by the matrices
    own = tensors["contexts.vectors"]
    torch.testing.assert_close(inspected.routing.matrix, own)
    cosine = torch.nn.functional.cosine_similarity(own[0], own[1], dim=0)
    torch.testing.assert_close(inspected.routing.similarity[0, 1], cosine.double())


def test_the_generator_learns(run: RunFolder, settings: Make, tmp_path: Path) -> None:
    other = pretrain(
        settings(method=METHOD, steps=3, save_every=3, **{"adapter.router": {**OWN, "network_lr": 1e-9}}),
        str(tmp_path / "run"),
        progress=False,
    )
    one, two = (read_adapter(r.adapter).tensors for r in (run, other))
    moved = [name for name in one if not torch.equal(one[name], two[name])]
    assert {"contexts.keys", "contexts.values", "contexts.vectors"} <= set(moved)


def test_a_new_task_is_evaluated_by_its_shots(run: RunFolder) -> None:
    collection = read_tasks(run.config().tasks, run.config().data)
    loaded = load_model(run.path)
    found = evaluate(loaded, collection.held_out(), limit=2, progress=False)
    assert found.notes == ["2 tasks that the bank was not trained on are routed by their shots, without training"]
    tensors = read_adapter(run.adapter).tensors
    for row, name in enumerate(NEW, 3):
        expected = generated(run, shot_order(collection[name].train, name, 0)[:4], tensors)
        got = loaded.model.mhr.contexts.vectors[row].detach().view_as(expected)
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    few = collection.held_out()[NEW[0]]
    few.train = few.train[:3]
    with pytest.raises(DataError, match="task 'next-first' has 3 training examples, fewer than the 4 shots"):
        give_contexts(*load_checkpoint(run.adapter), [few])


def test_a_merged_task_answers_as_the_routed_one(run: RunFolder, tmp_path: Path) -> None:
    task = run.info["tasks"][1]
    merged, _ = load_checkpoint(merge(run.path, method="task", task=task, output=tmp_path / "merged"))
    model, tokenizer = load_checkpoint(run.adapter)
    inputs = dict(tokenizer(["abcd", "hg"], return_tensors="pt", padding=True))
    labels = torch.tensor([[5, 1], [9, 1]])
    with torch.no_grad():
        one = model(**inputs, labels=labels, task_ids=[task] * 2).logits
        torch.testing.assert_close(merged(**inputs, labels=labels).logits, one, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        MergeError, match=r"factors that a task's matrix stands between, and have no average: merge one"
    ):
        merge(run.path, method="uniform", output=tmp_path / "average")


@pytest.mark.parametrize(
    ("mode", "moved"),
    [("z", {"contexts"}), ("mhr", {"contexts", "layers"}), ("random", {"contexts", "layers"})],
)
def test_an_adaptation_begins_with_the_generated_matrix(
    run: RunFolder, mode: str, moved: set[str], tmp_path: Path
) -> None:
    before = read_adapter(run.adapter).tensors
    (made,) = adapt(str(run.path), NEW[:1], mode=mode, output=str(tmp_path / "out"), steps=2, progress=False)
    after = read_adapter(made.adapter).tensors
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.partition(".")[0] for name in changed} == moved
    if mode != "random":  # which draws the generator again
        assert "contexts.keys" not in changed
    assert inspect_run(made.path).trained == made.info["parameters"]["trained"]
    (still,) = adapt(
        str(run.path), NEW[:1], mode=mode, output=str(tmp_path / "s"), steps=1, router_lr=1e-9, progress=False
    )
    by_id = {e.id: e for e in read_tasks(run.config().tasks, run.config().data)[NEW[0]].train}
    tensors = read_adapter(still.adapter).tensors
    expected = generated(run, [by_id[i] for i in still.info["shots"]], tensors)
    found = tensors["contexts.vectors"][0].view_as(expected)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["mu", "lora", "lorahub"])
def test_it_has_no_average_to_adapt(run: RunFolder, mode: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="factors that a task's matrix stands between, and have no average"):
        adapt(str(run.path), NEW[:1], mode=mode, output=str(tmp_path / "out"), progress=False)


def test_a_run_goes_on_with_its_generator(run: RunFolder, settings: Make, tmp_path: Path) -> None:
    config = settings(
        method=METHOD,
        steps=2,
        save_every=2,
        continue_from=str(run.path),
        **{"adapter.router": OWN},
    )
    after = pretrain(config, str(tmp_path / "on"), progress=False)
    one, two = (read_adapter(r.adapter).tensors for r in (run, after))
    assert after.info["examples"] == run.info["examples"]
    assert not torch.equal(one["contexts.keys"], two["contexts.keys"])


def test_validation_while_training_changes_nothing(run: RunFolder, settings: Make, tmp_path: Path) -> None:
    config = settings(method=METHOD, steps=2, save_every=2, eval_every=1, eval_rows=2, **{"adapter.router": OWN})
    seen = pretrain(config, str(tmp_path / "seen"), progress=False)
    assert len(seen.validations()) == 2


def test_too_few_examples_are_refused(settings: Make, tmp_path: Path) -> None:
    for own, said in (
        ({}, r"has 24 training examples, of which 32 are set apart for contexts of 32 shots, so that none is left"),
        ({"shots": 24}, r"of which 24 are set apart .*: set adapter\.router\.shots lower, or adapter\.router\.pool"),
        ({"shots": 4, "pool": 30}, r"of which 30 are set apart for contexts of 4 shots"),
    ):
        with pytest.raises(DataError, match=said):
            pretrain(settings(method=METHOD, **{"adapter.router": own}), str(tmp_path / "run"), progress=False)
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"^router\.size is 7, but embeddings of the encoder have 32: leave it out"):
        pretrain(
            settings(method=METHOD, **{"adapter.router": {**OWN, "size": 7}}), str(tmp_path / "run"), progress=False
        )


def test_a_rate_of_rows_that_do_not_train_is_refused(settings: Make) -> None:
    config = settings(method=METHOD, router_lr=0.2, **{"adapter.router": OWN})
    with pytest.raises(ConfigError, match=r"set adapter\.router\.network_lr instead"):
        refuse_unused(assignments(["train.router_lr=0.2"]), config)


@pytest.mark.parametrize(("examples", "apart"), [(1000, 8), (12, 6), (9, 4), (6, 4)])
def test_of_few_examples_no_more_than_half_are_set_apart(examples: int, apart: int, settings: Make) -> None:
    collection = read_tasks(settings().tasks, settings().data).training()
    task = next(iter(collection.values()))
    task.train = [replace(task.train[0], input=f"{i}", id=f"{i}") for i in range(examples)]
    config = AdapterConfig(method=METHOD, router={"shots": 4})
    parted, note = set_apart(collection, config)
    own = parted[task.name]
    assert (len(own.context), len(own.train)) == (apart, examples - apart)
    sizes = "8" if apart == 8 else f"{apart} to 8"
    assert note == f"{sizes} training examples of each task are set apart for contexts, and not trained on"
    task.train = [replace(e, input="the same") for e in task.train]
    with pytest.raises(DataError, match="so that none is left to train on"):
        set_apart(collection, config)


def test_states_are_those_of_the_last_tokens(settings: Make) -> None:
    encoder = Encoder(*load_backbone(settings().model))
    long, short = "abcdefgh", "xy"
    both = encoder.states([long, short], 5)
    assert both.shape == (2, 5, 32)
    ids = encoder.tokenizer(long, return_tensors="pt")
    with torch.no_grad():
        whole = encoder.model.get_encoder()(**ids)[0][0]
    torch.testing.assert_close(both[0], whole[-5:], rtol=1e-4, atol=1e-5)
    assert both[1, :3].any(-1).all()
    assert not both[1, 3:].any()
    torch.testing.assert_close(encoder.embed([long])[0], whole.mean(0), rtol=1e-4, atol=1e-5)
