"""What every routing method keeps to once it is on a model: stored, trained in parts and in processes, checkpointed, compiled, adapted.

What a router keeps to by itself stands in test_routers.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import attach_checkpoint, checkpoint_of, load_adapter, read_adapter, routing_weights, save_adapter
from mhr.adapters.collapse import collapse_task
from mhr.adapters.plain import attach_plain
from mhr.few_shot.starts import Start
from mhr.layers.parameter_groups import parameter_groups
from mhr.methods import METHODS, ROUTING_METHODS, method_of, refusal
from mhr.routing.prototypes import Prototypes
from mhr.runs import RunConfig
from tests.forked import Gradients, gradients_of_half, in_two_processes
from tests.models import random_batch, randomise, tiny_model
from tests.resuming import resumed_after_a_break
from tests.routing.contexts import drawn, embedding, with_contexts
from tests.routing.network import NAME, network_router

__all__ = ["network_router"]

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]

BY_TASK = [name for name, row in ROUTING_METHODS.items() if not row.by_token]  # the others: test_arrow.py
CASES: dict[str, dict[str, Any]] = {name: {"method": name} for name in (*BY_TASK, NAME)}
CASES["context-mhr, learnt"] = {"method": "context-mhr", "router": {"context": "learnt", "size": 5}}
CASES["hyperformer, bottlenecks"] = {"method": "hyperformer", "adapter": "bottleneck", "n_skills": 6}
CASES["hyperformer++, definitions"] = {"method": "hyperformer++", "adapter": "bottleneck", "n_skills": 6}
CASES["hyperformer++, definitions"] |= {"router": {"context": "definition", "size": 32}}
CASES["pha"] = {"method": "pha", "router": {"shots": 8, "instance_size": 32}}
CASES["generative-adapter"] |= {"router": {"shots": 4, "size": 32}}
CASES["generative-adapter, learning"] = {"method": "generative-adapter", "router": {"shots": 2, "size": 32}}
CASES["film"] = {"method": "private", "adapter": "film"}
CASES["bias"] = {"method": "private", "adapter": "bias"}
CASES["hra"] = {"method": "private", "adapter": "recurrent"}
CASES["gated"] = {"method": "private", "adapter": "gated", "virtual_tokens": 4}
CASES["gated, mhr"] = {"method": "mhr", "adapter": "gated", "virtual_tokens": 4}
LEARNED = [
    case
    for case, settings in CASES.items()
    if case == NAME or ROUTING_METHODS[settings["method"]].learned or case == "hra"
]
COUNTED = [
    case
    for case, settings in CASES.items()
    if case == NAME
    or not (ROUTING_METHODS[settings["method"]].one_skill or ROUTING_METHODS[settings["method"]].skill_per_task)
]
"""Those with as many skills as `n_skills` says."""

pytestmark = [
    pytest.mark.usefixtures("network_router"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_(en|dis)able. is deprecated:FutureWarning"),
]


def adapted(case: str, model: Any = None, seed: int = 0, **more: Any) -> tuple[Any, AdapterBank]:
    """A model with a bank in which everything has a value."""
    model = tiny_model("bert-encoder") if model is None else model
    torch.manual_seed(seed)
    bank = mhr.attach(model, AdapterConfig(**{"n_heads": heads(case), **CASES[case], **more}), TASKS)
    randomise(bank, seed)
    return model, with_contexts(bank, learning="learning" in case)


def heads(case: str) -> int | None:
    method = ROUTING_METHODS[CASES[case]["method"]]
    return 4 if method.learned and not method.one_head else None


def outputs(model: Any, ids: Any = IDS) -> Tensor:
    found: Tensor = model(**random_batch(model), task_ids=ids)[0]
    return found


def loss(y: Tensor) -> Tensor:
    """A sum that a layer norm at the end leaves something of, as it does not of squares."""
    return (y * torch.linspace(-1, 1, y.shape[-1])).sum()


def gradients(model: Any, of: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    of.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert any(g.any() for g in found.values())
    return found


def close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_holds_all_of_it(case: str, tmp_path: Path) -> None:
    model, bank = adapted(case)
    save_adapter(model, tmp_path / "adapter", base="tiny")
    other = tiny_model("bert-encoder")
    again = load_adapter(tmp_path / "adapter", other)
    assert again.tensors().keys() == bank.tensors().keys()
    for name, tensor in bank.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    with torch.no_grad():
        assert torch.equal(outputs(model), outputs(other))
        new = ["wic", "rte", "wic", "copa"]
        one, two = (outputs(m, m.mhr.for_batch(new, unseen="uniform")) for m in (model, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("case", CASES)
def test_what_a_checkpoint_says_of_routing_is_what_the_model_does(case: str) -> None:
    model, bank = adapted(case)
    found = routing_weights(checkpoint_of(model, "tiny"))
    assert found.keys() == bank.weights().keys()
    for group, table in bank.weights().items():
        torch.testing.assert_close(found[group], table)
        if bank.config.routing.convex:
            torch.testing.assert_close(table.sum(-1), torch.ones_like(table.sum(-1)))


@pytest.mark.parametrize(
    ("case", "more"), [*((case, {}) for case in CASES), *((case, {"n_skills": 1}) for case in COUNTED)]
)
def test_one_task_is_one_plain_adapter(case: str, more: dict[str, Any]) -> None:
    """Also of one skill, which weighs 1 only where weights are shares."""
    model, _ = adapted(case, **more)
    merged = tiny_model("bert-encoder")
    attach_plain(merged, collapse_task(checkpoint_of(model, "tiny"), "copa"))
    with torch.no_grad():
        routed = outputs(model, ["copa"] * 4)
        torch.testing.assert_close(merged(**random_batch(merged))[0], routed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_all_groups_together_are_those_of_each(case: str) -> None:
    _, bank = adapted(case)
    batch = bank.for_batch(IDS)
    for together, router in zip(bank.weigh(batch), bank.groups.values(), strict=True):
        torch.testing.assert_close(together, router(batch))


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_one_rate(case: str) -> None:
    model, bank = adapted(case)
    groups = parameter_groups(model, lr=0.1, router_lr=0.5, weight_decay=0.0, decaying=set())
    grouped = [id(p) for group in groups for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    slow = {id(p) for group in groups if group.name in ("adapters", "undecayed") for p in group.parameters}
    assert not slow & set(map(id, bank.router_parameters()))


@pytest.mark.parametrize("case", CASES)
def test_a_copy_of_a_model_is_its_own(case: str) -> None:
    model, _ = adapted(case)
    other = copy.deepcopy(model)
    before = outputs(model).detach()
    with torch.no_grad():
        for p in other.mhr.parameters():
            p.add_(1.0)
        for p in other.mhr.adapter_parameters():
            p.add_(1.0)
    assert torch.equal(outputs(model), before)
    assert not torch.equal(outputs(other), before)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(case: str, reentrant: bool) -> None:
    model, bank = adapted(case)
    model.train()
    bank.seed_draws(1, 2)
    plain = gradients(model, loss(outputs(model)))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    bank.seed_draws(1, 2)
    close(gradients(model, loss(outputs(model))), plain)


class Block(nn.Module):
    """What a model comes to for torch.compile, which takes seconds for a block of a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


