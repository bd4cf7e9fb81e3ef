"""Packages whose names are imported on first use offer what they say, and nothing else."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("package", ["mhr", "mhr.few_shot", "mhr.merging", "mhr.runs", "mhr.training"])
def test_names_of_a_package(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    missing = "adpt"
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'adpt'"):
        getattr(module, missing)
