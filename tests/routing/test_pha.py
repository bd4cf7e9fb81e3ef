"""PHA's prototypes: both contrastive losses against their equations, where new tasks begin, and its size."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

import mhr
from mhr import AdapterConfig
from mhr.adapters import read_adapter
from mhr.analysis.inspection import inspect_run
from mhr.errors import ConfigError, DataError, TaskError
from mhr.evaluation import evaluate, load_model
from mhr.few_shot import adapt
from mhr.routing.prototypes import Prototypes, contrast
from mhr.runs import RunConfig
from mhr.runs.tasks import read_tasks
from mhr.training import pretrain
from tests.models import tiny_model

TASKS = ["boolq", "rte", "copa"]
SIZE = 6


def made(**router: Any) -> Prototypes:
    torch.manual_seed(0)
    own = {"size": 4, "hidden": 5, "instance_size": SIZE, **router}
    found = Prototypes(AdapterConfig(method="pha", n_skills=3, router=own), TASKS).double()
    for p in found.parameters():
        torch.nn.init.normal_(p)
    return found


def instances(n: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {task: torch.randn(n, SIZE, generator=generator, dtype=torch.float64) for task in TASKS}


def stated(z: list[Tensor], k: list[Tensor], tasks: list[int], tau: float) -> Tensor:
    """Both losses, example by example."""

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return a @ b / (a.norm() * b.norm())

    examples, prototypes = [], []
    for i, t in enumerate(tasks):
        around = sum(torch.exp(cosine(z[i], z[a]) / tau) for a in range(len(z)) if a != i)
        same = [j for j, other in enumerate(tasks) if other == t and j != i]
        examples.append(-sum(torch.log(torch.exp(cosine(z[i], z[j]) / tau) / around) for j in same) / len(same))
        others = sum(torch.exp(cosine(z[i], k[o]) / tau) for o in range(len(k)) if o != t)
        prototypes.append(-torch.log(torch.exp(cosine(z[i], k[t]) / tau) / others))
    return (sum(examples) + sum(prototypes)) / len(z)


def test_both_losses_and_every_gradient_are_those_of_the_equations() -> None:
    found = made()
    own = instances()
    found.put(own, center=True)
    x = torch.cat(list(own.values()))
    tasks = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    first, _, second = found.retrieve
    z = [second.weight @ torch.relu(first.weight @ one + first.bias) + second.bias for one in x]
    expected = stated(z, list(found.vectors), tasks, 0.1)
    loss = contrast(found.retrieve(x), found.vectors, torch.tensor(tasks), 0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    leaves = [found.vectors, *found.retrieve.parameters()]
    for a, b in zip(*(torch.autograd.grad(one, leaves) for one in (loss, expected)), strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    # All examples of all tasks are drawn here, in another order.
    drawn = found.own_loss(torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, 0.1 * expected, rtol=1e-10, atol=0)


def test_without_examples_or_others_there_is_nothing_to_contrast() -> None:
    found = made()
    assert found.own_loss(torch.Generator()) is None
    assert not any(p.requires_grad for p in found.retrieve.parameters())
    assert not {id(p) for p in found.trained()} & {id(p) for p in found.retrieve.parameters()}
    found.put(instances(), center=True)
    assert {id(p) for p in found.retrieve.parameters()} < {id(p) for p in found.trained()}
    found.set_tasks(["rte"], [1])
    assert found.own_loss(torch.Generator()) is None


def test_of_many_tasks_some_are_drawn_the_same_for_a_seed() -> None:
    torch.manual_seed(0)
    tasks = [f"task {i}" for i in range(100)]
    found = Prototypes(AdapterConfig(method="pha", router={"instance_size": SIZE}), tasks)
    found.put({task: torch.randn(9, SIZE) for task in tasks}, center=True)
    one, two, other = (found.own_loss(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.isfinite()


def test_a_new_task_begins_with_the_prototype_that_its_examples_are_nearest_to() -> None:
    found = made()
    before = found.vectors.detach().clone()
    found.set_tasks(["wic"], [None])
    for round_ in range(5):
        x = torch.randn(4, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(round_))
        z = found.retrieve(x).detach()
        cosines = torch.stack([torch.stack([a @ k / (a.norm() * k.norm()) for k in before]) for a in z]).mean(0)
        best = int(cosines.argmax())
        found.put({"wic": x})
        assert torch.equal(found.vectors[0], before[best])
        assert found.nearest == {"wic": TASKS[best]}
    found.set_tasks(["cb"], [None])  # after another new task they are still those of training
    found.put({"cb": x})
    assert torch.equal(found.vectors[0], before[best])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wic": torch.zeros(2, SIZE)}, "examples of task 'wic' are given, which is no task of the bank"),
        ({"rte": torch.zeros(2, 5)}, r"examples of task 'rte' have shape \(2, 5\), expected \(examples, 6\): take the encoder"),
        ({"rte": torch.zeros(SIZE)}, r"have shape \(6,\), expected \(examples, 6\)"),
        ({"rte": torch.full((2, SIZE), math.nan)}, "an embedding of an example of task 'rte' is not finite"),
    ],
)  # fmt: skip
def test_embeddings_that_do_not_fit_change_nothing(given: dict[str, Tensor], said: str) -> None:
    found = made()
    before = found.vectors.detach().clone()
    with pytest.raises(TaskError, match=said):
        found.put(given)
    assert torch.equal(found.vectors, before)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rte": None}, "no examples are given of task 'rte', from which the bank is to learn: give those of all its tasks"),
        ({"boolq": None}, "no examples are given of task 'boolq'"),
        ({"copa": torch.ones(2, SIZE)}, "2 examples of task 'copa' are given, but 3 of task 'boolq': give as many of each task"),
    ],
)  # fmt: skip
def test_a_bank_learns_from_as_many_examples_of_each_of_its_tasks(changed: dict[str, Tensor | None], said: str) -> None:
    found = made()
    given = {task: x for task, x in {**instances(), **changed}.items() if x is not None}
    with pytest.raises(TaskError, match=said):
        found.put(given, center=True)
    assert found.instances is None
    assert not any(p.requires_grad for p in found.retrieve.parameters())


def test_a_run_keeps_prototypes_near_to_examples_and_new_tasks_find_them(
    settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = settings(method="pha", n_skills=8, **{"adapter.router": {"shots": 8}})
    run = pretrain(config, str(tmp_path / "run"), progress=False)
    stored = read_adapter(run.adapter)
    assert stored.config.router["instance_size"] == 32
    assert "contexts.instances" not in stored.tensors
    alone = pretrain(
        settings(method="pha", n_skills=8, **{"adapter.router": {"shots": 8, "contrast": 1e-9}}),
        str(tmp_path / "alone"),
        progress=False,
    )
    other = read_adapter(alone.adapter).tensors
    assert not torch.allclose(stored.tensors["contexts.retrieve.0.weight"], other["contexts.retrieve.0.weight"])
    made_of = adapt(str(run.path), mode="z", output=str(tmp_path / "z"), steps=1, progress=False)[0]
    began = made_of.info["start"]
    assert began["row"] == "prototype"
    assert began["task"] in run.info["tasks"]
    inspected = inspect_run(run.path)
    assert inspected.trained == run.info["parameters"]["trained"]
    assert inspected.per_task == 64
    collection = read_tasks(config.tasks, config.data)
    found = evaluate(load_model(run.path), collection.held_out(), limit=1, progress=False)
    by = "routed by their examples, which find the nearest prototype, without training"
    assert found.notes == [f"2 tasks that the bank was not trained on are {by}"]


def test_too_few_examples_are_refused(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has 24 training examples, fewer than the 32 shots .*: set adapter.router.shots to 24"
    ):
        pretrain(settings(method="pha"), str(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("router", "said"),
    [
        ({"context": "definition"}, r"router\.context is 'definition', expected one of learnt"),
        ({"shots": 1}, r"router\.shots is 1, expected an integer of at least 2"),
        ({"tau": 0.0}, r"router\.tau is 0\.0, expected a number above 0"),
    ],
)
def test_settings_that_do_not_go_together(router: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(method="pha", router=router)


def test_it_trains_as_many_parameters_as_its_paper_says() -> None:
    """616K for each of the 8 tasks of GLUE on T5-base, with bottlenecks of 24 behind every feed-forward block."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
    glue = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    config = AdapterConfig(method="pha", adapter="bottleneck", rank=24, router={"instance_size": 768})
    bank = mhr.attach(model, config, glue)
    assert len(bank.layers) == 24
    trained = [*bank.adapter_parameters(), *bank.contexts.parameters()]
    assert abs(sum(p.numel() for p in trained) / 8 / 616e3 - 1) < 0.01


def test_its_bottlenecks_are_of_one_bank_and_have_no_norm() -> None:
    model = tiny_model("bert-encoder")
    bank = mhr.attach(model, AdapterConfig(method="pha", adapter="bottleneck", n_skills=5), TASKS)
    assert not bank.config.norm
    assert len(bank.banks()) == 1
