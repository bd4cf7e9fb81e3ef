"""A public name of the library means one thing: it is defined in one module."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TWICE: dict[str, str] = {}
"""Names that may be defined in several modules, and why."""


def defined(tree: ast.Module) -> Iterator[str]:
    """The public names that a module defines at its top level."""
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from [node.name][node.name.startswith("_") :]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        yield from (t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith("_"))


def test_a_public_name_is_defined_in_one_module() -> None:
    found = defaultdict(set)
    for path in sorted((ROOT / "mhr").rglob("*.py")):
        for name in defined(ast.parse(path.read_text())):
            found[name].add(path.relative_to(ROOT).as_posix())
    twice = {name: sorted(places) for name, places in found.items() if len(places) > 1}
    assert {name: places for name, places in twice.items() if name not in TWICE} == {}
    assert TWICE.keys() <= twice.keys(), "a name that is defined once needs no reason"
