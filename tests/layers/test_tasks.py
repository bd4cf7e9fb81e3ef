"""Tasks have names: adding, removing, listing and re-ordering them keeps every task's own routing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.errors import TaskError
from mhr.methods import ROUTING_METHODS
from mhr.routing.tokens import TokenRouter
from tests.models import random_batch, randomise, tiny_model
from tests.routing.contexts import with_contexts

TASKS = ["boolq", "rte", "copa"]


def adapted(method: str = "mhr") -> tuple[PreTrainedModel, AdapterBank]:
    model = tiny_model("bert-encoder")
    heads = 1 if ROUTING_METHODS[method].one_head or method in ("private", "shared") else 4
    bank = mhr.attach(model, AdapterConfig(method=method, n_heads=heads), TASKS)
    randomise(bank)
    return model, bank


def output(model: PreTrainedModel, task: Any) -> Tensor:
    return model(**random_batch(model), task_ids=[task] * 4)[0]


@pytest.mark.parametrize("method", [name for name, row in ROUTING_METHODS.items() if not row.by_token])
def test_tasks_keep_their_outputs_when_others_come_and_go(method: str) -> None:
    model, bank = adapted(method)
    expected = {task: output(model, task) for task in TASKS}
    bank.set_tasks(["copa", "boolq", "rte"])
    assert bank.tasks == ["copa", "boolq", "rte"]
    for task in TASKS:
        assert torch.equal(output(model, task), expected[task]), task
    bank.add_tasks(["wic", "cb"])
    with_contexts(bank)
    assert bank.tasks == ["copa", "boolq", "rte", "wic", "cb"]
    bank.remove_tasks(["boolq", "wic"])
    assert bank.tasks == ["copa", "rte", "cb"]
    for task in ("copa", "rte"):
        assert torch.equal(output(model, task), expected[task]), task
    assert output(model, "cb").isfinite().all()
    assert all(w.shape[0] == 3 for w in bank.weights().values())


def test_a_fresh_table_forgets_what_tasks_had_learned() -> None:
    model, bank = adapted()
    bank.set_tasks(TASKS, fresh=True)
    assert all(p.abs().max() <= 1e-3 for p in bank.router_parameters())


def test_new_rows_keep_what_is_trained() -> None:
    _, bank = adapted()
    for p in bank.router_parameters():
        p.requires_grad_(False)
    bank.add_tasks(["wic"])
    assert not any(p.requires_grad for p in bank.router_parameters())
    _, private = adapted("private")
    for p in private.adapter_parameters():
        p.requires_grad_(False)
    private.add_tasks(["wic"])
    assert [p.shape[1] for p in private.adapter_parameters()] == [4] * 16
    assert not any(p.requires_grad for p in private.adapter_parameters())


def test_tasks_may_be_given_by_number() -> None:
    model, bank = adapted()
    batch = bank.for_batch(torch.tensor([2, 0, 2]))
    assert batch.tasks.tolist() == [2, 0]
    assert batch.rows.tolist() == [0, 1, 0]
    assert torch.equal(output(model, 1), output(model, "rte"))
    with pytest.raises(TaskError, match="task id 3 is out of range: the bank has 3 tasks, 0 to 2"):
        bank.for_batch([3])


def test_an_unseen_task_is_routed_uniformly_where_asked() -> None:
    model, bank = adapted()
    inputs = random_batch(model)
    with pytest.raises(TaskError, match="unknown task 'bool': did you mean 'boolq'"):
        bank.for_batch(["bool"])
    out = model(**inputs, task_ids=bank.for_batch(["wic", "rte", "cb", "wic"], unseen="uniform"))[0]
    for p in bank.router_parameters():
        torch.nn.init.zeros_(p)
    torch.testing.assert_close(out[[0, 2, 3]], output(model, "rte")[[0, 2, 3]])
    with bank.routing(["wic"] * 4, unseen="uniform"):
        torch.testing.assert_close(model(**inputs)[0][0], out[0])


@pytest.mark.parametrize("method", ROUTING_METHODS)
def test_a_state_dict_brings_all_that_routing_knows(method: str) -> None:
    (model, bank), (other, _) = (adapted(method) for _ in range(2))
    with_contexts(bank)
    for router in bank.groups.values():
        if isinstance(router, TokenRouter):
            router.fill(torch.randn_like(router.directions))
    inputs, ids = random_batch(model), ["rte", "boolq", "rte", "copa"]
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(**inputs, task_ids=ids)[0], model(**inputs, task_ids=ids)[0])


def test_rows_may_be_told_by_any_integers() -> None:
    model, bank = adapted()
    inputs = random_batch(model)
    expected = model(**inputs, task_ids=["rte", "boolq", "rte", "copa"])[0]
    rows = [bank.tasks.index(name) for name in ("rte", "boolq", "rte", "copa")]
    for ids in (rows, np.array(rows), list(np.array(rows)), torch.tensor(rows), list(torch.tensor(rows))):
        assert torch.equal(model(**inputs, task_ids=ids)[0], expected)


def test_tasks_are_added_and_removed_by_lists_alone() -> None:
    _, bank = adapted()
    before = bank.tasks
    for change in (bank.add_tasks, bank.remove_tasks):
        with pytest.raises(TaskError, match="tasks is the string 'ab': expected a list of names"):
            change("ab")
    assert bank.tasks == before


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "task_ids is empty"),
        ("rte", "task_ids is 'rte': expected a list"),
        (1, "task_ids is 1: expected a list"),
        (torch.tensor(1), "task_ids is 1: expected a list"),
        (torch.tensor([[0], [1]]), r"task id \[0\] is neither the name of a task nor the number of its row"),
        ([1.0], "task id 1.0 is neither"),
        (None, "task_ids is missing: expected one of the 3 task names per example"),
        (["RTE"], r"unknown task 'RTE': did you mean 'rte'\?"),
        (["zzzz"], "unknown task 'zzzz': known: 'boolq', 'copa', 'rte'"),
    ],
)
def test_task_ids_that_do_not_fit_are_an_error(ids: Any, message: str) -> None:
    _, bank = adapted()
    with pytest.raises(TaskError, match=message):
        bank.for_batch(ids)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["rte", "rte"], "task 'rte' is given twice"),
        ([], "no task is given"),
        (["rte", " "], "task name ' ' is no name"),
        (["rte", 3], "task name 3 is no name"),
        ("rte", "tasks is the string 'rte': expected a list of names"),
    ],
)
def test_task_names_that_do_not_fit_are_an_error_and_change_nothing(names: Any, message: str) -> None:
    model, bank = adapted()
    before = output(model, "copa")
    with pytest.raises(TaskError, match=message):
        bank.set_tasks(names)
    assert bank.tasks == TASKS
    assert torch.equal(output(model, "copa"), before)


def test_adding_a_known_task_or_removing_an_unknown_one_is_an_error() -> None:
    _, bank = adapted()
    with pytest.raises(TaskError, match="task 'rte' is there already"):
        bank.add_tasks(["wic", "rte"])
    with pytest.raises(TaskError, match="unknown task 'boolk': did you mean 'boolq'"):
        bank.remove_tasks(["rte", "boolk"])
    with pytest.raises(TaskError, match="no task is given"):
        bank.remove_tasks(TASKS)
    assert bank.tasks == TASKS
