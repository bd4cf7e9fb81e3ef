"""What a method is stands in mhr/methods.py alone: no other module's logic names one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhr.config import AdapterConfig
from mhr.methods import METHODS, MODES, ROUTING_METHODS, refusal, title_of
from mhr.routing import routers
from mhr.runs import load_config

ROOT = Path(__file__).resolve().parents[1]
NAMES = METHODS.keys() | ROUTING_METHODS.keys()

HOME = {"mhr/methods.py"}
SUBJECT = {
    "mhr/demo.py": "trains three methods to compare them",
    "mhr/adapters/peft_poly.py": "says what PEFT calls things",
    "mhr/adapters/importing/mttl.py": "says what mttl calls things",
}

OTHER_MEANINGS = {
    "mhr": "the package, an initialisation, a form of merged adapters, a mode",
    "lora": "a kind of adapter",
    "ia3": "a kind of adapter",
    "bottleneck": "a kind of adapter",
    "film": "a kind of adapter",
    "shared": "the embedding of a T5",
    "random": "a row of another task that routing begins with",
    "uniform": "a sampler, a merge method, how unknown tasks are routed",
}
"""Names that mean something else too: of these only comparisons, arguments and defaults of something called a method count."""


def sources() -> list[Path]:
    found = [*(ROOT / "mhr").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    return [path for path in sorted(found) if path.relative_to(ROOT).as_posix() not in HOME | SUBJECT.keys()]


def constants(node: ast.AST) -> Iterator[ast.Constant]:
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child


def is_method(node: ast.AST | None) -> bool:
    """Whether an expression is something called a method: `method`, `config.method`, `info["method"]`."""
    name = ast.unparse(node) if node is not None else ""
    return name.rstrip("\"')]").endswith("method") and "merge" not in name and "order" not in name


def registrations(tree: ast.AST) -> set[int]:
    """The constants of `@routers.register("name")`."""
    return {
        id(constant)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "routers.register"
        for constant in constants(node)
    }


def named(tree: ast.AST) -> Iterator[ast.Constant]:
    """The places of a module where its logic names a method."""
    allowed = registrations(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES - OTHER_MEANINGS.keys() and id(node) not in allowed:
            yield node
        told: list[ast.AST] = []
        if isinstance(node, ast.Compare) and any(map(is_method, [node.left, *node.comparators])):
            told = [node.left, *node.comparators]
        elif isinstance(node, ast.keyword) and node.arg == "method":
            told = [node.value]
        for constant in (c for part in told for c in constants(part)):
            if constant.value in OTHER_MEANINGS:
                yield constant


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_other_module_names_a_method(path: Path) -> None:
    found = [f"line {node.lineno}: {node.value!r}" for node in named(ast.parse(path.read_text("utf-8")))]
    assert not found, "ask a row of mhr/methods.py instead"


@pytest.mark.parametrize(
    "text",
    ["if config.method == 'mhr': pass", "x = {'poly': 1}", "f(method='lora')", "y = info['method'] in ('uniform', z)"],
)
def test_a_name_is_found(text: str) -> None:
    assert list(named(ast.parse(text)))


def test_a_row_says_what_its_router_is() -> None:
    for name, row in ROUTING_METHODS.items():
        router = routers[name](AdapterConfig(method=name), ["boolq", "rte"])
        contexts = getattr(router, "contexts", None)
        learnt = [*router.parameters(), *(() if contexts is None else contexts.parameters())]
        assert row.learned == bool(learnt), name
        assert row.needs_tasks == (router.table()[0] != router.table()[1]).any() or row.noisy or row.transforms, name
        assert set(router.per_task) <= router.state_dict().keys(), name
        assert all(len(router.state_dict()[tensor]) == 2 for tensor in router.per_task), name


def test_every_method_can_be_adapted_in_some_mode_and_says_why_not_in_others() -> None:
    for name, method in METHODS.items():
        allowed = {mode for mode in MODES if refusal(mode, name, averaged=False) is None}
        assert "full" in allowed
        assert ("mu" in allowed) == bool(method.routing and ROUTING_METHODS[method.routing].convex)
        routing = ROUTING_METHODS.get(method.routing or "")
        assert ("z" in allowed) == bool(routing and routing.learned and not routing.by_token)
        assert ("head" in allowed) == method.task_heads
        assert ("lora" in allowed) == bool(method.routing and ROUTING_METHODS[method.routing].one_adapter)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_refusal_names_modes_that_work(averaged: bool) -> None:
    named = 0
    for method, row in METHODS.items():
        routing = ROUTING_METHODS[row.routing] if row.routing else None
        if averaged and (routing is None or not routing.convex or routing.by_token):
            continue  # which trains no skills that it could end as the average of
        for mode in MODES:
            reason = refusal(mode, method, averaged=averaged)
            if reason is None or "use mode" not in reason:
                continue
            for other in re.findall(r"'(\w+)'", reason.partition("use mode")[2]):
                assert refusal(other, method, averaged=averaged) is None, f"{method}, {mode}: {reason}"
                named += 1
    assert named > 10


def test_titles() -> None:
    assert title_of("mhr", "z") == "MHR-z"
    assert title_of("lora") == "shared LoRA"
    assert title_of("of another release", "z") == "of another release-z"
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_a_fixed_kind_of_adapter_is_what_a_run_gets() -> None:
    for name, method in METHODS.items():
        adapter = load_config(method=name).adapter
        assert (adapter is None) == (method.routing is None)
        if adapter is not None:
            assert adapter.method == method.routing
            assert method.adapter in (None, adapter.adapter)