# Not adamix, whose draws are no part of a graph, nor what has no place in two Linear layers.
@pytest.mark.parametrize("case", [case for case in CASES if case != "adamix" and not case.startswith("gated")])
def test_torch_compile_takes_it_whole(case: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Block()
    bank = mhr.attach(
        model, AdapterConfig(**{"n_heads": heads(case), **CASES[case]}, targets=["first", "second"], rank=2), TASKS
    )
    randomise(bank)
    with_contexts(bank, learning="learning" in case)
    x, batch = torch.randn(4, 3, 8), bank.for_batch(IDS)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = gradients(model, loss(model(x, task_ids=batch)))
    close(gradients(model, loss(compiled(x, task_ids=batch))), expected)


# ---- adaptations ------------------------------------------------------------------------------------------------------


def modes(case: str) -> list[str]:
    """Those that keep something of a bank, or draw it again, for a case."""
    if case == NAME:
        return ["mhr", "z", "random"]
    rows = [row for row in METHODS.values() if row.routing == CASES[case]["method"]]
    name = next((row.name for row in rows if row.adapter == CASES[case].get("adapter")), rows[0].name)
    return [mode for mode in ("mhr", "z", "head", "random") if refusal(mode, name, averaged=False) is None]


def begin(start: Start, task: str) -> dict[str, Tensor]:
    """What an adaptation to a task begins with, and as `trained` which of it asks for a gradient."""
    bank = start.bank
    assert bank is not None
    contexts, context = bank.contexts, None
    if contexts is not None and contexts.embedded:
        own = isinstance(contexts, Prototypes)
        context = embedding(task, 3, contexts.settings.instance_width) if own else drawn(contexts, task)
    start.begin(task, 13, context=context)
    trained = torch.tensor([p.requires_grad for p in start.model.parameters()])
    return {"trained": trained, **{name: tensor.detach().clone() for name, tensor in bank.tensors().items()}}


@pytest.mark.parametrize(("case", "mode"), [(case, mode) for case in CASES for mode in modes(case)])
def test_the_order_of_adaptations_does_not_matter(case: str, mode: str) -> None:
    expected = begin(Start(adapted(case)[0], None, "tiny", mode), "wic")
    assert expected["trained"].any()
    start = Start(adapted(case)[0], None, "tiny", mode)
    for task in ("cb", "copa", "wic"):
        found = begin(start, task)
        with torch.no_grad():
            for p in start.model.parameters():
                if p.requires_grad:
                    p.add_(1.0)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# ---- processes --------------------------------------------------------------------------------------------------------


def half(rank: int) -> Gradients:
    found = {}
    for case in CASES:
        model, bank = adapted(case, seed=rank)  # what the first one has is what both begin with
        model.train()
        # A pooler, whose output is not looked at here, has biases that are adapted.
        unused = bank.config.adapter == "bias"
        bank.seed_draws(1, 2)
        found[case] = gradients_of_half(
            model, random_batch(model), IDS, rank, lambda out: loss(out[0]), find_unused_parameters=unused
        )
    return found


def test_two_processes_find_the_gradients_of_one(tmp_path: Path) -> None:
    found = in_two_processes(half, tmp_path)
    assert found.keys() == CASES.keys()
    for case in CASES:
        model, bank = adapted(case)
        model.train()
        bank.seed_draws(1, 2)
        close(found[case], gradients(model, loss(outputs(model))))


# ---- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LEARNED)
def test_a_resumed_run_ends_where_one_without_a_break_does(
    case: str, settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    own = dict(CASES[case])
    if "adapter" in own:  # users name the two together
        own["method"] = method_of(own["method"], own.pop("adapter"))
    config = settings(**{"steps": 4, "save_every": 2, "n_heads": heads(case), **own})
    resumed = resumed_after_a_break(config, tmp_path)
    model = tiny_model("t5", vocab_size=384)
    assert attach_checkpoint(read_adapter(resumed.adapter), model).tasks == resumed.info["tasks"]
