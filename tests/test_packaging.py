"""What an installed package holds beside its modules: weights, presets, templates, pages."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = {".pyc", ".so"}


def test_every_file_of_the_package_that_is_no_module_is_installed() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]["mhr"]
    package = ROOT / "mhr"
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    there = {p for p in package.rglob("*") if p.is_file() and p.suffix not in {".py", *MADE}}
    assert there
    assert there <= installed
