"""Imports point down, from the commands to the errors, and the package itself imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mhr

ROOT = Path(__file__).resolve().parents[1]

# A part may import itself and the parts of the levels above its own in this list, which are lower in the house.
LEVELS = [
    {"errors", "lazy"},
    {"setting"},
    {"checks", "method_settings"},
    {"registry", "methods", "files", "locks", "weight_search", "yaml_text"},
    {"config", "loading", "task_heads"},
    {"ops"},
    {"routing", "data"},
    {"layers", "backbones", "runs"},
    {"adapters", "objectives"},
    {"contexts"},
    {"evaluation", "training", "checkpoint"},
    {"merging", "few_shot", "prediction"},
    {"experts"},
    {"sweeps", "analysis"},
    {"report"},
    {"demo", "demo_llm", "doctor"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
HEAVY = ("torch", "transformers", "numpy", "datasets", "peft", "matplotlib", "accelerate", "pyarrow")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; a relative one begins with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module != "mhr":
                yield "." * node.level + (node.module or "")
            else:  # from mhr import merging
                yield from (f"mhr.{alias.name}" for alias in node.names)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_every_part_has_its_level() -> None:
    parts = {p.stem for p in (ROOT / "mhr").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", files("mhr"), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(ROOT / "mhr").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    for module in imported(ast.parse(path.read_text())):
        assert not module.startswith((".", "mhr_cli", "mhr_benchmarks")), module
        if module == "mhr" or module.startswith("mhr."):
            found = module.partition(".")[2].partition(".")[0]
            # What is named in mhr itself (`from mhr import attach`) comes from any level up to the layers.
            level = LEVEL.get(found, -1 if found in ("_C", "__version__") else LEVEL["layers"])
            assert found == part or level < LEVEL[part], f"{part} imports {module}, which is not below it"


@pytest.mark.parametrize("path", files("cli"), ids=lambda p: p.name)
def test_commands_import_each_other_relatively_and_nothing_heavy_at_their_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not any(module.split(".")[0] in ("cli", "mhr_cli") for module in imported(tree))
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in imported(node):
                assert module.partition(".")[0] not in HEAVY, f"line {node.lineno}: {module}"


@pytest.mark.parametrize("path", files("benchmarks"), ids=lambda p: p.name)
def test_benchmarks_use_the_public_interface(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mhr"):
            assert not any(alias.name.startswith("_") for alias in node.names), f"line {node.lineno}"


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, mhr; dir(mhr); mhr.AdapterConfig; mhr.MhrError; "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_every_name_of_the_package_is_there() -> None:
    for name in mhr.__all__:
        assert getattr(mhr, name) is not None
    assert set(mhr.__all__) <= set(dir(mhr))
    with pytest.raises(AttributeError, match="module 'mhr' has no attribute 'atach'"):
        _ = mhr.atach
